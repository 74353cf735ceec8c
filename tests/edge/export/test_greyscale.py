"""Greyscale models on the whole road: conversion, fine-tuning, export, runner, and the same pixels everywhere."""

import json

import numpy as np
import pytest
import torch
from conftest import settings_for
from original_swin import Shape, original_weights, timm_weights
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessorPil, pipeline

from distill.compress.teachers import TeacherError, load_classifier
from distill.data.normalisation import Normalisation
from distill.training.finetune import finetune
from distill.training.models import ModelError
from edge.device.artefact import InputContract
from edge.device.image import load_image
from edge.device.runner import Runner
from edge.export.checkpoint import CheckpointError, input_contract, load_checkpoint
from edge.export.export import ExportSettings, export
from swin_hf import SwinHfForImageClassification, SwinHfImageProcessorPil
from swin_hf.convert import ConversionError, convert, load
from swin_hf.weight_config import SourceSizes

GREY = {"num_channels": 1, "size": {"height": 16, "width": 16}}
NAMES = {0: "blue", 1: "green", 2: "red"}


@pytest.fixture
def grey_checkpoint(make_model, tmp_path):
    folder = tmp_path / "grey"
    make_model(num_channels=1, id2label=NAMES).save_pretrained(folder)
    SwinHfImageProcessorPil(**GREY, image_mean=[0.4], image_std=[0.3]).save_pretrained(folder)
    return folder


def images_of_every_mode(folder) -> list:
    """Files of images that have to be converted to greyscale, or are it."""
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    clear = colours.copy()
    clear.putalpha(Image.linear_gradient("L").resize(colours.size))
    deep = Image.fromarray((np.arange(600, dtype=np.uint32) * 109).astype(np.uint16).reshape(20, 30))
    modes = {"rgb": colours, "grey": colours.convert("L"), "palette": colours.quantize(16), "clear": clear, "deep": deep}
    modes |= {"bits": colours.convert("1"), "la": clear.convert("LA")}
    for name, image in modes.items():
        image.save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in modes]


@pytest.mark.parametrize("crop_pct", [None, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_device_and_processor_agree_on_grey_pixels(tmp_path, crop_pct, dtype):
    layout = "NHWC" if dtype == "uint8" else "NCHW"
    contract = InputContract(
        height=16, width=16, resample=3, crop_pct=crop_pct, channels=1, colour="L", dtype=dtype, layout=layout
    )
    processor = SwinHfImageProcessorPil(**GREY, crop_pct=crop_pct)
    for path in images_of_every_mode(tmp_path):
        expected = processor(Image.open(path), do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        pixels = contract.pixel_values(load_image(path))
        assert pixels.shape == contract.shape()
        levels = pixels.transpose(0, 3, 1, 2) if dtype == "uint8" else np.round(pixels * 255)
        np.testing.assert_array_equal(levels, expected.astype(levels.dtype))


def test_grey_is_that_of_pillow():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    processor = SwinHfImageProcessorPil(**GREY, image_mean=[0.4], image_std=[0.3])
    expected = (torch.from_numpy(np.asarray(image.convert("L"))) / 255 - 0.4) / 0.3
    for one in (image, image.convert("L"), np.asarray(image.convert("L"))[None]):
        torch.testing.assert_close(processor(one, return_tensors="pt")["pixel_values"][0, 0], expected)
    pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(Normalisation(processor)(pixels)[0, 0], expected, atol=0.51 / 255 / 0.3, rtol=0)  # not rounded
    with pytest.raises(ValueError, match="must be PIL images, or arrays of one channel, for num_channels 1, got ndarray"):
        processor(np.asarray(image))
    assert SwinHfImageProcessorPil(**GREY).image_mean == [0.449]  # the mean of ImageNet's
    with pytest.raises(ValueError, match=r"num_channels must be 3 \(RGB\) or 1 \(greyscale\), got 4"):
        SwinHfImageProcessorPil(num_channels=4)


def test_an_exported_grey_model_follows_it(grey_checkpoint, image_folder, tmp_path):
    export(grey_checkpoint, tmp_path / "edge", ExportSettings(recipe="fp32", dataset=image_folder, self_test=False))
    about = json.loads((tmp_path / "edge" / "edge.json").read_text())["input"]
    assert (about["channels"], about["colour"]) == (1, "L")
    runner, classify = Runner(tmp_path / "edge"), pipeline("image-classification", str(grey_checkpoint), device="cpu")
    for path in sorted(image_folder.rglob("1*.png")):
        expected = {one["label"]: one["score"] for one in classify(str(path))}
        for guess in runner.classify(path):
            assert guess.probability == pytest.approx(expected[guess.label], abs=1e-4)
    pixels = runner.pixel_values(path)
    stock = AutoImageProcessor.from_pretrained(tmp_path / "edge", backend="pil")
    np.testing.assert_array_equal(stock(Image.open(path).convert("L"), return_tensors="np")["pixel_values"], pixels)


def test_fine_tuning_of_a_grey_model_ends_with_one(grey_checkpoint, image_folder, tmp_path):
    more = ["--dataset", str(image_folder), "--model", str(grey_checkpoint), "--model_args", "{}", "--teacher"]
    figures = finetune(settings_for(tmp_path, *more, str(grey_checkpoint)))
    assert "test_accuracy" in figures
    model, processor = load_checkpoint(tmp_path / "out")
    assert (model.config.num_channels, processor.num_channels, list(processor.image_mean)) == (1, 1, [0.4])


def test_a_preset_for_grey_images_is_trained(image_folder, tmp_path):
    tiny = "{image_size: 16, patch_size: 2, embed_dim: 16, depths: [1], num_heads: [2], window_size: 4, num_channels: 1}"
    finetune(settings_for(tmp_path, "--dataset", str(image_folder), "--model_args", tiny))
    processor = SwinHfImageProcessorPil.from_pretrained(tmp_path / "out")
    assert (processor.num_channels, *processor.image_mean, *processor.image_std) == (1, 0.449, 0.226)


def test_a_grey_teacher_sees_grey_pixels(grey_checkpoint):
    teacher = load_classifier(grey_checkpoint, list(NAMES.values()))
    grey = torch.rand(2, 1, 16, 16)
    model = SwinHfForImageClassification.from_pretrained(grey_checkpoint).eval()
    torch.testing.assert_close(teacher(grey.expand(-1, 3, -1, -1)), model((grey - 0.4) / 0.3).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mean", [[0.3], [0.2, 0.3, 0.4]])
def test_conversion_writes_a_processor_of_one_channel(tmp_path, mean):
    weights = original_weights(Shape())
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    (tmp_path / "timm").mkdir()
    torch.save(timm_weights(weights), tmp_path / "timm" / "pytorch_model.bin")
    about = {"architecture": "swin_tiny_patch4_window7_224", "pretrained_cfg": {"input_size": [1, 32, 32], "mean": mean}}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(about))
    convert(tmp_path / "timm", tmp_path / "ours")
    model, processor = load_checkpoint(tmp_path / "ours")
    assert (model.config.num_channels, processor.num_channels) == (1, 1)
    assert processor.image_mean == pytest.approx([0.3]) and len(processor.image_std) == 1
    report = convert(tmp_path / "ours", tmp_path / "stock", to="transformers")
    assert any("give it greyscale" in note for note in report.notes)
    image = Image.linear_gradient("L")
    stock = ViTImageProcessorPil.from_pretrained(tmp_path / "stock")
    torch.testing.assert_close(
        stock(image, return_tensors="pt")["pixel_values"], processor(image, return_tensors="pt")["pixel_values"]
    )
    assert load(tmp_path / "stock")[1].num_channels == 1
    convert(tmp_path / "ours", tmp_path / "back", to="timm")
    assert len(json.loads((tmp_path / "back" / "config.json").read_text())["pretrained_cfg"]["mean"]) == 1


@pytest.mark.parametrize("num_channels", [2, 4, 5])
def test_other_numbers_of_channels_are_refused_at_the_start(make_model, image_folder, tmp_path, num_channels):
    folder = tmp_path / "checkpoint"
    make_model(num_channels=num_channels, id2label=NAMES).save_pretrained(folder)
    SwinHfImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    expected = rf"num_channels must be 3 \(RGB\) or 1 \(greyscale\).*, got {num_channels}"
    with pytest.raises(ConversionError, match=expected):
        convert(folder, tmp_path / "out")
    model, processor = load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=expected):
        input_contract(model.config, processor)
    with pytest.raises(TeacherError, match=f"must take the images that its processor makes.* got {num_channels} and 3"):
        load_classifier(folder, list(NAMES.values()))
    settings = settings_for(tmp_path, "--dataset", str(image_folder), "--model", str(folder), "--model_args", "{}")
    with pytest.raises(ModelError, match=expected):
        finetune(settings)
    weights = original_weights(Shape())
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"][:, :1].repeat(1, num_channels, 1, 1)
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(ConversionError, match=expected):
        load(tmp_path / "model.pth", source_sizes=SourceSizes(image_size=32))


def test_a_processor_for_other_channels_than_the_models_is_refused(grey_checkpoint, image_folder, tmp_path):
    SwinHfImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(grey_checkpoint)
    settings = settings_for(tmp_path, "--dataset", str(image_folder), "--model", str(grey_checkpoint), "--model_args", "{}")
    with pytest.raises(ModelError, match="image processor"):
        finetune(settings)
    with pytest.raises(TeacherError, match="got 1 and 3"):
        load_classifier(grey_checkpoint, list(NAMES.values()))
    with pytest.raises(CheckpointError, match=r"makes finite numbers \(B, 1, H, W\), got numbers \(1, 3, 16, 16\)"):
        input_contract(
            SwinHfForImageClassification.from_pretrained(grey_checkpoint).config, load_checkpoint(grey_checkpoint)[1]
        )
