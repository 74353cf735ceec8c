"""Weights in and out: against the implementations they come from, and back without a bit changed.

`python -m pytest tests/test_convert.py -s` prints the largest difference of the logits; timm takes part where it can be
imported, in a version before 0.9 as Microsoft's code, of which it then held a copy.
"""

import collections
import json
import os
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from original_swin import Shape, last_tokens, original_logits, original_weights
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2Model,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTImageProcessorPil,
)

from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfForSemanticSegmentation,
    SwinHfImageProcessorPil,
    SwinHfModel,
)
from swin_hf.convert import convert, load, main
from swin_hf.weight_config import SourceSizes
from swin_hf.weight_export import to_timm, to_transformers
from swin_hf.weight_files import ConversionError, WeightFiles, read_weights
from swin_hf.weight_import import import_model

SMALL = {"image_size": 64, "window_size": 4, "depths": [2, 2, 2], "num_heads": [2, 4, 4], "embed_dim": 24, "num_labels": 5}
STOCK = {
    "V1 classifier": (SwinForImageClassification, SwinConfig, SwinHfForImageClassification),
    "V2 classifier": (Swinv2ForImageClassification, Swinv2Config, SwinHfForImageClassification),
    "V1 encoder": (SwinModel, SwinConfig, SwinHfModel),
    "V2 encoder": (Swinv2Model, Swinv2Config, SwinHfModel),
    "V1 masked images": (SwinForMaskedImageModeling, partial(SwinConfig, encoder_stride=16), SwinHfForMaskedImageModeling),
    "V2 masked images": (Swinv2ForMaskedImageModeling, partial(Swinv2Config, encoder_stride=16), SwinHfForMaskedImageModeling),
    "V1 backbone": (SwinBackbone, partial(SwinConfig, out_features=["stage1", "stage3"]), SwinHfBackbone),
}
SHAPES = {
    "V1": Shape(),
    "V1 with windows cut to the last maps": Shape(window_size=8, depths=(2, 2, 2), num_heads=(2, 2, 4)),
    "V2": Shape(version=2),
    "V2 with windows cut to the last maps": Shape(version=2, window_size=8, depths=(2, 2, 2), num_heads=(2, 2, 4)),
    "V2 fine-tuned at another window": Shape(version=2, pretrained_windows=(6, 3)),
}
BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")
OLD_NAMES = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention.relative_position_bias.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    for name, parameter in model.named_parameters():
        if "logit_scale" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def make_stock(kind: str) -> tuple[PreTrainedModel, type]:
    stock_class, config, ours = STOCK[kind]
    return randomised(stock_class(config(**SMALL))), ours


@torch.no_grad()
def difference(model, other, pixel_values: torch.Tensor) -> float:
    """The largest difference between outputs."""
    pairs = [outputs_of(one, pixel_values) for one in (model, other)]
    return max((a - b).abs().max().item() for a, b in zip(*pairs, strict=True))


def outputs_of(model, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    outputs = model(pixel_values)
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return list(outputs.feature_maps) if "feature_maps" in outputs else [outputs[0]]


def timm_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by their original names as today's timm has them: no buffers, merging at the start of a stage, head.fc."""
    renamed = {}
    for name, weight in weights.items():
        if name.endswith(BUFFERS):
            continue
        if ".downsample." in name:
            stage, rest = name.removeprefix("layers.").split(".", 1)
            name = f"layers.{int(stage) + 1}.{rest}"
        renamed[name.replace("head.", "head.fc.")] = weight
    return renamed


@pytest.mark.parametrize("names", ["as saved", "old", "new"])
@pytest.mark.parametrize("kind", STOCK)
def test_stock_checkpoints_load(tmp_path, kind, names):
    stock, ours = make_stock(kind)
    stock.save_pretrained(tmp_path)
    if names != "as saved":
        weights = {name: weight.clone() for name, weight in stock.state_dict().items()}
        if names == "old":
            for new, old in OLD_NAMES.items():
                weights = {name.replace(new, old): weight for name, weight in weights.items()}
            weights |= {f"swin.encoder.layers.0.blocks.0.attention.self.{name}": torch.zeros(2) for name in BUFFERS[:2]}
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text()) | {"path_norm": True, "layer_norm_epsilon": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config))

    side = 128 if kind == "V1 backbone" else 64  # the stock backbone shifts also where a window spans the map
    pixel_values = torch.randn(2, 3, side, side)
    direct, info = ours.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    loaded, _, report = load(tmp_path)
    assert type(loaded) is ours and not report.missing
    assert set(report.used) | set(report.dropped) == set(load_file(tmp_path / "model.safetensors"))
    largest = max(difference(direct, stock, pixel_values), difference(loaded, stock, pixel_values))
    print(f"stock {kind}, names {names}: {largest:.0e}")
    assert largest <= 1e-5
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in direct.state_dict().items())


@pytest.mark.parametrize("kind", STOCK)
def test_round_trip_through_stock_keeps_every_bit(tmp_path, kind):
    stock, _ = make_stock(kind)
    stock.save_pretrained(tmp_path / "stock")
    convert(tmp_path / "stock", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("stock", "back"))
    unused = {name for name in before if kind == "V1 backbone" and "layernorm." in name and "blocks" not in name}
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items() if name not in unused)
    again = type(stock).from_pretrained(tmp_path / "back")
    assert difference(again, stock, torch.randn(1, 3, 64, 64)) <= 1e-6  # the same bits at other addresses


def test_upernet_goes_through_stock_and_back(tmp_path):
    config = SwinConfig(**SMALL, out_features=["stage1", "stage2", "stage3"])
    stock = randomised(UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, hidden_size=16, num_labels=4)))
    stock.save_pretrained(tmp_path / "stock")
    report = convert(tmp_path / "stock", tmp_path / "ours")
    ours = SwinHfForSemanticSegmentation.from_pretrained(tmp_path / "ours")
    assert not report.missing and difference(ours, stock, torch.randn(1, 3, 128, 128)) <= 1e-5
    back = to_transformers(ours)
    for name, weight in stock.state_dict().items():
        assert "swin.layernorm" in name or torch.equal(weight, back.state_dict()[name])
    model, _, report = load(tmp_path / "stock", num_labels=7, window_size=6)
    assert (model.config.num_labels, model.config.backbone_config.window_size) == (7, 6)
    assert model(torch.randn(1, 3, 96, 96)).logits.shape == (1, 7, 96, 96)
    assert {name.split(".")[-2] for name in report.missing} == {"classifier"}


@pytest.mark.parametrize("naming", ["original", "timm"])
@pytest.mark.parametrize("kind", SHAPES)
def test_original_weights_compute_the_same(tmp_path, kind, naming):
    shape = SHAPES[kind]
    weights, images = original_weights(shape), torch.randn(2, 3, shape.image_size, shape.image_size)
    if naming == "original":
        torch.save({"model": weights}, tmp_path / "model.pth")
        model, processor, report = load(tmp_path / "model.pth")
        assert set(report.dropped) == {name for name in weights if name.endswith(BUFFERS)}
        assert processor.crop_pct == 0.875
    else:
        save_file(timm_weights(weights), tmp_path / "model.safetensors")
        arguments = {"img_size": shape.image_size, "window_size": shape.window_size}
        arguments["pretrained_window_sizes"] = list(shape.pretrained_windows)
        described = {"architecture": "swin", "model_args": arguments, "pretrained_cfg": {"crop_pct": 0.9, "mean": [0.5] * 3}}
        (tmp_path / "config.json").write_text(json.dumps(described | {"label_names": list("abcde")}))
        model, processor, report = load(tmp_path)
        assert not report.dropped and model.config.id2label[4] == "e"
        assert (processor.crop_pct, list(processor.image_mean)) == (0.9, [0.5] * 3)
    largest = (model(images).logits - original_logits(weights, images, shape)).abs().max().item()
    print(f"{naming} {kind}: {largest:.0e}")
    assert largest <= 1e-5 and not report.missing
    assert model.config.image_height_width == (shape.image_size, shape.image_size)
    assert all(set(report.converted[name]) > set("qkv_proj") for name in report.converted if "qkv" in name)


@pytest.mark.parametrize("kind", SHAPES)
def test_round_trip_through_timm_names_keeps_every_bit(tmp_path, kind):
    weights = original_weights(SHAPES[kind])
    torch.save(weights, tmp_path / "model.pth")
    convert(tmp_path / "model.pth", tmp_path / "timm", to="timm")
    written, expected = load_file(tmp_path / "timm" / "model.safetensors"), timm_weights(weights)
    assert written.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in written.items())
    again, _, _ = load(tmp_path / "timm")
    once, _, _ = load(tmp_path / "model.pth")
    assert all(torch.equal(weight, once.state_dict()[name]) for name, weight in again.state_dict().items())


@pytest.mark.parametrize("architecture", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_timm_itself_computes_the_same(tmp_path, architecture):
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # its torchvision fails beside a CPU build of PyTorch
        pytest.skip(f"timm cannot be imported: {error}")
    theirs = randomised(timm.create_model(architecture))
    weights, size = theirs.state_dict(), theirs.default_cfg["input_size"][1]
    images = torch.randn(2, 3, size, size)
    files = WeightFiles(name="timm", weights=weights, config={"architecture": architecture})
    model, report = import_model(files, sizes=SourceSizes(image_size=size))
    largest = difference(model, theirs, images)
    print(f"timm {timm.__version__} {architecture}: {largest:.0e}")
    assert largest <= 1e-5 and not report.missing and not report.notes
    if int(timm.__version__.split(".")[0]) >= 1:
        (tmp_path / "given").mkdir()
        save_file(weights, tmp_path / "given" / "model.safetensors")
        described = {"architecture": architecture, "pretrained_cfg": {"input_size": [3, size, size]}}
        (tmp_path / "given" / "config.json").write_text(json.dumps(described))
        convert(tmp_path / "given", tmp_path / "out", to="timm")
        again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        assert difference(again, theirs, images) <= 1e-6


def test_simmim_checkpoints_come_in(tmp_path):
    shape = SHAPES["V2"]
    weights, images = original_weights(shape), torch.randn(2, 3, 32, 32)
    encoder = {
        f"encoder.{name}".replace("cpb_mlp", "rpe_mlp"): weight for name, weight in weights.items() if "head" not in name
    }
    decoder = {"encoder.mask_token": torch.randn(1, 1, 16), "decoder.0.weight": torch.randn(4 * 4 * 3, 32, 1, 1)}
    decoder["decoder.0.bias"] = torch.randn(48)
    torch.save({"model": encoder | decoder, "epoch": 800}, tmp_path / "simmim.pth")
    model, _, report = load(tmp_path / "simmim.pth")
    assert type(model) is SwinHfForMaskedImageModeling and model.config.encoder_stride == 4 and not report.missing
    tokens = last_tokens(weights, images, shape).permute(0, 3, 1, 2)
    pixels = torch.nn.functional.conv2d(tokens, decoder["decoder.0.weight"], decoder["decoder.0.bias"])
    torch.testing.assert_close(model(images).reconstruction, torch.pixel_shuffle(pixels, 4), rtol=0, atol=1e-4)
    classifier, _, report = load(tmp_path / "simmim.pth", num_labels=9)
    assert type(classifier) is SwinHfForImageClassification and classifier.config.num_labels == 9
    assert report.missing == ["classifier.bias", "classifier.weight"]
    assert {report.dropped[name] for name in decoder} == {"of masked-image pre-training"}


def test_head_image_and_window_change_on_the_way_in(tmp_path):
    torch.save(original_weights(SHAPES["V1"]), tmp_path / "model.pth")
    model, processor, report = load(tmp_path / "model.pth", num_labels=8, image_size=48, window_size=6)
    assert model(torch.randn(1, 3, 48, 48)).logits.shape == (1, 8)
    assert (model.config.image_size, model.config.window_size, processor.size.height) == (48, 6, 48)
    assert report.dropped["head.weight"] == "of a head for 5 classes, not 8"
    unchanged, _, _ = load(tmp_path / "model.pth")
    for name, weight in unchanged.resize(48, 6).state_dict().items():
        assert name.startswith("classifier.") or torch.equal(weight, model.state_dict()[name])


def test_shards_bins_and_half_precision_are_read(tmp_path):
    stock, _ = make_stock("V2 classifier")
    stock.half().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    stock.config.save_pretrained(tmp_path / "bin")
    torch.save(stock.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    shards, bins = (load(tmp_path / folder)[0] for folder in ("shards", "bin"))
    assert shards.dtype == bins.dtype == torch.float16
    assert all(torch.equal(weight, bins.state_dict()[name]) for name, weight in shards.state_dict().items())
    next((tmp_path / "shards").glob("model-00002*")).unlink()
    with pytest.raises(ConversionError, match="lacks model-00002"):
        load(tmp_path / "shards")


def test_a_head_that_does_not_fit_its_config_is_no_new_head(tmp_path):
    stock, _ = make_stock("V1 classifier")
    stock.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=r"classifier.\w+ must have shape \(2"):
        load(tmp_path)


def test_processors_become_ours_and_stock_again(tmp_path):
    stock, _ = make_stock("V1 classifier")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    for number, settings in enumerate(
        (
            {"size": {"height": 64, "width": 64}, "resample": 3, "image_mean": [0.4] * 3},
            {"size": {"shortest_edge": 73}, "do_center_crop": True, "crop_size": 64},
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


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"norm": "rms"}, "norm must be 'layer'"),
        ({"mask_padding": True}, "mask_padding must be False"),
        ({"window_size": [4, 2]}, "window_size must be one integer"),
        ({"stage_dims": [16, 40], "num_heads": [2, 4]}, "stage 1 must have 32 channels, got 40"),
        ({"block_num_heads": [[2], [4, 3]], "block_head_dim": [[8], [8, 8]]}, "stage 1, block 1 must have 4 heads"),
        ({"block_head_dim": [[8], [8, 6]]}, "stage 1, block 1 must have heads of 8 channels"),
        ({"block_value_head_dim": [[4], [8, 8]]}, "stage 0, block 0 must have heads of 8 channels"),
        ({"block_mlp_dim": [[64], [128, 100]]}, "stage 1, block 1 must have 128 hidden channels"),
    ],
)
def test_what_others_cannot_express_is_named(make_model, changes, named):
    model = make_model(**changes)
    for target, export in (("transformers", to_transformers), ("timm", to_timm)):
        with pytest.raises(ConversionError, match=f"{target} has no such Swin: {named}"):
            export(model)


def test_more_that_others_cannot_express(make_model, make_config):
    with pytest.raises(ConversionError, match="stage 1, block 0 must have a map of at least 4 x 4"):
        to_transformers(make_model(image_size=12))
    with pytest.raises(ConversionError, match="stage 1 a map of 6 x 6 is no whole number of windows"):
        to_timm(make_model(image_size=24))
    with pytest.raises(ConversionError, match="hidden_act must be 'gelu', got 'relu'"):
        to_timm(make_model(hidden_act="relu"))
    with pytest.raises(ConversionError, match="no SwinHfBackbone"):
        to_timm(SwinHfBackbone(make_config()))
    with pytest.raises(ConversionError, match="maps of its Swin V2 backbone have no norms"):
        to_transformers(SwinHfBackbone(make_config(version=2)))
    with pytest.raises(ConversionError, match="out_features must end with stage2"):
        to_transformers(SwinHfBackbone(make_config(out_features=["stage1"])))


def test_evenly_pruned_models_are_expressed(make_model):
    widths = {"block_num_heads": [[1], [2, 2]], "block_head_dim": [[16], [16, 16]], "block_mlp_dim": [[24], [48, 48]]}
    model, images = make_model(**widths), torch.randn(2, 3, 16, 16)
    stock = to_transformers(model)
    assert (stock.config.num_heads, stock.config.mlp_ratio) == ([1, 2], 1.5)
    assert difference(stock, model, images) <= 1e-5
    assert to_timm(model)[1]["model_args"]["mlp_ratio"] == 1.5


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
    with pytest.raises(ConversionError, match="it wants to call .*mkdir"):
        read_weights(tmp_path / "harmful.pth")
    assert not (tmp_path / "harm").exists()


def test_wrong_sources_are_explained_and_leave_nothing(tmp_path, checkpoint, capsys):
    whole = original_weights(SHAPES["V2"])
    cases = {
        "cut": (b"PK\x03\x04 half a file", "in the format of safetensors or PyTorch"),
        "empty": (b"", "in the format of safetensors or PyTorch"),
        "no weights": ({"epoch": 3}, "must hold a dictionary of weights"),
        "another model": ({"conv1.weight": torch.ones(3)}, "with patch_embed.proj.weight; got weights like conv1.weight"),
        "unexpected": (whole | {"norm9.weight": torch.ones(1)}, "does not know: norm9.weight; --allow-unexpected drops them"),
        "lacking": ({k: v for k, v in whole.items() if k != "layers.1.blocks.0.mlp.fc2.bias"}, "lacks weights of SwinHf"),
        "another shape": (
            whole | {"norm.weight": torch.ones(7)},
            r"norm.weight must have shape \(32,\) as swin.layernorm.weight, got \(7,\)",
        ),
        "no window": (timm_weights(whole), "does not tell its window size; give it, --source-window-size"),
        "no size": (
            timm_weights(original_weights(SHAPES["V1"])),
            "does not tell its image size; give it, --source-image-size",
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
        assert str(caught.value) in capsys.readouterr().err
    with pytest.raises(ConversionError, match="must be a folder that is empty or not there"):
        convert(checkpoint, checkpoint)
    with pytest.raises(ConversionError, match="must be a Swin of transformers"):
        other = tmp_path / "resnet"
        other.mkdir()
        save_file({"a": torch.ones(1)}, other / "model.safetensors")
        (other / "config.json").write_text(json.dumps({"model_type": "resnet", "architectures": ["ResNetModel"]}))
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


def test_timm_repositories_say_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "swin_tiny_patch4_window7_224"}))
    with pytest.raises(ValueError, match="python -m swin_hf.convert"):
        SwinHfForImageClassification.from_pretrained(tmp_path)


def test_the_command_line_converts(tmp_path, checkpoint):
    command = [sys.executable, "-m", "swin_hf.convert", str(checkpoint), str(tmp_path / "stock"), "--to", "transformers"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    assert "weights: " in done.stdout and json.loads((tmp_path / "stock" / "conversion.json").read_text())["used"]
    ours = SwinHfForImageClassification.from_pretrained(checkpoint)
    stock = SwinForImageClassification.from_pretrained(tmp_path / "stock")
    assert difference(ours, stock, torch.randn(1, 3, 16, 16)) <= 1e-5
    assert stock.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert isinstance(SwinHfImageProcessorPil.from_pretrained(checkpoint), SwinHfImageProcessorPil)
    assert SwinHfConfig.from_pretrained(tmp_path / "stock").version == 1
