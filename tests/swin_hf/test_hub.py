"""Push and pull through unmodified clients, in processes of their own with fresh caches, against a Hub in this one.

It shows that our side of the conversation works; it is no proof of the rules of huggingface.co.
`python -m pytest tests/test_hub.py -s` prints every scenario with its result.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import PROCESSOR, TINY, write_image_folder
from hub_server import Fault, HubServer, User
from original_swin import Shape, original_weights, timm_weights
from PIL import Image

from edge.export.export import ExportSettings, export
from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfForSemanticSegmentation,
    SwinHfModel,
    SwinHfUperNetConfig,
)

ALICE, BOB, STRANGER = "hf_alice", "hf_bob", "hf_nobody"
MODEL_CODE = {
    *("auto_map_swin_hf.py", "configuration_swin_hf.py", "layers_swin_hf.py", "losses_swin_hf.py", "modeling_swin_hf.py"),
    *("outputs_swin_hf.py", "resizing_swin_hf.py", "stock_swin_hf.py", "tokens_swin_hf.py", "windows.py"),
}
CHECKPOINT = {"config.json", "model.safetensors", "preprocessor_config.json", "image_processing_swin_hf.py", *MODEL_CODE}
# Before everything else in a client's script: what it says of a scenario, and how a failure looks to it.
PRELUDE = """
import json, os, sys, warnings
import torch
torch.set_grad_enabled(False)
def say(scenario, result):
    print(json.dumps({scenario: result if isinstance(result, (bool, int, list)) else str(result)}), flush=True)
def attempt(scenario, work):
    try:
        say(scenario, work())
    except Exception as error:
        cause = error
        while cause.__cause__ is not None and not hasattr(cause, "response"):
            cause = cause.__cause__
        say(scenario, f"{type(error).__name__} < {type(cause).__name__}: {error}")
"""
WITHOUT_SWIN_HF = """
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("swin_hf", "edge", "distill"):
            raise ModuleNotFoundError(f"No module named {name!r}")
import sys
sys.meta_path.insert(0, NotInstalled())
"""


def run_client(hub: HubServer, home: Path, script: str, token: str | None = None, **names) -> dict:
    """What a client says of its scenarios: a new Python process with an empty cache and no terminal."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    code = PRELUDE + "".join(f"{name} = {value!r}\n" for name, value in names.items()) + script
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    said = {}
    for line in done.stdout.splitlines():
        if '{"' in line:  # behind a question that nobody answered
            said |= json.loads(line[line.index('{"') :])
    assert done.returncode == 0, done.stderr[-3000:]
    assert not any(token in done.stdout + done.stderr for token in (ALICE, BOB, STRANGER)), "a token was printed"
    print("", *(f"{scenario}: {str(result).splitlines()[0][:150]}" for scenario, result in said.items()), sep="\n    ")
    return said


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of every head and a device artefact, with what they put out."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    labels = {0: "blue", 1: "green", 2: "red"}
    pixel_values = torch.randn(2, 3, 16, 16)
    maps = {"out_features": ["stage1", "stage2"]}
    widths = {"block_num_heads": [[1], [3, 2]], "block_head_dim": [[8], [8, 8]], "block_mlp_dim": [[24], [40, 8]]}
    models = {
        "classifier": SwinHfForImageClassification(SwinHfConfig(id2label=labels, weight_init="fan_in", **TINY, **widths)),
        "encoder": SwinHfModel(SwinHfConfig(**TINY)),
        "painter": SwinHfForMaskedImageModeling(SwinHfConfig(version=2, encoder_stride=4, **TINY)),
        "backbone": SwinHfBackbone(SwinHfConfig(version=2, **TINY, **maps)),
        "segmenter": SwinHfForSemanticSegmentation(
            SwinHfUperNetConfig(
                backbone_config=SwinHfConfig(**TINY, **maps), hidden_size=8, use_auxiliary_head=False, num_labels=4
            )
        ),
    }
    for name, model in models.items():
        model.eval().save_pretrained(root / name)
        PROCESSOR.save_pretrained(root / name)
        with torch.no_grad():
            outputs = model(pixel_values)
        expected = outputs.feature_maps[-1] if name == "backbone" else outputs[0]
        torch.save((pixel_values, expected), root / f"{name}.pt")
    (root / "classifier" / "metrics.json").write_text('{"accuracy": 0.75, "by_class": [1, 2]}')
    (root / "classifier" / "optimizer.pt").write_bytes(b"not for the Hub")
    photos = write_image_folder(root / "photos")
    export(root / "classifier", root / "program", ExportSettings(recipe="fp32", data=photos))
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def hub():
    with HubServer({ALICE: User("alice", ("org",)), BOB: User("bob")}) as server:
        yield server
        assert server.leaked_tokens == 0


@pytest.fixture(scope="module")
def pushed(hub, folders, tmp_path_factory) -> dict:
    """Everything on the Hub, pushed by one client, and what it said of it."""
    script = """
from huggingface_hub import HfApi
from swin_hf import SwinHfForImageClassification, SwinHfImageProcessorPil
from edge.export.publishing import publish as publish_program
from swin_hf.publish import main, publish
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
"""
    paths = {name: str(path) for name, path in folders.items()}
    return run_client(hub, tmp_path_factory.mktemp("alice"), script, token=ALICE, folders=paths)


def test_pushes_hold_what_is_needed_and_no_more(hub, pushed, folders):
    models = {repo_id: repository for (kind, repo_id), repository in hub.repositories.items() if kind == "models"}
    custom = models["org/swin-tiny-custom"]
    assert set(custom.commits[pushed["push its processor"]]) == CHECKPOINT | {".gitattributes", "README.md"}
    assert pushed["push both again, unchanged"] == [pushed["push its processor"]] * 2
    assert len(custom.commits) == 4  # the first one, model, processor, branch
    assert set(custom.branches) == {"main", "biased"} and custom.branches["biased"] == pushed["push to a branch"]

    secret = models["org/secret"]
    assert secret.private and not custom.private
    assert set(secret.commits[secret.branches["main"]]) == CHECKPOINT | {".gitattributes", "README.md", "metrics.json"}
    assert pushed["publish again, unchanged"] == secret.branches["main"]
    assert pushed["publish to a new branch"] == secret.branches["second"] == secret.branches["main"]
    card = hub.contents[secret.commits[secret.branches["main"]]["README.md"].oid].decode()
    assert {"| accuracy | 0.75 |", "pipeline_tag: image-classification"} < set(card.splitlines())
    assert 'from_pretrained("org/secret"' in card

    expected = dict.fromkeys(("encoder", "painter", "backbone"), CHECKPOINT)
    expected["segmenter"] = CHECKPOINT | {"segmentation_swin_hf.py"}
    expected["program"] = {"model.pte", "edge.json", "export.json", "preprocessor_config.json", "self_test.bpte"}
    for name, files in expected.items():
        repository = models[f"org/{name}"]
        assert set(repository.commits[repository.branches["main"]]) == files | {".gitattributes", "README.md"}
    assert pushed["dry run"] == 0 and "org/dry" not in models
    assert "rights to create a repository" in pushed["publish where one may not"]


def test_pull_where_swin_hf_is_not_installed(hub, pushed, folders, tmp_path):
    script = """
import os
from transformers import (AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
    AutoModelForMaskedImageModeling, AutoModelForSemanticSegmentation, pipeline)
from huggingface_hub import snapshot_download
pixel_values, expected = torch.load(files["classifier.pt"])
name = "org/swin-tiny-custom"
attempt("not trusted", lambda: AutoModel.from_pretrained(name))
trusted = {"trust_remote_code": True}
def logits(**options):
    return AutoModelForImageClassification.from_pretrained(name, **trusted, **options)(pixel_values).logits
say("AutoConfig", type(AutoConfig.from_pretrained(name, **trusted)).__name__)
model = AutoModel.from_pretrained(name, **trusted)
say("AutoModel", f"{type(model).__module__.split('.')[0]} {type(model).__name__}")
say("its tokens", list(model(pixel_values).last_hidden_state.shape))
say("AutoModelForImageClassification", torch.equal(logits(), expected))
painter = AutoModelForMaskedImageModeling.from_pretrained(name, encoder_stride=4, **trusted)
say("a classifier as AutoModelForMaskedImageModeling", type(painter).__name__)
for saved, auto_class in {"encoder": AutoModel, "painter": AutoModelForMaskedImageModeling}.items():
    inputs, outputs = torch.load(files[f"{saved}.pt"])
    own = auto_class.from_pretrained(f"org/{saved}", **trusted)
    say(f"{auto_class.__name__} of its own", torch.equal(own(inputs)[0], outputs))
processor = AutoImageProcessor.from_pretrained(name, **trusted)
say("AutoImageProcessor", type(processor).__name__)
answers = pipeline("image-classification", model=name, top_k=2, **trusted)(files["photos"] + "/red/3.png")
say("pipeline", [answer["label"] for answer in answers])
say("pinned to a commit", torch.equal(logits(revision=commit), expected))
say("pinned to a tag", torch.equal(logits(revision="v1"), expected))
say("pinned to a branch", torch.allclose(logits(revision="biased"), expected + 1))
attempt("no such revision", lambda: logits(revision="v9"))
pixel_values, expected = torch.load(files["segmenter.pt"])
segmenter = AutoModelForSemanticSegmentation.from_pretrained("org/segmenter", **trusted)
say("AutoModelForSemanticSegmentation", torch.equal(segmenter(pixel_values).logits, expected))
segments = pipeline("image-segmentation", model="org/segmenter", **trusted)(files["photos"] + "/red/3.png")
say("pipeline for segments", sorted(segments[0]))
pixel_values, expected = torch.load(files["backbone.pt"])
backbone = AutoBackbone.from_pretrained("org/backbone", **trusted)
say("AutoBackbone", torch.equal(backbone(pixel_values).feature_maps[-1], expected))
model.save_pretrained("again")
processor.save_pretrained("again")
say("saved again", sorted(os.listdir("again")))
say("loaded again", type(AutoModel.from_pretrained("again", **trusted)).__name__)
say("swin_hf is there", "swin_hf" in sys.modules)
"""
    paths = {name: str(path) for name, path in folders.items()}
    said = run_client(hub, tmp_path, WITHOUT_SWIN_HF + script, files=paths, commit=pushed["push its processor"])
    assert "trust_remote_code=True" in said["not trusted"] and said["not trusted"].startswith("ValueError")
    assert said["AutoConfig"] == "SwinHfConfig" and said["AutoModel"] == "transformers_modules SwinHfModel"
    assert said["its tokens"] == [2, 16, 32]
    assert said["a classifier as AutoModelForMaskedImageModeling"] == "SwinHfForMaskedImageModeling"
    assert said["AutoModel of its own"] is True and said["AutoModelForMaskedImageModeling of its own"] is True
    assert said["AutoImageProcessor"].startswith("SwinHfImageProcessor")
    assert len(said["pipeline"]) == 2 and set(said["pipeline"]) < {"blue", "green", "red"}
    for scenario in ("AutoModelForImageClassification", "AutoModelForSemanticSegmentation", "AutoBackbone"):
        assert said[scenario] is True
    assert all(said[f"pinned to a {name}"] is True for name in ("commit", "tag", "branch"))
    assert "RevisionNotFoundError" in said["no such revision"]
    assert said["pipeline for segments"] == ["label", "mask", "score"]
    assert set(said["saved again"]) == CHECKPOINT and said["loaded again"] == "SwinHfModel"
    assert said["swin_hf is there"] is False


def test_pull_where_swin_hf_is_installed(hub, pushed, folders, tmp_path):
    script = """
import os, swin_hf
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation
pixel_values, expected = torch.load(files["classifier.pt"])
model = AutoModelForImageClassification.from_pretrained("org/swin-tiny-custom")
say("registered", type(model) is swin_hf.SwinHfForImageClassification and torch.equal(model(pixel_values).logits, expected))
say("processor", type(AutoImageProcessor.from_pretrained("org/swin-tiny-custom")).__module__)
larger = AutoModelForImageClassification.from_pretrained("org/swin-tiny-custom", image_size=32)
say("at another size", larger.config.image_size)
from swin_hf.convert import main
say("converted from the Hub", main(["org/swin-tiny-custom", "ours", "--revision", "v1"]))
say("of no such repository", main(["org/nothing", "never"]))
say("timm's, whose names have dots", main(["timm/swin_tiny.ms_in1k", "timms"]))
say("left", sorted(os.listdir()))
"""
    paths = {name: str(path) for name, path in folders.items()}
    weights = safetensors.torch.save(timm_weights(original_weights(Shape())))
    described = json.dumps({"architecture": "swin", "model_args": {"img_size": 32}}).encode()
    hub.add("models", "timm/swin_tiny.ms_in1k", {"model.safetensors": weights, "config.json": described})
    said = run_client(hub, tmp_path, script, files=paths)
    assert said["timm's, whose names have dots"] == 0 and "timms" in said["left"]
    assert said["registered"] is True and said["processor"] == "swin_hf.image_processing_swin_hf"
    assert said["at another size"] == 32
    assert (said["converted from the Hub"], said["of no such repository"]) == (0, 1) and "never" not in said["left"]
    assert not list(tmp_path.glob("modules/transformers_modules/*/"))  # no code of the repository was fetched to be run


def test_private_and_gated_repositories_follow_the_token(hub, pushed, tmp_path):
    hub.add("models", "org/gated", {"config.json": b'{"model_type": "swin_hf"}'})
    hub.repositories["models", "org/gated"].gated_for = {"alice"}
    script = """
from swin_hf import SwinHfConfig, SwinHfForImageClassification
def pull(name, kind, number=iter(range(99))):
    return kind.from_pretrained(name, cache_dir=f"cache{next(number)}", token=tokens["now"])
for who, tokens["now"] in list(tokens.items()):
    attempt(f"private, {who}", lambda: type(pull("org/secret", SwinHfForImageClassification)).__name__)
    attempt(f"gated, {who}", lambda: type(pull("org/gated", SwinHfConfig)).__name__)
"""
    tokens = {"no token": False, "unknown token": STRANGER, "another's token": BOB, "right token": ALICE}
    said = run_client(hub, tmp_path, script, tokens=tokens)
    assert said["private, right token"] == "SwinHfForImageClassification" and said["gated, right token"] == "SwinHfConfig"
    for who in ("no token", "unknown token", "another's token"):
        assert said[f"private, {who}"].startswith("OSError")
        assert said[f"gated, {who}"].startswith("OSError")
    assert (
        "RepositoryNotFoundError" in said["private, no token"]
        and "RepositoryNotFoundError" in said["private, another's token"]
    )
    assert "GatedRepoError" in said["gated, another's token"]


def test_broken_downloads_are_resumed_or_refused(hub, pushed, tmp_path):
    large = np.random.default_rng(0).bytes(24 * 2**20)
    hub.add("models", "org/large", {"model.safetensors": large})
    stores = {name: hub.repositories["models", f"org/{name}"] for name in ("large", "program", "swin-tiny-custom")}
    stored = {name: one.commits[one.branches["main"]] for name, one in stores.items()}
    program = stored["program"]["model.pte"].sha256
    hub.faults = [
        Fault(stored["large"]["model.safetensors"].sha256, "drop", 15 * 2**20),
        Fault(stored["swin-tiny-custom"]["model.safetensors"].sha256, "cut", 1000),
        Fault(program, "flip", stored["program"]["model.pte"].size // 2),
    ]
    script = """
import hashlib
from huggingface_hub import hf_hub_download, snapshot_download
from swin_hf import SwinHfForImageClassification
path = hf_hub_download("org/large", "model.safetensors")
say("dropped and resumed", hashlib.sha256(open(path, "rb").read()).hexdigest())
attempt("cut short", lambda: SwinHfForImageClassification.from_pretrained("org/swin-tiny-custom"))
say("and tried again", type(SwinHfForImageClassification.from_pretrained("org/swin-tiny-custom")).__name__)
from edge.device.runner import Runner
folder = snapshot_download("org/program")
attempt("changed on the way", lambda: Runner(folder))
folder = snapshot_download("org/program", force_download=True)
say("and fetched again", list(Runner(folder).logits(torch.rand(1, 3, 16, 16).numpy()).shape))
"""
    requests = len(hub.requests)
    said = run_client(hub, tmp_path, script)
    assert said["dropped and resumed"] == stored["large"]["model.safetensors"].sha256
    assert [one for one in hub.requests[requests:] if "bytes=15728640-" in one or "bytes=10485760-" in one]
    assert said["cut short"].startswith("OSError") and said["and tried again"] == "SwinHfForImageClassification"
    assert said["changed on the way"].startswith("ArtefactError") and "sha256 differs" in said["changed on the way"]
    assert said["and fetched again"] == [3] and not hub.faults


def test_data_sets_stream(hub, tmp_path):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)) for _ in range(6)]
    rows = {"image": pictures, "label": [0, 1, 0, 1, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    parquet = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(parquet)
    hub.add("datasets", "org/animals", {"data/train-00000-of-00001.parquet": parquet.getvalue()})
    files = {}
    for number, picture in enumerate(pictures):
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        files[f"train/{('cat', 'dog')[number % 2]}/{number}.png"] = stream.getvalue()
    hub.add("datasets", "org/folder", files)
    script = """
from datasets import load_dataset
for name in ("org/animals", "org/folder"):
    stream = load_dataset(name, split="train", streaming=True)
    rows = list(stream)
    say(f"{name}, streamed", [len(rows), rows[0]["image"].size == (7, 9), sorted(row["label"] for row in rows)])
    say(f"{name}, names", stream.features["label"].names)
say("loaded", len(load_dataset("org/animals", split="train")))
attempt("no such data set", lambda: load_dataset("org/nothing"))
"""
    said = run_client(hub, tmp_path, script)
    for name in ("org/animals", "org/folder"):
        assert said[f"{name}, streamed"] == [6, True, [0, 0, 0, 1, 1, 1]]
        assert said[f"{name}, names"] == ["cat", "dog"]
    assert said["loaded"] == 6 and "org/nothing" in said["no such data set"]
