"""Push and pull through unmodified clients, in processes of their own with fresh caches, against a Hub in this one.

It shows that our side of the conversation works; it is no proof of the rules of huggingface.co.
`python -m pytest tests/swin_hf/test_hub.py -s` prints every scenario with its result.
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
from hub_repositories import Fault, User
from hub_server import HubServer
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
    *("alignment_swin_hf.py", "auto_map_swin_hf.py"),
    *("configuration_swin_hf.py", "convolutions_swin_hf.py", "foreign_swin_hf.py", "layers_swin_hf.py"),
    *("losses_swin_hf.py", "modeling_swin_hf.py", "outputs_swin_hf.py", "plain_layers_swin_hf.py", "resizing_swin_hf.py"),
    *("stock_swin_hf.py", "tokens_swin_hf.py", "training_layers_swin_hf.py", "windows.py"),
}
CHECKPOINT = {"config.json", "model.safetensors", "preprocessor_config.json", "image_processing_swin_hf.py", *MODEL_CODE}
CLIENTS = Path(__file__).parents[1] / "support" / "hub_clients"


def run_client(hub: HubServer, home: Path, client: str, token: str | None = None, **given) -> dict:
    """What a client says of its scenarios: a new Python process with an empty cache and no terminal.

    client: name of the script in tests/support/hub_clients. given: what it finds in `GIVEN`.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, str(CLIENTS / f"{client}.py"), json.dumps(given)]
    done = subprocess.run(command, env=environment, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    said = {}
    for line in done.stdout.splitlines():
        if '{"' in line:  # behind a question that nobody answered
            said |= json.loads(line[line.index('{"') :])
    assert done.returncode == 0, done.stderr[-3000:]
    assert not any(token in done.stdout + done.stderr for token in (ALICE, BOB, STRANGER)), "a token was printed"
    print("", *(f"{scenario}: {str(result).splitlines()[0][:150]}" for scenario, result in said.items()), sep="\n    ")
    return said


def fetched_code(home: Path) -> list[str]:
    """Code of repositories that a client fetched to run it."""
    modules = (home / "modules" / "transformers_modules").rglob("*.py")
    return sorted(path.as_posix() for path in modules if path.name != "__init__.py")


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
    export(root / "classifier", root / "program", ExportSettings(recipe="fp32", dataset=photos))
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def hub():
    with HubServer({ALICE: User("alice", ("org",)), BOB: User("bob")}) as server:
        yield server
        assert server.leaked_tokens == 0


@pytest.fixture(scope="module")
def pushed(hub, folders, tmp_path_factory) -> dict:
    """Everything on the Hub, pushed by one client, and what it said of it."""
    paths = {name: str(path) for name, path in folders.items()}
    return run_client(hub, tmp_path_factory.mktemp("alice"), "push", token=ALICE, folders=paths)


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
    assert {"| accuracy | 75.0 % |", "pipeline_tag: image-classification"} < set(card.splitlines())
    assert 'from_pretrained("org/secret"' in card

    expected = dict.fromkeys(("encoder", "painter", "backbone"), CHECKPOINT)
    expected["segmenter"] = CHECKPOINT | {"segmentation_swin_hf.py", "segmentation_heads_swin_hf.py"}
    expected["program"] = {"model.pte", "edge.json", "export.json", "preprocessor_config.json", "self_test.bpte"}
    for name, files in expected.items():
        repository = models[f"org/{name}"]
        assert set(repository.commits[repository.branches["main"]]) == files | {".gitattributes", "README.md"}
    assert pushed["dry run"] == 0 and "org/dry" not in models
    assert "rights to create a repository" in pushed["publish where one may not"]


def test_pull_where_swin_hf_is_not_installed(hub, pushed, folders, tmp_path):
    paths = {name: str(path) for name, path in folders.items()}
    said = run_client(hub, tmp_path, "pull_without_swin_hf", folders=paths, commit=pushed["push its processor"])
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
    assert any(name.endswith("/modeling_swin_hf.py") for name in fetched_code(tmp_path))


def test_pull_where_swin_hf_is_installed(hub, pushed, folders, tmp_path):
    paths = {name: str(path) for name, path in folders.items()}
    weights = safetensors.torch.save(timm_weights(original_weights(Shape())))
    described = json.dumps({"architecture": "swin", "model_args": {"img_size": 32}}).encode()
    hub.add("models", "timm/swin_tiny.ms_in1k", {"model.safetensors": weights, "config.json": described})
    said = run_client(hub, tmp_path, "pull_with_swin_hf", folders=paths)
    assert said["timm's, whose names have dots"] == 0 and "timms" in said["left"]
    assert said["registered"] is True and said["processor"] == "swin_hf.image_processing_swin_hf"
    assert said["at another size"] == 32
    assert (said["converted from the Hub"], said["of no such repository"]) == (0, 1) and "never" not in said["left"]
    assert not fetched_code(tmp_path)


def test_private_and_gated_repositories_follow_the_token(hub, pushed, tmp_path):
    hub.add("models", "org/gated", {"config.json": b'{"model_type": "swin_hf"}'})
    hub.repositories["models", "org/gated"].gated_for = {"alice"}
    tokens = {"no token": False, "unknown token": STRANGER, "another's token": BOB, "right token": ALICE}
    said = run_client(hub, tmp_path, "pull_with_tokens", tokens=tokens)
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
    requests = len(hub.requests)
    said = run_client(hub, tmp_path, "pull_through_faults")
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
    said = run_client(hub, tmp_path, "stream_data_sets")
    for name in ("org/animals", "org/folder"):
        assert said[f"{name}, streamed"] == [6, True, [0, 0, 0, 1, 1, 1]]
        assert said[f"{name}, names"] == ["cat", "dog"]
    assert said["loaded"] == 6 and "org/nothing" in said["no such data set"]
