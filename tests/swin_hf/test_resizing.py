"""Change of resolution: what the interpolated tables must keep, and that loading in another size is the same."""

import copy

import pytest
import torch
from conftest import KINDS, TINY_VIT
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForImageClassification, TorchAoConfig

from swin_hf import (
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfForSemanticSegmentation,
    SwinHfUperNetConfig,
)
from swin_hf.resizing_swin_hf import resize_bias_table, resize_position_embeddings, resized_config


def bias_map(table: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    return table.view(2 * window[0] - 1, 2 * window[1] - 1, -1)


def test_bias_table_is_that_of_the_original_code():
    # microsoft/Swin-Transformer, utils.py: tables as (1, heads, S1, S1) images, bicubic.
    table = torch.randn(13 * 13, 3)
    image = table.permute(1, 0).view(1, 3, 13, 13)
    expected = torch.nn.functional.interpolate(image, size=(23, 23), mode="bicubic").view(3, 529).permute(1, 0)
    torch.testing.assert_close(resize_bias_table(table, (7, 7), (12, 12)), expected)
    assert resize_bias_table(table, (7, 7), (7, 7)) is table


@pytest.mark.parametrize("new_window", [(12, 12), (5, 9), (4, 4)])
def test_bias_table_keeps_its_geometry(new_window):
    window = (7, 7)
    offsets = torch.arange(-6.0, 7.0)
    ramp = (offsets[:, None] + 10 * offsets[None, :]).reshape(-1, 1)
    resized = bias_map(resize_bias_table(ramp, window, new_window), new_window)[..., 0]
    rows, columns = (torch.arange(1 - side, side) * 13 / (2 * side - 1) for side in new_window)
    # Bicubic reads two neighbours on either side, which are missing at the edge, and bends a ramp by up to 0.05 of its slope.
    inner = [(side.abs() <= 5) for side in (rows, columns)]
    assert all(side.sum() >= 5 for side in inner)
    difference = resized - (rows[:, None] + 10 * columns[None, :])
    assert difference[inner[0]][:, inner[1]].abs().max() <= 0.55
    assert resized[new_window[0] - 1, new_window[1] - 1].abs() < 1e-6  # offset 0 stays in the middle

    table = torch.randn(169, 2)
    mirrored = bias_map(table, window).flip(0, 1).reshape(169, 2)
    flipped = bias_map(resize_bias_table(mirrored, window, new_window), new_window).flip(0, 1)
    torch.testing.assert_close(flipped, bias_map(resize_bias_table(table, window, new_window), new_window))


def test_position_embeddings_keep_their_places():
    rows = torch.arange(8.0).view(8, 1, 1).expand(8, 6, 2).reshape(1, 48, 2)
    resized = resize_position_embeddings(rows, (8, 6), (16, 3)).view(16, 3, 2)
    expected = ((torch.arange(16) + 0.5) / 2 - 0.5)[4:-4]  # centres of the new patches in units of the old
    torch.testing.assert_close(resized[4:-4, 1, 0], expected, atol=0.05, rtol=0)
    torch.testing.assert_close(resized[:, :1].expand(16, 3, 2), resized)


@pytest.mark.parametrize("version", [1, 2])
def test_resize_gives_another_model_and_leaves_this_one(make_model, version):
    model = make_model(version=version, image_size=32, use_absolute_embeddings=True)
    before = copy.deepcopy(model.state_dict())
    pixel_values = torch.randn(1, 3, 32, 48)
    logits = model(pixel_values).logits
    resized = model.resize(image_size=(32, 48), window_size=(4, 6))
    assert (resized.config.image_size, resized.config.window_size) == ((32, 48), (4, 6))
    assert resized(pixel_values).logits.isfinite().all()
    assert model.config.window_size == 4 and not resized.training
    assert torch.equal(model(pixel_values).logits, logits)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    same = model.resize()
    assert torch.equal(same(pixel_values).logits, logits)


def test_v2_goes_on_reading_offsets_in_its_trained_units(make_model):
    model = make_model(version=2, image_size=32, window_size=4)
    resized = model.resize(image_size=64, window_size=8)
    assert resized.config.pretrained_window_sizes == [[4, 4], [4, 4]]
    small = model.swin.encoder.layers[0].blocks[0].attention.relative_position_bias
    large = resized.swin.encoder.layers[0].blocks[0].attention.relative_position_bias
    assert large.window == (8, 8)
    torch.testing.assert_close(large((4, 4)), small((4, 4)))
    again = resized_config(resized.config, window_size=12)
    assert again.pretrained_window_sizes == [[4, 4], [4, 4]]


@pytest.mark.parametrize("version", [1, 2])
def test_loading_in_another_size_is_resizing(make_model, tmp_path, version):
    model = make_model(version=version, image_size=32, use_absolute_embeddings=True)
    model.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 48, 48)
    expected = model.resize(image_size=48, window_size=6)(pixel_values).logits
    sizes = {"image_size": 48, "window_size": 6}
    loaded, info = SwinHfForImageClassification.from_pretrained(tmp_path, output_loading_info=True, **sizes)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(loaded(pixel_values).logits, expected)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3, **sizes)
    torch.testing.assert_close(loaded(pixel_values).logits, expected)
    loaded.save_pretrained(tmp_path / "again")
    again = SwinHfForImageClassification.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(pixel_values).logits, expected)


@pytest.mark.parametrize("kind", ["TinyViT", "mixed"])
def test_a_window_for_each_stage_is_resized_and_loaded(make_model, tmp_path, kind):
    model = make_model(**KINDS[kind] | {"stage_windows": [3, 4], "stage_blocks": ["window", "window"]})
    model.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 48, 48)
    resized = model.resize(image_size=48, stage_windows=[6, [4, 2]])
    windows = [stage.blocks[0].window for stage in resized.swin.encoder.layers]
    assert windows == [(6, 6), (4, 2)] and resized.config.stage_windows == [6, [4, 2]]
    assert torch.equal(model.resize(stage_windows=[3, 4])(pixel_values).logits, model(pixel_values).logits)
    for auto in (SwinHfForImageClassification, AutoModelForImageClassification):
        loaded = auto.from_pretrained(tmp_path, image_size=48, stage_windows=[6, [4, 2]])
        torch.testing.assert_close(loaded(pixel_values).logits, resized(pixel_values).logits)
    with pytest.raises(ValueError, match=r"stage_windows must be given instead of window_size for stages of \[3, 4\]"):
        model.resize(window_size=5)
    with pytest.raises(ValueError, match="stage_windows must have one entry per stage"):
        model.resize(stage_windows=[3])


def test_loading_in_the_same_size_copies_nothing(make_model, tmp_path, monkeypatch):
    make_model(image_size=[16, 24]).save_pretrained(tmp_path)
    monkeypatch.setattr(SwinHfForImageClassification, "resize", None)
    AutoModelForImageClassification.from_pretrained(tmp_path, image_size=(16, 24), window_size=4)


def test_every_kind_of_model_can_be_resized(make_config):
    model = SwinHfForMaskedImageModeling(make_config(encoder_stride=4))
    assert model.swin.resize(window_size=2).embeddings.mask_token is not None
    assert model.resize(window_size=2)(torch.randn(1, 3, 16, 16)).reconstruction.shape == (1, 3, 16, 16)


def test_nonsense_sizes_are_refused(make_model):
    with pytest.raises(ValueError, match="window_size must be positive, got 0"):
        make_model().resize(window_size=0)


@pytest.mark.parametrize("auto", [False, True])
def test_a_quantized_checkpoint_keeps_its_sizes(make_model, tmp_path, auto):
    make_model(embed_dim=32).save_pretrained(tmp_path / "float")
    kind = AutoModelForImageClassification if auto else SwinHfForImageClassification
    quantization = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    loaded = kind.from_pretrained(tmp_path / "float", image_size=16, window_size=(4, 4), **quantization)
    assert loaded(torch.randn(1, 3, 16, 16)).logits.shape == (1, 3)
    loaded.save_pretrained(tmp_path / "quantized")
    for folder, options in ((tmp_path / "float", quantization), (tmp_path / "quantized", {})):
        for name, present in (("image_size", 16), ("window_size", 4)):
            with pytest.raises(
                ValueError, match=f"{name} must be {present}, that of .*, while its weights are quantized, got 24"
            ):
                kind.from_pretrained(folder, **{name: 24}, **options)
    with pytest.raises(ValueError, match="as its config makes them to be resized, got .*q_proj.weight of type Int8Tensor"):
        loaded.resize(24)


def test_a_quantized_segmenter_keeps_its_sizes(make_config, tmp_path):
    config = SwinHfUperNetConfig(
        backbone_config=make_config(embed_dim=32), use_auxiliary_head=False, hidden_size=16, num_labels=3
    )
    SwinHfForSemanticSegmentation(config).save_pretrained(tmp_path)
    quantization = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    SwinHfForSemanticSegmentation.from_pretrained(tmp_path, image_size=16, **quantization)
    with pytest.raises(ValueError, match="image_size must be 16, that of .*, while its weights are quantized, got 24"):
        SwinHfForSemanticSegmentation.from_pretrained(tmp_path, image_size=24, **quantization)


def test_biases_of_distances_stay_biases_of_distances():
    distances = torch.randn(7, 5, 2)
    rows, columns = torch.arange(-6, 7).abs(), torch.arange(-4, 5).abs()
    table = distances[rows[:, None], columns].reshape(-1, 2)
    for new_window in ((6, 6), (12, 5), (3, 9)):
        resized = bias_map(resize_bias_table(table, (7, 5), new_window), new_window)
        assert torch.equal(resized, resized.flip(0)) and torch.equal(resized, resized.flip(1))
        image = bias_map(table, (7, 5)).permute(2, 0, 1)[None]
        size = [2 * side - 1 for side in new_window]
        expected = torch.nn.functional.interpolate(image, size=size, mode="bicubic")[0].permute(1, 2, 0)
        torch.testing.assert_close(resized, expected, atol=1e-5, rtol=1e-5)


def test_a_config_without_windows_for_each_stage_asks_for_one_everywhere(make_model, tmp_path):
    model = make_model(**TINY_VIT | {"stage_windows": [3, 4]})
    model.save_pretrained(tmp_path)
    config = SwinHfConfig.from_pretrained(tmp_path)
    config.stage_windows, config.window_size = None, 3
    loaded = SwinHfForImageClassification.from_pretrained(tmp_path, config=config)
    assert [loaded.config.stage_window(stage) for stage in (0, 1)] == [(3, 3), (3, 3)]
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(loaded(images).logits, model.resize(stage_windows=[3, 3])(images).logits)
    config.stage_windows = [(3, 3), (2, 5)]
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, config=config)
    assert loaded.config.stage_window(1) == (2, 5)


def test_frozen_weights_stay_frozen(make_model):
    model = make_model()
    model.swin.embeddings.requires_grad_(False)
    resized = model.resize(32, window_size=3)
    frozen = {name for name, weight in resized.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("swin.embeddings.")}
