"""TinyViT's weights in and out: parity with a plain reference and with timm, whole round trips, clear refusals."""

import json

import pytest
import torch
from conftest import TINY_VIT
from plain_tiny_vit import PlainTinyViT, TinyShape, authors_weights, tiny_vit_weights
from safetensors.torch import load_file, save_file

from swin_hf import SwinHfBackbone, SwinHfForImageClassification, SwinHfModel
from swin_hf.convert import convert, load, main
from swin_hf.presets_swin_hf import PRESETS
from swin_hf.weight_export import to_timm, to_transformers
from swin_hf.weight_files import ConversionError, WeightFiles
from swin_hf.weight_import import import_model

SHAPES = {
    "tiny": TinyShape(),
    "other kernel and four stages": TinyShape(
        dims=(8, 16, 16, 24), depths=(2, 1, 2, 1), num_heads=(1, 2, 1, 3), windows=(3, 4, 5, 2), kernel=5
    ),
}
PUBLISHED = ("tiny_vit_5m_224", "tiny_vit_11m_224", "tiny_vit_21m_224", "tiny_vit_21m_384", "tiny_vit_21m_512")
LABELS = {"label_names": list("abcde")}


def saved_as_timm(weights, folder, **more):
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    config = {"architecture": "tiny_vit_5m_224", "pretrained_cfg": {"input_size": [3, 48, 48], "crop_pct": 0.95}} | more
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("naming", ["timm", "authors"])
@pytest.mark.parametrize("kind", SHAPES)
def test_weights_compute_the_same_at_any_size(tmp_path, kind, naming):
    shape = SHAPES[kind]
    weights = tiny_vit_weights(shape)
    reference = PlainTinyViT(weights, shape)
    if naming == "timm":
        model, processor, report = load(saved_as_timm(weights, tmp_path / "timm", **LABELS))
        assert model.config.id2label[4] == "e" and model.config.image_size == 48 and not report.notes
    else:
        renamed = authors_weights(weights)
        renamed["layers.1.blocks.0.attn.attention_bias_idxs"] = torch.zeros(2, 2, dtype=torch.long)
        torch.save({"model": renamed}, tmp_path / "model.pth")
        model, processor, report = load(tmp_path / "model.pth")
        assert list(report.dropped) == ["layers.1.blocks.0.attn.attention_bias_idxs"]
        assert model.config.image_size == 32 * shape.windows[-1] and "image size is assumed" in report.notes[0]
    assert processor.crop_pct == 0.95 and int(processor.resample) == 3 and not report.missing
    for size in ((48, 48), (32, 80), (33, 21), (7, 9)):
        images = torch.randn(2, 3, *size)
        output = model(images, output_block_hidden_states=True)
        ends = [sum(shape.depths[: stage + 1]) - 1 for stage in range(len(shape.depths))]
        for ours, theirs in zip([output.block_hidden_states[end] for end in ends], reference.maps(images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(output.logits, reference.logits(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", SHAPES)
def test_round_trip_through_timm_keeps_every_bit(tmp_path, kind):
    weights = tiny_vit_weights(SHAPES[kind])
    convert(saved_as_timm(weights, tmp_path / "timm", **LABELS), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again", to="timm")
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in written.items())
    described = json.loads((tmp_path / "again" / "config.json").read_text())
    assert described["model_args"]["window_sizes"][1:] == list(SHAPES[kind].windows[1:]) and described["label_names"][4] == "e"
    first, second = load(tmp_path / "ours")[0], load(tmp_path / "again")[0]
    saved = {"architectures", "auto_map", "dtype"}
    one, other = (model.config.to_diff_dict() for model in (first, second))
    assert {key: value for key, value in one.items() if key not in saved} == other
    assert all(torch.equal(weight, second.state_dict()[name]) for name, weight in first.state_dict().items())


@pytest.mark.parametrize("naming", ["timm", "authors"])
def test_models_load_them_directly(tmp_path, naming):
    weights = tiny_vit_weights(SHAPES["tiny"])
    source = tmp_path / "model.pth"
    if naming == "timm":
        source = saved_as_timm(weights, tmp_path / "timm")
    else:
        torch.save(authors_weights(weights), source)
    images, expected = torch.randn(1, 3, 48, 48), PlainTinyViT(weights, SHAPES["tiny"])
    model = SwinHfForImageClassification.from_pretrained(source).eval()
    torch.testing.assert_close(model(images).logits, expected.logits(images), atol=1e-5, rtol=1e-5)
    assert model.name_or_path == str(source)
    model.save_pretrained(tmp_path / "saved")
    again = SwinHfForImageClassification.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(images).logits, model(images).logits)

    other, info = SwinHfForImageClassification.from_pretrained(
        source, num_labels=7, ignore_mismatched_sizes=True, dtype=torch.bfloat16, output_loading_info=True
    )
    assert other.classifier.out_features == 7 and other.dtype == torch.bfloat16 and len(info["mismatched_keys"]) == 2
    larger = SwinHfModel.from_pretrained(source, stage_windows=[5, 6, 5])
    assert larger.encoder.layers[1].blocks[0].window == (6, 6)
    backbone = SwinHfBackbone.from_pretrained(source, out_features=["stage1", "stage3"])
    maps = backbone.swin.encode(images).stage_maps
    torch.testing.assert_close(maps[3].permute(0, 3, 1, 2), expected.maps(images)[2], atol=2e-5, rtol=1e-5)


def test_a_body_without_a_head_and_a_new_head(tmp_path):
    weights = {name: weight for name, weight in tiny_vit_weights(SHAPES["tiny"]).items() if not name.startswith("head.fc")}
    source = saved_as_timm(weights, tmp_path / "timm")
    model, _, report = load(source)
    assert type(model) is SwinHfModel and not report.missing
    headed, _, report = load(source, num_labels=3)
    assert report.missing == ["classifier.bias", "classifier.weight"] and headed.classifier.out_features == 3
    convert(source, tmp_path / "again", to="timm")  # through SwinHfModel
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert written.keys() == weights.keys() and all(torch.equal(written[name], weights[name]) for name in weights)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["num_classes"] == 0


def largest_difference(model, theirs, images) -> float:
    """Of logits and the maps of all four stages, relative to the largest value of each."""
    with torch.no_grad():
        output = model(images, output_block_hidden_states=True)
        last, maps = theirs.forward_intermediates(images)
        ours = [output.logits, *(output.block_hidden_states[end] for end in (1, 3, 9, 11))]
        pairs = zip(ours, [theirs.forward_head(last), *maps], strict=True)
        return max(float((values - expected).abs().max() / expected.abs().max()) for values, expected in pairs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_timm_itself_computes_the_same(tmp_path, name):
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # its torchvision fails beside a CPU build of PyTorch
        pytest.skip(f"timm cannot be imported: {error}")
    theirs = timm.create_model(name).eval()
    for part in theirs.modules():
        if isinstance(part, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
        if hasattr(part, "attention_biases"):
            torch.nn.init.normal_(part.attention_biases, std=0.5)
    side = theirs.default_cfg["input_size"][1]
    files = WeightFiles(name=name, weights=theirs.state_dict(), config={"architecture": name})
    model, _ = import_model(files)
    assert model.config.image_size == side
    sizes, largest = ((side, side), (side, side - 30), (100, 130)), {}
    for dtype, limit in ((torch.float32, 3e-6), (torch.float64, 1e-13)):  # the same but for rounding
        both = [model.to(dtype), theirs.to(dtype)]
        largest[dtype] = max(largest_difference(*both, torch.randn(1, 3, *size, dtype=dtype)) for size in sizes)
        assert largest[dtype] <= limit
    print(f"timm {timm.__version__} {name}: {', '.join(f'{value:.0e}' for value in largest.values())} of the largest value")
    model.float()
    theirs.float()
    weights, described = to_timm(model)
    saved_as_timm(weights, tmp_path / "again", **described)
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True)
    assert all(torch.equal(weight, theirs.state_dict()[key]) for key, weight in again.state_dict().items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_models(name):
    model = SwinHfForImageClassification(PRESETS[name.removesuffix("_224")](num_labels=1000))
    weights, described = to_timm(model)
    again, _ = import_model(WeightFiles(name=name, weights=weights, config=described))
    ours, theirs = (config.to_dict() for config in (model.config, again.config))
    assert {key for key, value in ours.items() if value != theirs[key]} <= {"drop_path_rate", "dtype", "architectures"}
    assert described["architecture"] == name.replace("384", "224").replace("512", "224")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"local_conv": 0}, "local_conv must be the size of a kernel, got 0"),
        ({"shift_windows": True}, "shift_windows must be False, got True"),
        ({"norm": "rms"}, "norm must be 'layer', got 'rms'"),
        ({"hidden_act": "relu"}, "hidden_act must be 'gelu', got 'relu'"),
        ({"stage_blocks": ["conv", "conv"]}, r"stage_blocks must be 'conv' in the first stage and 'window' in the others"),
        ({"stage_windows": [4, [2, 4]]}, "stage 1 must have square windows, got 2 x 4"),
        ({"block_mlp_dim": [[64], [128, 100]]}, "stage 1, block 1 must have 128 hidden channels, got 100"),
        ({"block_num_heads": [[1], [4, 3]], "block_head_dim": [[1], [8, 8]]}, "stage 1, block 1 must have 4 heads of 8"),
    ],
)
def test_what_timm_cannot_express_is_named(make_model, changes, named):
    with pytest.raises(ConversionError, match=f"timm has no such TinyViT: {named}"):
        to_timm(make_model(**TINY_VIT | changes))


def test_trained_biases_and_hybrids_stay_ours(make_model):
    model = make_model(**TINY_VIT)  # whose biases are not symmetric
    with pytest.raises(ConversionError, match="stage 1, block 0 must have position biases that are the same for an offset"):
        to_timm(model)
    with pytest.raises(ConversionError, match="transformers has no such Swin: stem must be 'patch', got 'conv'"):
        to_transformers(model)
    with pytest.raises(ConversionError, match="timm has no such Swin: stage_blocks must be 'window' for each stage"):
        to_timm(make_model(stage_blocks=["conv", "window"]))


def test_damaged_files_are_named(tmp_path, capsys):
    weights = tiny_vit_weights(SHAPES["tiny"])
    for gone, message in {
        "stages.1.blocks.1.attn.norm.weight": "lacks weights of SwinHfForImageClassification: swin.encoder.layers.1.blocks.1",
        "stages.1.blocks.0.mlp.fc1.weight": "must be a whole TinyViT of timm or of its authors, but lacks 'stages.1.blocks.0",
    }.items():
        torch.save({name: weight for name, weight in weights.items() if name != gone}, tmp_path / "model.pth")
        with pytest.raises(ConversionError, match=message):
            load(tmp_path / "model.pth")
    torch.save(weights | {"stages.1.blocks.0.gamma": torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(ConversionError, match="does not know: stages.1.blocks.0.gamma"):
        load(tmp_path / "model.pth")
    torch.save(weights, tmp_path / "model.pth")
    assert main([str(tmp_path / "model.pth"), str(tmp_path / "out"), "--window_size", "5"]) == 1
    assert "error: stage_windows must be given instead of window_size" in capsys.readouterr().err


def test_damaged_shapes_are_named(tmp_path):
    weights = tiny_vit_weights(SHAPES["tiny"])
    block = "stages.1.blocks.0.attn"
    for name, shape, message in (
        (f"{block}.qkv.weight", (70, 24), f"{block}.qkv.weight must have rows for queries, keys and values of . heads, got"),
        (f"{block}.qkv.bias", (), f"{block}.qkv.bias must have rows"),
        ("stages.1.blocks.1.attn.attention_biases", (3, 15), "stages.1.blocks.1.attn.attention_biases must hold a bias"),
        ("stages.1.blocks.1.attn.attention_biases", (15,), "stages.1.blocks.1.attn.attention_biases must hold a bias"),
    ):
        torch.save(weights | {name: torch.zeros(shape)}, tmp_path / "model.pth")
        with pytest.raises(ConversionError, match=message):
            load(tmp_path / "model.pth")
    without = {name: weight for name, weight in weights.items() if "attention_biases" not in name}
    torch.save(without, tmp_path / "model.pth")
    with pytest.raises(ConversionError, match="must have a stage with attention_biases, as TinyViT has, got none"):
        load(tmp_path / "model.pth")
    torch.save({name: weight for name, weight in weights.items() if "stages" not in name}, tmp_path / "model.pth")
    with pytest.raises(ConversionError, match="must be a whole TinyViT of timm or of its authors, but has no blocks"):
        load(tmp_path / "model.pth")


def test_windows_are_changed_by_command_and_remain_a_tiny_vit(tmp_path):
    source = saved_as_timm(tiny_vit_weights(SHAPES["tiny"]), tmp_path / "timm")
    num_stages = len(SHAPES["tiny"].windows)
    windows = [str(5 + stage % 2) for stage in range(num_stages)]
    assert main([str(source), str(tmp_path / "out"), "--to", "timm", "--stage_windows", *windows]) == 0
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["model_args"]["window_sizes"] == list(map(int, windows))
    model, again = load(source, stage_windows=[*map(int, windows)])[0], load(tmp_path / "out")[0]
    images = torch.randn(1, 3, 48, 48)
    assert torch.equal(model(images).logits, again(images).logits)
    for wrong, message in (([0] * num_stages, "stage_windows must be positive"), ([5], "stage_windows must have one entry")):
        with pytest.raises(ConversionError, match=message):
            load(source, stage_windows=wrong)


def test_arguments_of_timm_are_expressed_or_refused(tmp_path):
    weights = tiny_vit_weights(SHAPES["tiny"])
    arguments = {"act_layer": "relu", "drop_path_rate": 0.2, "proj_drop_rate": 0.1}
    relu, _, _ = load(saved_as_timm(weights, tmp_path / "relu", model_args=arguments))
    assert relu.config.hidden_act == "relu" and isinstance(relu.swin.encoder.layers[0].blocks[0].activation_fn, torch.nn.ReLU)
    for number, arguments in enumerate(({"global_pool": "max"}, {"surprise": 1})):
        name, value = next(iter(arguments.items()))
        with pytest.raises(ConversionError, match=f"was built with {name}={value}, which cannot be expressed"):
            load(saved_as_timm(weights, tmp_path / str(number), model_args=arguments))


def test_timm_has_no_mask_token(make_config):
    for config in (make_config(), make_config(**TINY_VIT)):
        with pytest.raises(ConversionError, match="none of its models has a mask_token"):
            to_timm(SwinHfModel(config, use_mask_token=True))
