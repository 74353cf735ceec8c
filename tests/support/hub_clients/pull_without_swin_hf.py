"""Pull models where swin_hf is not installed, so that their own code is run.

folders: what was pushed, by its name, with inputs and outputs. commit: of the model that is pinned.
"""

import os
import sys

import torch
from prelude import GIVEN, NotInstalled, attempt, say
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForSemanticSegmentation,
    pipeline,
)

sys.meta_path.insert(0, NotInstalled())
folders, name = GIVEN["folders"], "org/swin-tiny-custom"
photo = f"{folders['photos']}/red/3.png"
pixel_values, expected = torch.load(folders["classifier.pt"])
attempt("not trusted", lambda: AutoModel.from_pretrained(name))
trusted = {"trust_remote_code": True}


def logits(**options) -> torch.Tensor:
    return AutoModelForImageClassification.from_pretrained(name, **trusted, **options)(pixel_values).logits


say("AutoConfig", type(AutoConfig.from_pretrained(name, **trusted)).__name__)
model = AutoModel.from_pretrained(name, **trusted)
say("AutoModel", f"{type(model).__module__.split('.')[0]} {type(model).__name__}")
say("its tokens", list(model(pixel_values).last_hidden_state.shape))
say("AutoModelForImageClassification", torch.equal(logits(), expected))
painter = AutoModelForMaskedImageModeling.from_pretrained(name, encoder_stride=4, **trusted)
say("a classifier as AutoModelForMaskedImageModeling", type(painter).__name__)
for saved, auto_class in {"encoder": AutoModel, "painter": AutoModelForMaskedImageModeling}.items():
    inputs, outputs = torch.load(folders[f"{saved}.pt"])
    own = auto_class.from_pretrained(f"org/{saved}", **trusted)
    say(f"{auto_class.__name__} of its own", torch.equal(own(inputs)[0], outputs))
processor = AutoImageProcessor.from_pretrained(name, **trusted)
say("AutoImageProcessor", type(processor).__name__)
answers = pipeline("image-classification", model=name, top_k=2, **trusted)(photo)
say("pipeline", [answer["label"] for answer in answers])

say("pinned to a commit", torch.equal(logits(revision=GIVEN["commit"]), expected))
say("pinned to a tag", torch.equal(logits(revision="v1"), expected))
say("pinned to a branch", torch.allclose(logits(revision="biased"), expected + 1))
attempt("no such revision", lambda: logits(revision="v9"))

images, expected = torch.load(folders["segmenter.pt"])
segmenter = AutoModelForSemanticSegmentation.from_pretrained("org/segmenter", **trusted)
say("AutoModelForSemanticSegmentation", torch.equal(segmenter(images).logits, expected))
segments = pipeline("image-segmentation", model="org/segmenter", **trusted)(photo)
say("pipeline for segments", sorted(segments[0]))
images, expected = torch.load(folders["backbone.pt"])
backbone = AutoBackbone.from_pretrained("org/backbone", **trusted)
say("AutoBackbone", torch.equal(backbone(images).feature_maps[-1], expected))

model.save_pretrained("again")
processor.save_pretrained("again")
say("saved again", sorted(os.listdir("again")))
say("loaded again", type(AutoModel.from_pretrained("again", **trusted)).__name__)
say("swin_hf is there", "swin_hf" in sys.modules)
