"""Tiny seeded models and images for all tests; no network, and no GPU but in `*_on_gpu.py`."""

import io
import os
import shutil
import signal

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

from distill.training.settings import parse_finetune_settings
from swin_hf import SwinHfConfig, SwinHfForImageClassification, SwinHfImageProcessorPil

TINY = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
# Changes of `TINY` for each kind of model: TinyViT, and a mix that no other implementation has.
TINY_VIT = {
    **{"image_size": 32, "patch_size": 4, "stem": "conv", "downsample": "conv", "local_conv": 3, "shift_windows": False},
    **{"padding": "tiny_vit", "norm_after_pooling": True, "stage_blocks": ["conv", "window"]},
}
MIXED = {"version": 2, "stem": "conv", "stage_blocks": ["window", "conv"], "local_conv": 5, "stage_windows": [3, 4]}
KINDS = {"V1": {}, "V2": {"version": 2}, "TinyViT": TINY_VIT, "mixed": MIXED}
PROCESSOR = SwinHfImageProcessorPil(size={"height": 16, "width": 16})
PLAIN_PROCESSOR = SwinHfImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
HELD_OUT = ["--validation_share", "0.2", "--test_share", "0.2"]
STILL = ["--randaugment_ops", "0", "--color_jitter", "0", "--random_erasing", "0", "--mixup_alpha", "0", "--cutmix_alpha", "0"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest file first, so that the other processes do not wait for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_run.py")


def settings_for(folder: Path, *more: str):
    """Settings for training a tiny model in seconds."""
    config = str(TINY | {"weight_init": "fan_in", "drop_path_rate": 0.1})
    arguments = ["--image_size", "16", "--model_args", config, "--output_dir", str(folder / "out"), "--use_cpu", "true"]
    arguments += ["--num_pictures", "2", "--num_train_epochs", "2", "--per_device_train_batch_size", "8", *HELD_OUT]
    return parse_finetune_settings(arguments + list(more))


class StopAfter(TrainerCallback):
    """Sends SIGTERM to this process, so that training stops after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def make_config():
    def make(**changes) -> SwinHfConfig:
        return SwinHfConfig(**(TINY | {"num_labels": 3, "weight_init": "fan_in"} | changes))

    return make


@pytest.fixture
def make_model(make_config):
    """A tiny classifier in eval mode with random values in every parameter, biases included, so that each one matters."""

    def make(**changes) -> SwinHfForImageClassification:
        model = SwinHfForImageClassification(make_config(**changes))
        for name, parameter in model.named_parameters():
            if "bias" in name or "position" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
                torch.nn.init.normal_(norm.running_mean, std=0.2)
                torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
        return model.eval()

    return make


@pytest.fixture
def image_folder(tmp_path) -> Path:
    return write_image_folder(tmp_path / "photos")


def write_image_folder(root: Path) -> Path:
    """Three classes of 16 small RGB images that differ in colour, one folder per class."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(16):
            blots = rng.integers(0, 120, (4, 5, 3))  # enlarged, since real images are not pure noise
            blots[..., 2 - channel] += 120
            Image.fromarray(blots.astype(np.uint8)).resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return root


@pytest.fixture
def mask_folder(tmp_path) -> Path:
    """Eight images with masks of two classes, the left and the right half of each image."""
    rng, folder = np.random.default_rng(0), tmp_path / "scenes"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(8):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / "images" / f"{number}.jpg")
        mask = np.zeros((20, 24), np.uint8)
        mask[:, 12:] = 1
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("left\nright\n")
    return folder


@pytest.fixture
def checkpoint(make_model, tmp_path) -> Path:
    """A saved tiny classifier for the classes of `image_folder`, with its processor; of few blocks, as many tests lower it."""
    folder = tmp_path / "checkpoint"
    make_model(id2label={0: "blue", 1: "green", 2: "red"}, depths=[1, 1]).save_pretrained(folder)
    PLAIN_PROCESSOR.save_pretrained(folder)
    return folder


def encoded(level: int) -> dict[str, bytes | None]:
    content = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(content, format="PNG")
    return {"bytes": content.getvalue(), "path": None}


@pytest.fixture
def parquet_folder(tmp_path, monkeypatch):
    """24 training images in four shards, each image with its own grey level, and 9 for validation."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # after each pass
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "mid", "light"])})
    folder = tmp_path / "parquet"
    folder.mkdir()

    def write(name: str, levels: range) -> None:
        rows = {"image": [encoded(level) for level in levels], "label": [level % 3 for level in levels]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / name))

    for shard in range(4):
        write(f"train-{shard:05}-of-00004.parquet", range(6 * shard, 6 * shard + 6))
    write("validation-00000-of-00001.parquet", range(100, 109))
    return folder


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exported") / "edge"


@pytest.fixture
def artefact(exported_once, checkpoint, image_folder, tmp_path) -> Path:
    """An fp32 export of `checkpoint`, in the same folder; made once and copied, since it is the same in every test."""
    from edge.export.export import ExportSettings, export

    folder = tmp_path / "edge"
    if not exported_once.exists():
        export(checkpoint, folder, ExportSettings(recipe="fp32", dataset=image_folder))
        shutil.copytree(folder, exported_once)
        return folder
    shutil.copytree(exported_once, folder)
    return folder
