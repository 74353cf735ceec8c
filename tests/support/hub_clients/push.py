"""Push models and processors with transformers' own methods, and publish checkpoints and a program.

folders: what is pushed, by its name.
"""

from huggingface_hub import HfApi
from prelude import GIVEN, attempt, say

from edge.export.publishing import publish as publish_program
from swin_hf import SwinHfForImageClassification, SwinHfImageProcessorPil
from swin_hf.publish import main, publish

folders = GIVEN["folders"]
api = HfApi()
model = SwinHfForImageClassification.from_pretrained(folders["classifier"])
processor = SwinHfImageProcessorPil.from_pretrained(folders["classifier"])

name = "org/swin-tiny-custom"
say("push a model", model.push_to_hub(name).oid)
say("push its processor", processor.push_to_hub(name).oid)
say("push both again, unchanged", [model.push_to_hub(name).oid, processor.push_to_hub(name).oid])
api.create_tag(name, tag="v1")
model.classifier.bias += 1
say("push to a branch", model.push_to_hub(name, revision="biased").oid)

say("dry run", main([folders["classifier"], "org/dry"]))
say("publish in private", main([folders["classifier"], "org/secret", "--private", "--upload"]))
say("publish again, unchanged", publish(folders["classifier"], "org/secret").oid)
say("publish to a new branch", publish(folders["classifier"], "org/secret", revision="second").oid)
for name in ("encoder", "painter", "backbone", "segmenter"):
    say(f"publish a {name}", publish(folders[name], f"org/{name}").oid)
say("publish a program", publish_program(folders["program"], "org/program").oid)
attempt("publish where one may not", lambda: publish(folders["classifier"], "others/model"))
