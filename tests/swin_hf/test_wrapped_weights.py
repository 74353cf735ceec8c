"""Files of weights as training scripts leave them: behind a prefix, beside other models, averaged, inside dictionaries."""

import collections

import pytest
import torch
from conftest import KINDS
from original_swin import original_weights, timm_weights
from safetensors.torch import load_file, save_file
from stock_swin import SHAPES, make_stock

from swin_hf import (
    SwinHfForImageClassification,
    SwinHfForSemanticSegmentation,
    SwinHfModel,
    SwinHfUperNetConfig,
)
from swin_hf.convert import load, main
from swin_hf.weight_config import SourceSizes
from swin_hf.weight_files import ConversionError, WeightFiles
from swin_hf.weight_import import import_model
from swin_hf.weight_names import without_prefix

PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "backbone.",
    "net.",
    "encoder.",
    "module._orig_mod.",
    "model.module.",
    "swin_t.",
]
SIZES = SourceSizes(image_size=32, window_size=4)


def weights_of(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def prefixed(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": weight for name, weight in weights.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", ["V1", "V2", "timm V1", "timm V2"])
def test_one_prefix_is_removed(tmp_path, kind, prefix):
    weights = original_weights(SHAPES[kind.removeprefix("timm ")])
    weights = timm_weights(weights) if kind.startswith("timm") else weights
    expected, _ = import_model(WeightFiles(name="plain", weights=weights), sizes=SIZES)
    torch.save(prefixed(weights, prefix), tmp_path / "model.pth")
    model, _, report = load(tmp_path / "model.pth", source_sizes=SIZES)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert not report.missing and all(name.startswith(prefix) for name in report.used)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", ["V1 classifier", "V2 encoder", "V1 masked images", "V1 backbone"])
def test_one_prefix_is_removed_from_stock_checkpoints(tmp_path, kind, prefix):
    stock, ours = make_stock(kind)
    stock.save_pretrained(tmp_path)
    expected, _, _ = load(tmp_path)
    save_file(prefixed(weights_of(tmp_path), prefix), tmp_path / "model.safetensors", {"format": "pt"})
    models = [load(tmp_path)[0]]
    if prefix != "swin_t.":  # of which transformers knows nothing
        loaded, info = ours.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        models.append(loaded)
    for model in models:
        torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_ours_load_behind_a_prefix_and_are_saved_without(make_config, make_model, tmp_path, kind):
    backbone = make_config(**KINDS[kind], out_features=["stage1", "stage2"])
    config = SwinHfUperNetConfig(backbone_config=backbone, hidden_size=16, use_auxiliary_head=False, num_labels=3)
    for model in (make_model(**KINDS[kind]), SwinHfModel(backbone), SwinHfForSemanticSegmentation(config)):
        folder = tmp_path / type(model).__name__
        for prefix in ("module.", "_orig_mod.", "model._orig_mod."):
            model.save_pretrained(folder)
            names = sorted(weights_of(folder))
            save_file(prefixed(weights_of(folder), prefix), folder / "model.safetensors", {"format": "pt"})
            loaded = type(model).from_pretrained(folder)
            for own in (loaded, load(folder)[0]):
                torch.testing.assert_close(own.state_dict(), model.state_dict(), rtol=0, atol=0)
            loaded.save_pretrained(folder)
            assert sorted(weights_of(folder)) == names


def test_a_swin_inside_a_larger_model_keeps_its_own_names(tmp_path):
    weights, head = original_weights(SHAPES["V1"]), {"neck.weight": torch.ones(2)}
    body = {name: weight for name, weight in weights.items() if not name.startswith("head.")}
    torch.save(prefixed(body, "backbone.") | head, tmp_path / "model.pth")
    with pytest.raises(ConversionError, match="weights that SwinHfModel does not know: neck.weight"):
        load(tmp_path / "model.pth")
    model, _, report = load(tmp_path / "model.pth", allow_unexpected=True)
    assert isinstance(model, SwinHfModel) and report.dropped["neck.weight"] == "unexpected, as was allowed"
    torch.save(
        prefixed(body, "backbone.") | {"head.weight": torch.ones(5, 32), "head.bias": torch.ones(5)}, tmp_path / "c.pth"
    )
    assert load(tmp_path / "c.pth")[0].classifier.weight.shape == (5, 32)


@pytest.mark.parametrize(
    ("layout", "read_from", "beside"),
    [
        (lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}, "state_dict_ema", "state_dict"),
        (lambda raw, ema: {"model": raw, "model_ema": ema, "epoch": 3}, "model_ema", "model"),
        (lambda raw, ema: {"model": raw, "ema": {"decay": 0.99, "module": ema}}, "ema.module", "model"),
        (lambda raw, ema: {"module": raw, "ema": {"state_dict": prefixed(ema, "module.")}}, "ema.state_dict", "module"),
        (lambda raw, ema: {"model": raw, "model_ema": None}, "", ""),
        (lambda raw, ema: {"state_dict": prefixed(raw, "model.")}, "", ""),
        (lambda raw, ema: {"model": {"state_dict": raw}, "optimizer": {"state": {}}}, "", ""),
        (lambda raw, ema: {"net": prefixed(raw, "module."), "ema": 0.999}, "", ""),
        (lambda raw, ema: {"model_state_dict": raw}, "", ""),
        (lambda raw, ema: raw | {"n_averaged": torch.tensor(3)}, "", ""),
        (lambda raw, ema: prefixed(raw, "module.") | {"n_averaged": torch.tensor(3)}, "", ""),
    ],
)
def test_averaged_weights_come_first_and_are_named(tmp_path, capsys, layout, read_from, beside):
    raw = original_weights(SHAPES["V1"])
    ema = {name: weight + 1 for name, weight in raw.items()}
    torch.save(layout(raw, ema), tmp_path / "model.pth")
    model, _, report = load(tmp_path / "model.pth")
    expected = ema if read_from else raw
    assert torch.equal(model.classifier.bias, expected["head.bias"])
    assert any("averaged" in note for note in report.notes) == bool(read_from)
    assert main([str(tmp_path / "model.pth"), str(tmp_path / "out")]) == 0
    if read_from:
        assert f"read from {read_from}, averaged weights, not from {beside}" in capsys.readouterr().out


def test_an_average_under_names_of_its_own_is_taken(tmp_path):
    raw = original_weights(SHAPES["V1"])
    ema = {name: weight + 1 for name, weight in raw.items()}
    for prefix, other in (("ema.", ""), ("model_ema.module.", "model."), ("ema_model.", "model.")):
        torch.save(prefixed(raw, other) | prefixed(ema, prefix), tmp_path / "model.pth")
        model, _, report = load(tmp_path / "model.pth")
        assert torch.equal(model.classifier.bias, ema["head.bias"])
        assert report.dropped[f"{other}head.bias"] == "not averaged; the file has averaged weights too"


def test_what_does_not_fit_is_named(tmp_path):
    raw, looped = original_weights(SHAPES["V1"]), {}
    looped["model"] = looped
    for content, message in (
        ({"epoch": 3, "optimizer": {}, "arguments": collections.OrderedDict()}, "got epoch, optimizer, arguments"),
        ([1, 2], "got list"),
        (looped, "got model"),
        ({}, "got nothing"),
        ({"model": {"conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}}, "conv1.weight, fc.weight, under conv1, fc"),
        (prefixed(raw, "student.") | prefixed(raw, "teacher."), "one Swin, got 2, whose names begin with student., teacher."),
        (prefixed(raw, "model.") | {"head.bias": torch.ones(5)}, "without model., got model.head.bias and head.bias"),
    ):
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(ConversionError, match=message):
            load(tmp_path / "model.pth")


def test_names_keep_what_is_theirs():
    stock, stem = (f"embeddings.patch_embeddings.{first}.weight" for first in ("projection", "convs.0.conv"))
    for names, plain in (
        (["swin." + stock, "classifier.bias"], ["swin." + stock, "classifier.bias"]),
        (["model.swinv2." + stock, "model.classifier.bias"], ["swinv2." + stock, "classifier.bias"]),
        (["backbone." + stock, "decode_head.bias"], ["backbone." + stock, "decode_head.bias"]),
        (["module.backbone.swin." + stock, "module.decode_head.bias"], ["backbone.swin." + stock, "decode_head.bias"]),
        (["backbone." + stock], [stock]),
        (["module.swin." + stem, "module.classifier.bias"], ["swin." + stem, "classifier.bias"]),
        (["encoder.patch_embed.proj.weight", "decoder.0.bias"], ["patch_embed.proj.weight", "decoder.0.bias"]),
        (["conv1.weight"], ["conv1.weight"]),
    ):
        assert without_prefix(names) == (dict(zip(names, plain)), [])


def test_weights_that_are_not_finite_are_refused_by_name(checkpoint, tmp_path, capsys):
    whole = weights_of(checkpoint)
    for name, value in (("classifier.bias", float("nan")), ("swin.layernorm.weight", float("-inf"))):
        damaged = {own: weight.clone() for own, weight in whole.items()}
        damaged[name][1] = value
        save_file(damaged, checkpoint / "model.safetensors", {"format": "pt"})
        assert main([str(checkpoint), str(tmp_path / "out")]) == 1
        assert f"must hold finite weights, got {name} with 1 of " in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    weights = original_weights(SHAPES["V1"])
    weights["norm.bias"][0] = float("nan")
    torch.save(prefixed(weights, "module."), tmp_path / "model.pth")
    with pytest.raises(ConversionError, match="must hold finite weights, got module.norm.bias with 1 of 32 values"):
        load(tmp_path / "model.pth")
    half = {name: weight.half() for name, weight in whole.items()}
    save_file(half, checkpoint / "model.safetensors", {"format": "pt"})
    assert isinstance(load(checkpoint)[0], SwinHfForImageClassification)
