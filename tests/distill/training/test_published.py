"""Checkpoints of timm and of authors' code as the start of a training and as teachers."""

import json

import pytest
import torch
from conftest import HELD_OUT, STILL
from plain_tiny_vit import PlainTinyViT, TinyShape, authors_weights, tiny_vit_weights
from safetensors.torch import save_file

from distill.compress.teachers import TeacherError, load_classifier
from distill.published import loadable
from distill.training.finetune import finetune
from distill.training.models import ModelError
from distill.training.settings import parse_finetune_settings
from swin_hf import SwinHfForImageClassification

SHAPE = TinyShape(num_classes=3)
CLASSES = ["blue", "green", "red"]


@pytest.fixture
def timm_folder(tmp_path):
    weights = tiny_vit_weights(SHAPE)
    folder = tmp_path / "timm"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    described = {
        "architecture": "tiny_vit_5m_224",
        "pretrained_cfg": {"input_size": [3, 32, 32], "crop_mode": "squash", "crop_pct": 1.0},
    }
    (folder / "config.json").write_text(json.dumps(described | {"label_names": ["green", "blue", "red"]}))
    torch.save({"model": authors_weights(weights)}, tmp_path / "tiny.pth")
    return folder


@pytest.mark.parametrize("source", ["timm", "tiny.pth"])
def test_a_training_starts_from_them_and_is_ours(timm_folder, image_folder, tmp_path, source):
    arguments = ["--model", str(tmp_path / source), "--dataset", str(image_folder), "--image_size", "32", *STILL, *HELD_OUT]
    arguments += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--num_pictures", "0"]
    arguments += ["--num_train_epochs", "1", "--per_device_train_batch_size", "8", "--ema_decay", "0.5"]
    figures = finetune(parse_finetune_settings(arguments))
    assert 0 <= figures["test_accuracy"] <= 1
    trained = SwinHfForImageClassification.from_pretrained(tmp_path / "out")
    assert trained.config.stage_dims == list(SHAPE.dims) and sorted(trained.config.id2label.values()) == CLASSES
    written = "".join((tmp_path / "out" / name).read_text() for name in ("config.json", "README.md", "metrics.json"))
    assert "swin_hf-" not in written and str(tmp_path) not in written


def test_teachers_come_with_their_classes_and_their_normalisation(timm_folder):
    teacher, pixels = load_classifier(timm_folder, CLASSES), torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = PlainTinyViT(tiny_weights_of(timm_folder), SHAPE).logits((pixels - mean) / std)[:, [1, 0, 2]]
    torch.testing.assert_close(teacher(pixels), expected, atol=1e-5, rtol=1e-5)


def tiny_weights_of(folder) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_what_cannot_be_read_is_named(timm_folder, image_folder, tmp_path):
    (timm_folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(TeacherError, match="must be a checkpoint folder or Hub id of an image classifier: .*safetensors"):
        load_classifier(timm_folder, CLASSES)
    arguments = ["--model", str(timm_folder), "--dataset", str(image_folder), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ModelError, match="--model .*timm must be a preset .*safetensors"):
        finetune(parse_finetune_settings([*arguments, "--image_size", "32", "--use_cpu", "true"]))
    assert not (tmp_path / "out").exists()


def test_other_names_are_left_to_transformers(tmp_path, checkpoint):
    (tmp_path / "resnet").mkdir()
    (tmp_path / "resnet" / "config.json").write_text(json.dumps({"architecture": "resnet50", "pretrained_cfg": {}}))
    for name in (str(checkpoint), str(tmp_path / "resnet"), "nowhere/at-all"):
        assert loadable(name) == name
