"""The deploy form equals the model: versions, norms, activations, sizes that need padding, pruned widths, single heads."""

import copy

import pytest
import torch
from conftest import KINDS, TINY_VIT
from transformers import SwinConfig, SwinForImageClassification
from transformers.activations import ACT2FN

from edge.deploy.form import DeployError, deploy
from edge.deploy.position_bias import LaidOutBias
from edge.deploy.view import InputView
from swin_hf import SwinHfBackbone, SwinHfForImageClassification, SwinHfForSemanticSegmentation, SwinHfUperNetConfig
from swin_hf.explanations import class_maps
from swin_hf.layers_swin_hf import bias_of_pairs

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
PRUNED = {"block_num_heads": [[1], [3, 1]], "block_head_dim": [[8], [8, 8]], "block_mlp_dim": [[24], [40, 8]]}
PADDED = {"image_size": [21, 38], "patch_size": 4, "window_size": 3, "depths": [2, 2]}
CASES = {
    "dense": {},
    "one head": PRUNED,
    "padded patches and windows": PADDED,
    "odd maps": {"image_size": 36, "patch_size": 4, "window_size": 4, "depths": [2, 2, 2], "num_heads": [2, 2, 2]},
    "positions, no qkv bias, relu": {"use_absolute_embeddings": True, "qkv_bias": False, "hidden_act": "relu"},
    "values of another width": {"block_value_head_dim": [[4], [8, 16]]},
    "padding masked": PADDED | {"mask_padding": True},
    "rectangular windows": {"image_size": 32, "window_size": [2, 3], "depths": [2, 2]},
    "stage widths": {"stage_dims": [16, 24], "depths": [2, 2]},
    "one stage": {"depths": [2], "num_heads": [4]},
    "features": {"num_labels": 0},
    "convolutions": {"stem": "conv", "downsample": "conv", "stage_blocks": ["conv", "window"], "local_conv": 3},
    "convolutions last": {
        "stage_blocks": ["window", "conv"],
        "local_conv": 5,
        "use_absolute_embeddings": True,
        "stem": "conv",
    },
    "norm after pooling, convolutions alone": {"stage_blocks": ["conv", "conv"], "norm_after_pooling": True},
    "odd maps with convolutions": PADDED | {"stem": "conv", "downsample": "conv", "local_conv": 3, "stage_windows": [3, 4]},
}


def randomised(model):
    """The model with random norms and statistics, so that each of them matters."""
    for module in model.modules():
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.running_mean.normal_(std=0.5)
            module.running_var.uniform_(0.5, 2.0)
    return model


def assert_same(values, expected):
    """Equal to 2e-5 of the largest value, or of 1."""
    torch.testing.assert_close(values, expected, atol=2e-5 * max(1.0, float(expected.detach().abs().max())), rtol=0.0)


def view_of(config, **changes) -> InputView:
    height, width = config.image_height_width
    return InputView(**({"height": height, "width": width, "image_mean": MEAN, "image_std": STD} | changes))


def normalised(pixels):
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


@pytest.mark.parametrize("norm", ["layer", "rms", "batch"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_deploy_form_equals_the_model(make_model, case, version, norm):
    model = randomised(make_model(**CASES[case], version=version, norm=norm))
    before = copy.deepcopy(model.state_dict())
    pixels = torch.rand(1, 3, *model.config.image_height_width)
    expected = model(normalised(pixels)).logits
    assert_same(deploy(model, view_of(model.config))(pixels), expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("size", [(32, 32), (21, 38), (9, 11)])
def test_tiny_vit_is_padded_as_in_the_model(make_model, size):
    model = make_model(**TINY_VIT | {"stage_blocks": ["window", "window"], "hidden_act": "relu"})
    pixels = torch.rand(1, 3, *size)
    deployed = deploy(model, view_of(model.config, height=size[0], width=size[1]))
    assert_same(deployed(pixels), model(normalised(pixels)).logits)


@pytest.mark.parametrize("version", [1, 2])
def test_compact_constants_are_close(make_model, version):
    model = make_model(**PADDED, version=version)
    pixels = torch.rand(1, 3, 21, 38)
    deployed = deploy(model, view_of(model.config), compact=True)
    assert {buffer.dtype for name, buffer in deployed.named_buffers() if "bias" in name or "mask" in name} == {torch.int8}
    torch.testing.assert_close(deployed(pixels), model(normalised(pixels)).logits, atol=1e-2, rtol=0.0)


@pytest.mark.parametrize("window", [(3, 5), (5, 3), (9, 9), (1, 7), (14, 14), (27, 2)])
def test_biases_of_large_windows_are_laid_out_by_the_program(window):
    table = torch.randn((2 * window[0] - 1) * (2 * window[1] - 1), 3)
    expected = bias_of_pairs(table, window, window)[0]
    assert torch.equal(LaidOutBias(expected, window, compact=False)(), expected)
    difference = (LaidOutBias(expected, window, compact=True)() - expected).abs().max()
    assert 0 < difference <= expected.abs().max() / 253


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("compact", [False, True])
def test_large_windows_equal_the_model(make_model, version, compact):
    model = make_model(version=version, image_size=36, window_size=9, depths=[2, 1], num_heads=[2, 2])
    pixels = torch.rand(2, 3, 36, 36)
    deployed = deploy(model, view_of(model.config, batch_size=2), compact)
    assert any(isinstance(part, LaidOutBias) for part in deployed.modules())
    expected = model(normalised(pixels)).logits
    if compact:
        torch.testing.assert_close(deployed(pixels), expected, atol=1e-2, rtol=0.0)
    else:
        assert_same(deployed(pixels), expected)


@pytest.mark.parametrize("hidden_act", ACT2FN)
def test_every_activation_is_the_models(make_model, hidden_act):
    changes = {"stage_blocks": ["window", "conv"]}  # tokens and maps
    model = make_model(**changes, hidden_act=hidden_act).float()  # xIELU's slopes are made in bfloat16
    model.swin.encoder.layers[0].blocks[0].mlp.fc1.weight.data *= 8  # arguments from about -25 to 25
    pixels = torch.rand(1, 3, 16, 16)
    expected = model(normalised(pixels)).logits
    assert_same(deploy(model, view_of(model.config))(pixels), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_other_sizes_equal_the_model(make_model, kind):
    model = randomised(make_model(**KINDS[kind] | {"depths": [2, 2]}))
    pixels = torch.rand(3, 3, 21, 26)
    deployed = deploy(model, view_of(model.config, batch_size=3, height=21, width=26))
    assert_same(deployed(pixels), model(normalised(pixels)).logits)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_bytes_of_an_image_are_taken_channels_last(make_model, stem):
    model = make_model(**PADDED, stem=stem)
    image = torch.randint(0, 256, (1, 21, 38, 3), dtype=torch.uint8)
    expected = model(normalised(image.permute(0, 3, 1, 2) / 255)).logits
    deployed = deploy(model, view_of(model.config, dtype="uint8"))
    assert_same(deployed(image), expected)


@pytest.mark.parametrize("norm", ["layer", "rms", "batch"])
@pytest.mark.parametrize("version", [1, 2])
def test_backbone_maps_are_the_models(make_config, version, norm):
    config = make_config(**PADDED, version=version, norm=norm, out_features=["stem", "stage1", "stage2"])
    model = randomised(SwinHfBackbone(config).eval())
    pixels = torch.rand(1, 3, 21, 38)
    maps = deploy(model, view_of(config))(pixels)
    for feature_map, expected in zip(maps, model(normalised(pixels)).feature_maps, strict=True):
        assert_same(feature_map, expected)


@pytest.mark.parametrize("kind", ["TinyViT", "mixed"])
def test_maps_of_a_hybrid_backbone_are_the_models(make_config, kind):
    config = make_config(**KINDS[kind], out_features=["stem", "stage1", "stage2"])
    model, pixels = randomised(SwinHfBackbone(config).eval()), torch.rand(2, 3, *config.image_height_width)
    maps = deploy(model, view_of(config, batch_size=2))(pixels)
    for feature_map, expected in zip(maps, model(normalised(pixels)).feature_maps, strict=True):
        assert_same(feature_map, expected)


@pytest.mark.parametrize("norm_after_pooling", [True, False])
@pytest.mark.parametrize("norm", ["layer", "rms", "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_class_maps_are_the_models(make_model, kind, norm, norm_after_pooling):
    model = randomised(make_model(**KINDS[kind] | {"norm": norm, "norm_after_pooling": norm_after_pooling}))
    pixels = torch.rand(2, 3, 36, 44)
    logits, maps = deploy(model, view_of(model.config, batch_size=2, height=36, width=44), explain=True)(pixels)
    assert_same(maps, class_maps(model, normalised(pixels)))
    assert_same(logits, model(normalised(pixels)).logits)


@pytest.mark.parametrize("resize_logits", [True, False])
@pytest.mark.parametrize("norm", ["layer", "rms", "batch"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["uper", "light"])
def test_segmenters_are_the_models_at_any_size(make_config, head, kind, norm, resize_logits):
    config = make_config(**KINDS[kind] | {"norm": norm}, out_features=["stem", "stage1", "stage2"])
    settings = {"hidden_size": 8, "pool_scales": [1, 2, 5], "auxiliary_channels": 4, "resize_logits": resize_logits}
    segmenter = SwinHfForSemanticSegmentation(SwinHfUperNetConfig(backbone_config=config, decode_head=head, **settings))
    model, pixels = randomised(segmenter.eval()), torch.rand(2, 3, 37, 42)
    deployed = deploy(model, view_of(config, batch_size=2, height=37, width=42))
    assert_same(deployed(pixels), model(normalised(pixels)).logits)


@pytest.mark.parametrize("norm", ["layer", "rms", "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_untrained_models_whose_biases_are_zero_have_a_deploy_form(make_config, kind, norm):
    config = make_config(**KINDS[kind] | {"norm": norm})
    model, pixels = SwinHfForImageClassification(config).eval(), torch.rand(1, 3, *config.image_height_width)
    assert_same(deploy(model, view_of(config))(pixels), model(normalised(pixels)).logits)


def test_deploy_form_has_four_dimensions_at_most(make_model):
    model = make_model(version=2, **PADDED, stem="conv", stage_blocks=["window", "conv"], local_conv=3)
    exported = torch.export.export(deploy(model, view_of(model.config)), (torch.rand(1, 3, 21, 38),))
    ranks = [node.meta["val"].ndim for node in exported.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert max(ranks) == 4


def test_other_models_and_channels_are_refused(make_model):
    stock = SwinForImageClassification(SwinConfig(image_size=16, embed_dim=8, depths=[1], num_heads=[2], window_size=4))
    with pytest.raises(DeployError, match="or SwinHfForSemanticSegmentation or SwinHfBackbone, got SwinForImage"):
        deploy(stock, InputView(height=16, width=16, image_mean=MEAN, image_std=STD))
    model = make_model(num_channels=1)
    with pytest.raises(DeployError, match="image_mean must have 1 values"):
        deploy(model, view_of(model.config))
