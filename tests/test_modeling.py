"""What a model promises beside its numbers: purity, any size, windows and masks, reload, heads."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from swin_hf import SwinHfConfig, SwinHfForImageClassification, SwinHfModel
from swin_hf.losses_swin_hf import classification_loss
from swin_hf.windows import attention_mask, relative_position_index, window_partition, window_reverse


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
