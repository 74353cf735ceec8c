"""What a model promises beside its numbers: purity, any size, windows and masks, reload, heads."""

import pytest
import torch
from conftest import KINDS

from swin_hf.windows import attention_mask, relative_position_index, window_partition, window_reverse


def test_forward_is_pure_across_sizes(make_model):
    model = make_model(image_size=64)
    small, large = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first = model(large).logits
        model(small)
        last = model(large).logits
    assert torch.equal(first, last)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(5, 7), (16, 40), (1, 1), (33, 9)])
def test_any_size_gives_finite_logits(make_model, kind, size):
    model = make_model(**KINDS[kind])
    output = model(torch.randn(2, 3, *size), output_hidden_states=True, output_attentions=True)
    assert output.logits.isfinite().all()
    grid = [-(-side // model.config.patch_size) for side in size]
    assert [tuple(own.shape[2:]) for own in output.reshaped_hidden_states[:2]] == [
        tuple(grid),
        tuple(-(-side // 2) for side in grid),
    ]
    with_windows = sum(depth for stage, depth in enumerate(model.config.depths) if not model.config.is_convolutional(stage))
    assert len(output.attentions) == with_windows


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


def test_convolutional_blocks_have_widths_of_their_own(make_model):
    changes = {"stage_blocks": ["conv", "window"], "mbconv_ratio": 3}
    assert make_model(**changes).swin.encoder.layers[0].blocks[0].expand.conv.out_channels == 48
    model = make_model(**changes, block_mlp_dim=[[20], [40, 8]], block_num_heads=[[0], [4, 2]], block_head_dim=[[0], [8, 8]])
    assert model.swin.encoder.layers[0].blocks[0].depthwise.conv.weight.shape == (20, 1, 3, 3)
    assert model(torch.randn(1, 3, 16, 16)).logits.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_channels_are_refused(make_model, kind):
    with pytest.raises(ValueError, match=r"pixel_values must have shape \(batch, 3, height, width\)"):
        make_model(**KINDS[kind])(torch.zeros(1, 1, 16, 16))


def test_attentions_of_every_block_sum_to_one(make_model):
    attentions = make_model()(torch.randn(1, 3, 16, 16), output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(4, 2, 16, 16), (1, 4, 16, 16), (1, 4, 16, 16)]
    for weights in attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
