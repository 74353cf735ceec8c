"""The model against the stock implementation of transformers, and what a model promises: purity, reload, any size."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, SwinConfig, SwinForImageClassification

from swin_hf import SwinHfConfig, SwinHfForImageClassification, SwinHfModel
from swin_hf.losses_swin_hf import classification_loss
from swin_hf.windows import attention_mask, relative_position_index, window_partition, window_reverse

# Sizes at which stock itself is right: no map smaller than a window.
PARITY_CASES = {
    "shifted windows": {"image_size": 64, "patch_size": 4, "window_size": 4, "depths": [2, 2, 2], "num_heads": [2, 4, 4]},
    "one stage": {"image_size": 32, "patch_size": 4, "window_size": 4, "depths": [3], "num_heads": [3]},
    "padded windows": {"image_size": 56, "patch_size": 4, "window_size": 5, "depths": [2, 2], "num_heads": [2, 2]},
    "padded patches": {"image_size": 50, "patch_size": 4, "window_size": 4, "depths": [2, 1], "num_heads": [2, 2]},
    "positions, no qkv bias": {
        "image_size": 32, "patch_size": 2, "window_size": 4, "depths": [2, 2], "num_heads": [2, 4],
        "use_absolute_embeddings": True, "qkv_bias": False, "hidden_act": "relu", "mlp_ratio": 2.5,
    },
    "rectangle": {"image_size": [32, 64], "patch_size": [4, 2], "window_size": 4, "depths": [2, 2], "num_heads": [2, 4]},
}  # fmt: skip


def stock_and_ours(**config) -> tuple[SwinForImageClassification, SwinHfForImageClassification]:
    config = {"embed_dim": 24, "num_labels": 5, "drop_path_rate": 0.0, **config}
    stock, ours = SwinForImageClassification(SwinConfig(**config)), SwinHfForImageClassification(SwinHfConfig(**config))
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    ours.load_state_dict(stock.state_dict())
    return stock.eval(), ours.eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case", PARITY_CASES)
def test_outputs_and_gradients_equal_stock(case, attention):
    stock, ours = stock_and_ours(**PARITY_CASES[case])
    stock.set_attn_implementation(attention)
    ours.set_attn_implementation(attention)
    pixel_values = torch.randn(2, 3, *ours.config.image_height_width)
    labels = torch.tensor([0, 3])
    expected = stock(pixel_values, labels=labels, output_hidden_states=True)
    actual = ours(pixel_values, labels=labels, output_hidden_states=True)

    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=0, atol=1e-5)
    assert len(actual.hidden_states) == len(expected.hidden_states) == len(ours.config.depths) + 1
    for ours_map, stock_map in zip(actual.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours_map, stock_map, rtol=0, atol=1e-5)
    for ours_map, stock_map in zip(actual.reshaped_hidden_states, expected.reshaped_hidden_states, strict=True):
        torch.testing.assert_close(ours_map, stock_map, rtol=0, atol=1e-5)

    expected.loss.backward()
    actual.loss.backward()
    stock_gradients = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, stock_gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_forward_is_pure_across_sizes(make_model):
    model = make_model(image_size=64)
    small, large = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first = model(large).logits
        model(small)
        last = model(large).logits
    assert torch.equal(first, last)


@pytest.mark.parametrize("size", [(5, 7), (16, 40), (1, 1), (33, 9)])
def test_any_size_gives_finite_logits(make_model, size):
    assert make_model()(torch.randn(2, 3, *size)).logits.isfinite().all()


def test_small_map_uses_the_middle_of_the_bias_table():
    # In a 1 x 2 window the offsets are -1, 0, 1 along the columns; in a 3 x 3 table they stand around its middle, row 12.
    assert relative_position_index((1, 2), (3, 3)).tolist() == [12, 11, 13, 12]


def test_window_reverse_undoes_window_partition():
    feature_map = torch.randn(2, 6, 8, 3)
    windows = window_partition(feature_map, (3, 4))
    assert torch.equal(windows[1].view(3, 4, 3), feature_map[0, :3, 4:])
    assert torch.equal(window_reverse(windows, (3, 4), 6, 8), feature_map)


def test_mask_allows_exactly_the_pairs_that_were_neighbours():
    # Brute force: after a roll of a 4 x 4 map by 1, two tokens of a window may mix if both kept their side of the seam.
    mask = attention_mask((4, 4), (2, 2), (1, 1), False)
    seam = [[(row == 3, column == 3) for column in range(4)] for row in range(4)]
    for window, (top, left) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        tokens = [seam[top + row][left + column] for row in range(2) for column in range(2)]
        expected = [[a == b for b in tokens] for a in tokens]
        assert mask[window].tolist() == expected


def test_per_block_widths_shape_every_layer(make_model):
    model = make_model(block_num_heads=[[1], [3, 2]], block_head_dim=[[8], [8, 4]], block_mlp_dim=[[24], [40, 8]])
    block = model.swin.encoder.layers[1].blocks[0]
    assert block.attention.q_proj.weight.shape == (24, 32)
    assert block.attention.o_proj.weight.shape == (32, 24)
    assert block.mlp.fc1.out_features == 40
    assert model(torch.randn(1, 3, 16, 16)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": [2]}, "num_heads must have one entry per stage"),
        ({"num_heads": [2, 5]}, r"num_heads\[1\] must divide the 32 channels"),
        ({"depths": [1, 0]}, "depths must hold at least one block"),
        ({"block_mlp_dim": [[8], [8]]}, "block_mlp_dim must have one entry per block"),
        ({"block_num_heads": [[1], [1, 0]]}, "block_num_heads must be positive"),
        ({"patch_size": 0}, "patch_size must be positive"),
        ({"weight_init": "xavier"}, "weight_init must be 'normal' or 'fan_in'"),
    ],
)
def test_bad_config_is_refused_by_name(make_model, changes, message):
    with pytest.raises(Exception, match=message):
        make_model(**changes)


def test_wrong_channels_are_refused(make_model):
    with pytest.raises(ValueError, match=r"pixel_values must have shape \(batch, 3, height, width\)"):
        make_model()(torch.zeros(1, 1, 16, 16))


def test_auto_classes_know_the_models(checkpoint):
    assert type(AutoConfig.from_pretrained(checkpoint)) is SwinHfConfig
    assert type(AutoModel.from_pretrained(checkpoint)) is SwinHfModel
    assert type(AutoModelForImageClassification.from_pretrained(checkpoint)) is SwinHfForImageClassification


def test_reload_in_a_fresh_process_gives_equal_logits(make_model, tmp_path):
    model = make_model(block_num_heads=[[1], [3, 2]], block_head_dim=[[8], [8, 8]], block_mlp_dim=[[24], [40, 8]])
    pixel_values = torch.randn(2, 3, 16, 16)
    model.save_pretrained(tmp_path)
    torch.save((pixel_values, model(pixel_values).logits), tmp_path / "expected.pt")
    script = (
        "import sys, torch, swin_hf; from transformers import AutoModelForImageClassification as A;"
        "x, expected = torch.load(sys.argv[1] + '/expected.pt'); model = A.from_pretrained(sys.argv[1]);"
        "sys.exit(not torch.equal(model(x).logits, expected))"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == 0


def test_fan_in_initialisation_scales_with_the_inputs():
    model = SwinHfForImageClassification(SwinHfConfig(embed_dim=64, num_heads=[2, 4, 8, 16], weight_init="fan_in"))
    fc2 = model.swin.encoder.layers[0].blocks[0].mlp.fc2.weight  # 256 inputs
    assert fc2.std().item() == pytest.approx(1 / 16, rel=0.05)


def test_float_labels_are_probabilities():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    soft = torch.nn.functional.one_hot(labels, 3).float()
    torch.testing.assert_close(classification_loss(logits, soft, None), classification_loss(logits, labels, None))


def test_attentions_of_every_block_sum_to_one(make_model):
    attentions = make_model()(torch.randn(1, 3, 16, 16), output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(4, 2, 16, 16), (1, 4, 16, 16), (1, 4, 16, 16)]
    for weights in attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
