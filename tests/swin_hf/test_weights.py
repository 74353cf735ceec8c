"""Weights in and out: against the implementations they come from, and back without a bit changed.

`python -m pytest tests/swin_hf/test_weights.py -s` prints the largest difference of the logits. timm takes part where it can
be imported; in versions before 0.9 it stands for Microsoft's code, of which it then held a copy.
"""

import json
import re

import pytest
import torch
from original_swin import BUFFERS, last_tokens, original_logits, original_weights, timm_weights
from safetensors.torch import load_file, save_file
from stock_swin import SHAPES, SMALL, STOCK, difference, make_stock, randomised
from transformers import (
    AutoConfig,
    SwinConfig,
    SwinModel,
    Swinv2Config,
    Swinv2ForImageClassification,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfForSemanticSegmentation,
    SwinHfModel,
)
from swin_hf.convert import convert, load
from swin_hf.weight_config import SourceSizes
from swin_hf.weight_export import to_timm, to_transformers
from swin_hf.weight_files import ConversionError, WeightFiles
from swin_hf.weight_import import import_model

OLD_NAMES = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention.relative_position_bias.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "attention.relative_position_bias.continuous_position_bias_mlp": "attention.self.continuous_position_bias_mlp",
    "attention.logit_scale": "attention.self.logit_scale",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def replaced(name: str, parts: dict[str, str]) -> str:
    for part, other in parts.items():
        name = name.replace(part, other)
    return name


@pytest.mark.parametrize("names", ["as saved", "old", "new"])
@pytest.mark.parametrize("kind", STOCK)
def test_stock_checkpoints_load(tmp_path, kind, names):
    stock, ours = make_stock(kind)
    stock.save_pretrained(tmp_path)
    if names != "as saved":
        weights = {name: weight.clone() for name, weight in stock.state_dict().items()}
        if names == "old":
            weights = {replaced(name, OLD_NAMES): weight for name, weight in weights.items()}
            weights |= {f"swin.encoder.layers.0.blocks.0.attention.self.{name}": torch.zeros(2) for name in BUFFERS[:2]}
        else:
            weights = {replaced(name, {old: new for new, old in OLD_NAMES.items()}): one for name, one in weights.items()}
        assert any("attention.q_proj" in name for name in weights) == (names == "new")
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

    direct, info = SwinHfForSemanticSegmentation.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert difference(direct, stock, torch.randn(1, 3, 128, 128)) <= 1e-5
    larger = SwinHfForSemanticSegmentation.from_pretrained(tmp_path / "stock", window_size=6)
    assert larger.config.backbone_config.window_size == 6
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
    block = "swin.encoder.layers.0.blocks.1.attention"
    split = {"qkv.weight": "qkv"} | ({"qkv.bias": "qkv"} if shape.version == 1 else {})
    for name, parts in split.items():
        ours = " + ".join(f"{block}.{part}_proj.{name.removeprefix('qkv.')}" for part in parts)
        assert report.converted[f"layers.0.blocks.1.attn.{name}"] == ours
    assert {name.split(".attn.")[-1] for name in report.converted} - {"relative_position_bias_table"} == set(split)


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


def test_lost_heads_and_kept_tokens(tmp_path):
    stock, _ = make_stock("V1 classifier")
    stock.save_pretrained(tmp_path / "classifier")
    weights = load_file(tmp_path / "classifier" / "model.safetensors")
    body = {name: weight for name, weight in weights.items() if "classifier" not in name}
    save_file(body, tmp_path / "classifier" / "model.safetensors")
    with pytest.raises(ConversionError, match="lacks weights of SwinHfForImageClassification: classifier.bias"):
        load(tmp_path / "classifier")
    model, _, report = load(tmp_path / "classifier", num_labels=9)
    assert model.config.num_labels == 9 and report.missing == ["classifier.bias", "classifier.weight"]

    pretrained = randomised(SwinModel(SwinConfig(**SMALL), use_mask_token=True))
    pretrained.save_pretrained(tmp_path / "encoder")
    convert(tmp_path / "encoder", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    token = load_file(tmp_path / "back" / "model.safetensors")["embeddings.mask_token"]
    assert torch.equal(token, pretrained.embeddings.mask_token)


def test_configs_of_stock_are_taken_as_they_are_given(tmp_path):
    stock, _ = make_stock("V1 classifier")
    stock.save_pretrained(tmp_path)
    given = AutoConfig.from_pretrained(tmp_path, attn_implementation="eager")
    model = SwinHfForImageClassification.from_pretrained(tmp_path, config=given)
    assert difference(model, stock, torch.randn(1, 3, 64, 64)) <= 1e-5
    assert model.config._attn_implementation == "eager"
    given.image_size, given.window_size = 128, 8
    larger = SwinHfForImageClassification.from_pretrained(tmp_path, config=given)
    assert difference(larger, model.resize(128, 8), torch.randn(1, 3, 128, 128)) <= 1e-6
    (tmp_path / "config.json").rename(tmp_path / "elsewhere.json")
    model = SwinHfForImageClassification.from_pretrained(tmp_path, config=stock.config)
    assert difference(model, stock, torch.randn(1, 3, 64, 64)) <= 1e-5
    (tmp_path / "elsewhere.json").rename(tmp_path / "config.json")
    with pytest.raises(ValueError, match="must be a UperNet's for SwinHfUperNetConfig, got model_type swin"):
        SwinHfForSemanticSegmentation.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin", "depths": [1, 1, 1, 1], "out_indices": [1, 3]}))
    assert SwinHfConfig.from_pretrained(tmp_path).out_features == ["stage1", "stage3"]


def test_windows_of_the_pretraining_are_read_given_or_named_as_assumed(tmp_path):
    shape = SHAPES["V2 fine-tuned at another window"]
    weights, images = original_weights(shape), torch.randn(2, 3, 32, 32)
    bare = WeightFiles(name="bare", weights=timm_weights(weights))
    sizes = {"image_size": 32, "window_size": 4}
    model, report = import_model(bare, sizes=SourceSizes(**sizes))
    assert "give source_sizes.pretrained_window_sizes" in report.notes[0]
    assert (model(images).logits - original_logits(weights, images, shape)).abs().max() > 0.01
    model, report = import_model(bare, sizes=SourceSizes(**sizes, pretrained_window_sizes=[6, 3]))
    assert not report.notes
    torch.testing.assert_close(model(images).logits, original_logits(weights, images, shape), rtol=0, atol=1e-5)
    whole = WeightFiles(name="whole", weights=weights)
    model, _ = import_model(whole, sizes=SourceSizes(window_size=4))
    torch.testing.assert_close(model(images).logits, original_logits(weights, images, shape), rtol=0, atol=1e-5)
    with pytest.raises(ConversionError, match="whole has windows of 4, but source_sizes.window_size is 8"):
        import_model(whole, sizes=SourceSizes(window_size=8))


def test_cut_windows_grow_with_the_bias_of_the_nearest_offset(tmp_path):
    weights = original_weights(SHAPES["V1 with windows cut to the last maps"])
    torch.save(weights, tmp_path / "model.pth")
    model, _, _ = load(tmp_path / "model.pth", image_size=64)  # so that the last map of 4 x 4 becomes one of 8 x 8
    name = "layers.2.blocks.0.attn.relative_position_bias_table"
    small = weights[name].view(7, 7, 4)
    large = (
        model.swin.encoder.layers[2].blocks[0].attention.relative_position_bias.relative_position_bias_table.view(15, 15, 4)
    )
    nearest = (torch.arange(15) - 4).clamp(0, 6)
    assert torch.equal(large, small[nearest][:, nearest])


def test_timm_models_that_were_built_otherwise(tmp_path, make_model):
    source = make_model(version=2, hidden_act="relu")
    weights, config = to_timm(source)
    model, _ = import_model(WeightFiles(name="relu", weights=weights, config=config))
    assert model.config.hidden_act == "relu" and difference(model, source, torch.randn(1, 3, 16, 16)) <= 1e-6
    with pytest.raises(ConversionError, match="has an impossible config: ValueError: hidden_act must name an activation"):
        bad = config | {"model_args": config["model_args"] | {"act_layer": "gelu_of_timm"}}
        import_model(WeightFiles(name="act", weights=weights, config=bad))
    config["model_args"]["always_partition"] = True
    with pytest.raises(ConversionError, match="was built with always_partition=True, which cannot be expressed"):
        import_model(WeightFiles(name="other", weights=weights, config=config))


def test_stock_v2_with_windows_that_are_not_square_is_named(tmp_path):
    stock = randomised(Swinv2ForImageClassification(Swinv2Config(**SMALL | {"image_size": [64, 32], "window_size": 8})))
    stock.save_pretrained(tmp_path)
    model, _, report = load(tmp_path)
    where = "stage 1, block 0 must have a square window for images of .*, got 8 x 4, cut to its map"
    assert re.search(where, report.notes[0])
    with pytest.raises(ConversionError, match=f"transformers has no such Swin: {where}"):
        to_transformers(model)


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
    with pytest.raises(ConversionError, match="stage 1 a map of 6 x 6 is not a whole number of windows"):
        to_timm(make_model(image_size=24))
    with pytest.raises(ConversionError, match="hidden_act must be 'gelu', got 'relu'"):
        to_timm(make_model(hidden_act="relu"))
    with pytest.raises(ConversionError, match="none of its models has a mask_token"):
        to_timm(SwinHfModel(make_config(), use_mask_token=True))
    with pytest.raises(ConversionError, match="pretrained_window_sizes must be one integer for each stage"):
        to_timm(make_model(version=2, pretrained_window_sizes=[[4, 2], 4]))
    with pytest.raises(ConversionError, match="maps have an eps of 1e-5, not 1e-06"):
        to_transformers(SwinHfBackbone(make_config(layer_norm_eps=1e-6)))
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
