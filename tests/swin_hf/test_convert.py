"""Conversion as a whole: image processors, files that are not what they should be, the command line."""

import collections
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from original_swin import Shape, original_weights, timm_weights
from PIL import Image
from safetensors.torch import save_file
from stock_swin import SHAPES, SMALL, difference, make_stock
from transformers import (
    AutoImageProcessor,
    SegformerImageProcessorPil,
    SwinConfig,
    SwinForImageClassification,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTImageProcessorPil,
)

from swin_hf import (
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfImageProcessorPil,
)
from swin_hf.convert import as_flags, convert, load, main, timm_processor_settings
from swin_hf.output_folders import OutputError
from swin_hf.weight_config import SourceSizes
from swin_hf.weight_files import ConversionError, WeightFiles, read_weights
from swin_hf.weight_import import import_model


def test_processors_become_ours_and_stock_again(tmp_path):
    stock, _ = make_stock("V1 classifier")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    for number, settings in enumerate(
        (
            {"size": {"height": 64, "width": 64}, "resample": 3, "image_mean": [0.4] * 3},
            {"size": {"shortest_edge": 73}, "do_center_crop": True, "crop_size": 64},
            {"size": {"height": 72, "width": 72}, "do_center_crop": True, "crop_size": 64},
            {"size": {"shortest_edge": 64}},
            {"size": {"height": 72, "width": 80}},
        )
    ):
        folder = tmp_path / str(number)
        stock.save_pretrained(folder / "stock")
        theirs = ViTImageProcessorPil(**settings)
        theirs.save_pretrained(folder / "stock")
        _, ours, _ = load(folder / "stock")
        convert(folder / "stock", folder / "back", to="transformers")
        back = ViTImageProcessorPil.from_pretrained(folder / "back")
        expected, *actual = (one(image, return_tensors="pt")["pixel_values"] for one in (theirs, ours, back))
        assert all(torch.equal(expected, pixels) for pixels in actual)
    with pytest.raises(ConversionError, match="image_size cannot be applied to an image processor with size"):
        load(tmp_path / "2" / "stock", image_size=96)
    _, larger, _ = load(tmp_path / "1" / "stock", image_size=96)
    assert (larger.size.height, larger.crop_pct) == (96, 64 / 73)


def test_processors_of_segmenters_keep_their_maps(tmp_path):
    config = SwinConfig(**SMALL, out_features=["stage1", "stage2", "stage3"])
    UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, hidden_size=16)).save_pretrained(tmp_path / "stock")
    SegformerImageProcessorPil(do_reduce_labels=True).save_pretrained(tmp_path / "stock")
    saved = json.loads((tmp_path / "stock" / "preprocessor_config.json").read_text())
    saved["reduce_labels"] = saved.pop("do_reduce_labels")  # as older versions called it
    (tmp_path / "stock" / "preprocessor_config.json").write_text(json.dumps(saved))
    convert(tmp_path / "stock", tmp_path / "ours")
    assert SwinHfImageProcessorPil.from_pretrained(tmp_path / "ours").do_reduce_labels is True
    convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    assert SegformerImageProcessorPil.from_pretrained(tmp_path / "back").do_reduce_labels is True


def test_processors_of_timm_are_those_of_its_evaluation():
    assert timm_processor_settings("m", {"crop_pct": 0.9, "interpolation": "bilinear"}, (32, 32)) == {
        "resample": 2,
        "crop_pct": 0.9,
    }
    assert timm_processor_settings("m", {"mean": [0.5] * 3}, (32, 32)) == {
        "image_mean": [0.5] * 3,
        "resample": 3,
        "crop_pct": 0.875,
    }
    assert timm_processor_settings("m", {"crop_pct": 1.0, "crop_mode": "squash"}, (32, 32)) == {"resample": 3}
    squashed = timm_processor_settings("m", {"crop_pct": 0.8, "crop_mode": "squash"}, (32, 40))
    assert squashed["size"] == {"height": 40, "width": 50} and squashed["crop_size"] == {"height": 32, "width": 40}
    with pytest.raises(ConversionError, match="must have crop_mode center or squash .* got border"):
        timm_processor_settings("m", {"crop_mode": "border"}, (32, 32))


@pytest.mark.parametrize(("image_size", "crop_pct"), [(32, 0.875), (384, None)])
def test_an_assumed_processor_is_named(tmp_path, image_size, crop_pct):
    torch.save(original_weights(Shape(depths=(1,), num_heads=(2,), window_size=2)), tmp_path / "model.pth")
    _, processor, report = load(tmp_path / "model.pth", source_sizes=SourceSizes(image_size=image_size))
    assert processor.crop_pct == crop_pct and "the checkpoint has no image processor" in report.notes[0]
    stock, _ = make_stock("V1 classifier")
    stock.save_pretrained(tmp_path / "stock")
    _, processor, report = load(tmp_path / "stock")
    assert processor.crop_pct is None and "the checkpoint has no image processor" in report.notes[0]


def test_nothing_in_a_pickle_is_run(tmp_path):
    config = types.ModuleType("configuration_of_a_script")
    config.Settings = type("Settings", (dict,), {"__module__": config.__name__})
    sys.modules[config.__name__] = config
    beside = {"config": config.Settings(lr=1), "accuracy": np.float64(81.2), "scaler": collections.OrderedDict(scale=1)}
    weights = {"patch_embed.proj.weight": torch.ones(2)}
    torch.save({"model": weights} | beside, tmp_path / "script.pth")
    torch.save({"state_dict": weights}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    del sys.modules[config.__name__]
    for name in ("script.pth", "legacy.pth"):
        assert torch.equal(read_weights(tmp_path / name)["patch_embed.proj.weight"], torch.ones(2))

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"model": weights, "config": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(ConversionError, match="it would call .*mkdir"):
        read_weights(tmp_path / "harmful.pth")
    assert not (tmp_path / "harm").exists()


def test_damaged_files_are_refused_in_our_own_words(tmp_path):
    torch.save({"a": torch.arange(9.0)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    whole, rng = (tmp_path / "legacy.pth").read_bytes(), np.random.default_rng(0)
    damaged = {"pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "page": b"<html></html>"}
    damaged |= {f"cut {end}": whole[:end] for end in range(0, len(whole), 40)}
    for number in range(40):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 0xFF
        damaged[f"flipped {number}"] = bytes(flipped)
    for name, content in damaged.items():
        (tmp_path / "file.pth").write_bytes(content)
        try:
            read_weights(tmp_path / "file.pth")
        except ConversionError as error:
            assert "weights_only" not in str(error)
            assert name != "pointer" or "git lfs pull" in str(error)
        else:
            assert name.startswith("flipped")  # in a number, which nobody can tell


def test_wrong_sources_are_explained_and_leave_nothing(tmp_path, checkpoint, capsys):
    whole = original_weights(SHAPES["V2"])
    cases = {
        "cut": (b"PK\x03\x04 half a file", "in the format of safetensors or PyTorch"),
        "empty": (b"", "in the format of safetensors or PyTorch"),
        "no weights": ({"epoch": 3}, "must hold a dictionary of weights"),
        "another model": ({"conv1.weight": torch.ones(3)}, "with patch_embed.proj.weight; got weights like conv1.weight"),
        "unexpected": (whole | {"norm9.weight": torch.ones(1)}, "does not know: norm9.weight; allow_unexpected drops them"),
        "lacking": ({k: v for k, v in whole.items() if k != "layers.1.blocks.0.mlp.fc2.bias"}, "lacks weights of SwinHf"),
        "another shape": (
            whole | {"norm.weight": torch.ones(7)},
            r"norm.weight must have shape \(32,\) as swin.layernorm.weight, got \(7,\)",
        ),
        "no window": (timm_weights(whole), "does not contain its window size; give source_sizes.window_size, 8"),
        "no size": (
            timm_weights(original_weights(SHAPES["V1"])),
            "does not contain its image size; give source_sizes.image_size, 224",
        ),
        "windows by stage": (
            whole_with_other_windows(),
            "stage 1, block 0 must have windows of 8 x 8 like the rest of the model, got a table of 9",
        ),
    }
    for name, (content, message) in cases.items():
        file = tmp_path / f"{name}.pth"
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        with pytest.raises(ConversionError, match=message) as caught:
            convert(file, tmp_path / "out")
        assert main([str(file), str(tmp_path / "out")]) == 1
        assert as_flags(str(caught.value)) in capsys.readouterr().err
    with pytest.raises(OutputError, match="destination must be another folder than source"):
        convert(checkpoint, checkpoint)
    with pytest.raises(ConversionError, match="must be a Swin of transformers"):
        other = tmp_path / "resnet"
        other.mkdir()
        save_file({"a": torch.ones(1)}, other / "model.safetensors")
        (other / "config.json").write_text(json.dumps({"model_type": "resnet", "architectures": ["ResNetModel"]}))
        convert(other, tmp_path / "out")
    (other / "config.json").write_text(json.dumps({"model_type": "swin", "architectures": ["SwinModel"], "patch_size": 0}))
    with pytest.raises(ConversionError, match="has an impossible config: .*patch_size must be positive"):
        convert(other, tmp_path / "out")
    with pytest.raises(ConversionError, match="there is none"):
        convert(tmp_path / "nowhere.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    _, report = import_model(WeightFiles(name="x", weights=whole | {"norm9.weight": torch.ones(1)}), allow_unexpected=True)
    assert report.dropped["norm9.weight"] == "unexpected, as was allowed"


def whole_with_other_windows() -> dict[str, torch.Tensor]:
    """A model of windows of 8, and of 2 in its last stage, whose map is 8 x 8."""
    weights = original_weights(Shape(window_size=8))
    for name in list(weights):
        if name.startswith("layers.1.") and name.endswith("relative_position_bias_table"):
            weights[name] = torch.zeros(9, 4)
    return weights


def test_labels_name_the_classes(tmp_path):
    torch.save(original_weights(SHAPES["V1"]), tmp_path / "model.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\neel\n")
    command = [str(tmp_path / "model.pth"), str(tmp_path / "out"), "--labels", str(tmp_path / "names.txt")]
    assert main(command) == 0
    model = SwinHfForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label[4] == "eel" and model.config.label2id["ant"] == 0
    _, _, report = load(tmp_path / "model.pth", labels=list("abcde"))
    assert not report.missing and not any("head" in name for name in report.dropped)
    with pytest.raises(ConversionError, match="labels must name 4 classes, got 5"):
        load(tmp_path / "model.pth", labels=list("abcde"), num_labels=4)
    assert load(tmp_path / "model.pth", labels=["x", "y"])[2].missing == ["classifier.bias", "classifier.weight"]


def test_the_command_line_names_its_flags(tmp_path, checkpoint, capsys):
    weights = timm_weights(original_weights(SHAPES["V2"]))
    torch.save(weights, tmp_path / "model.pth")
    torch.save(weights | {"norm9.weight": torch.ones(1)}, tmp_path / "more.pth")
    sizes, out = ["--source_image_size", "32", "--source_window_size", "4"], str(tmp_path / "out")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for arguments, message in (
        (["model.pth", out], "does not contain its window size; give --source_window_size, 8 for instance"),
        (["more.pth", out, *sizes], "does not know: norm9.weight; --allow_unexpected drops them"),
        (["model.pth", out, *sizes, "--window_size", "0"], "window_size must be positive, got 0"),
        (["model.pth", out, *sizes, "--labels", str(tmp_path / "latin.txt")], "labels must be a text file in UTF-8"),
        (["model.pth", out, *sizes, "--labels", str(tmp_path / "none.txt")], "No such file"),
    ):
        assert main([str(tmp_path / arguments[0]), *arguments[1:]]) == 1
        assert message in capsys.readouterr().err
    assert main([str(tmp_path / "more.pth"), out, *sizes, "--allow_unexpected"]) == 0
    assert "if not, give --source_pretrained_window_sizes" in capsys.readouterr().out
    (checkpoint / "preprocessor_config.json").write_text('{"size": "large"}')
    assert main([str(checkpoint), str(tmp_path / "other")]) == 1
    assert "has an impossible image processor: Could not convert size" in capsys.readouterr().err


def test_timm_repositories_say_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "swin_tiny_patch4_window7_224"}))
    with pytest.raises(ValueError, match="python -m swin_hf.convert"):
        SwinHfConfig.from_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="must hold model.safetensors"):
        SwinHfForImageClassification.from_pretrained(tmp_path)


def test_the_command_line_converts(tmp_path, checkpoint):
    command = [sys.executable, "-m", "swin_hf.convert", str(checkpoint), str(tmp_path / "stock"), "--to", "transformers"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "weights: " in done.stdout and json.loads((tmp_path / "stock" / "conversion.json").read_text())["used"]
    ours = SwinHfForImageClassification.from_pretrained(checkpoint)
    stock = SwinForImageClassification.from_pretrained(tmp_path / "stock")
    assert difference(ours, stock, torch.randn(1, 3, 16, 16)) <= 1e-5
    assert stock.config.id2label == {0: "blue", 1: "green", 2: "red"}
    processor = AutoImageProcessor.from_pretrained(tmp_path / "stock")
    assert isinstance(processor, ViTImageProcessorPil) and dict(processor.size) == {"height": 16, "width": 16}
    assert SwinHfConfig.from_pretrained(tmp_path / "stock").version == 1
