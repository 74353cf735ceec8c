"""Window attention against a brute-force version that knows nothing of windows, rolls or masks."""

import math

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from swin_hf.layers_swin_hf import SwinHfBlock, eager_attention_forward
from swin_hf.tokens_swin_hf import CPU_TOKENS, split_for_cpu
from swin_hf.windows import shifted_token_order, shifted_token_places


def brute_force_attention(block: SwinHfBlock, feature_map: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
    """Attention of a (H, W, C) map, token by token: two tokens mix if the grid, moved by `shift`, does not part them."""
    H, W, _ = feature_map.shape
    attention, (wh, ww) = block.attention, block.window
    places = [(row, column) for row in range(H) for column in range(W)]
    cells = [((row - shift[0]) // wh, (column - shift[1]) // ww) for row, column in places]
    tokens = feature_map.reshape(H * W, -1)
    query = attention.q_proj(tokens).view(H * W, -1, attention.head_dim)
    key = attention.k_proj(tokens).view(H * W, -1, attention.head_dim)
    value = attention.v_proj(tokens).view(H * W, -1, attention.value_head_dim)
    scale = torch.tensor(attention.head_dim**-0.5)
    if block.post_norm:
        query, key = torch.nn.functional.normalize(query, dim=-1), torch.nn.functional.normalize(key, dim=-1)
        scale = attention.logit_scale.clamp(max=math.log(100)).exp()[:, 0]
    bias = attention.relative_position_bias((wh, ww))[0].view(-1, wh, ww, wh, ww)
    attended = []
    for number, (row, column) in enumerate(places):
        mates = [other for other in range(H * W) if cells[other] == cells[number]]
        offsets = [(row - places[mate][0], column - places[mate][1]) for mate in mates]
        biases = [bias[:, max(down, 0), max(right, 0), max(-down, 0), max(-right, 0)] for down, right in offsets]
        scores = torch.einsum("hd,nhd->hn", query[number], key[mates]) * scale + torch.stack(biases, dim=1)
        attended.append(torch.einsum("hn,nhd->hd", scores.softmax(dim=-1), value[mates]).flatten())
    return attention.o_proj(torch.stack(attended)).view(H, W, -1)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("size", "window", "shifted"),
    [
        ((8, 8), 4, False),
        ((8, 12), 4, True),
        ((9, 7), 4, False),
        ((9, 7), 4, True),
        ((10, 9), [4, 3], True),
        ((3, 9), 4, True),
    ],
)
def test_attention_equals_brute_force(make_model, version, size, window, shifted):
    model = make_model(
        version=version, window_size=window, image_size=32, mask_padding=True, depths=[2], num_heads=[2],
        block_value_head_dim=[[8, 5]],
    )  # fmt: skip
    block = model.swin.encoder.layers[0].blocks[int(shifted)]
    feature_map = torch.randn(2, *size, 16)
    attended, _ = block.attend(feature_map, output_attentions=False)
    shift = (block.window[0] // 2, block.window[1] // 2)
    if not shifted or size[0] <= block.window[0] or size[1] <= block.window[1]:
        shift = (0, 0)
    attended_to = block.layernorm_before(feature_map) if version == 1 else feature_map
    for image, result in zip(attended_to, attended):
        torch.testing.assert_close(result, brute_force_attention(block, image, shift), atol=1e-5, rtol=1e-5)


def test_padding_takes_part_only_without_mask_padding(make_model):
    feature_map = torch.randn(1, 5, 5, 16)
    masked, plain = (make_model(mask_padding=value).swin.encoder.layers[0].blocks[0] for value in (True, False))
    plain.load_state_dict(masked.state_dict())
    first, second = (block.attend(feature_map, False)[0] for block in (masked, plain))
    torch.testing.assert_close(first[:, :4, :4], second[:, :4, :4])  # a window without padding
    assert (first[:, 4:] - second[:, 4:]).abs().max() > 1e-3


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_parts_for_the_cpu_add_up(make_model, monkeypatch, version, attention):
    model = make_model(version=version, image_size=32)
    model.set_attn_implementation(attention)
    pixel_values = torch.randn(5, 3, 32, 32)

    def logits_and_gradients():
        model.zero_grad()
        with torch.no_grad():  # with gradients, a CPU computes attention in plain matrix products whatever is asked for
            inferred = model(pixel_values).logits
        logits = model(pixel_values).logits
        logits.sum().backward()
        return [inferred, logits, *(parameter.grad.clone() for parameter in model.parameters())]

    whole = logits_and_gradients()
    monkeypatch.setattr("swin_hf.tokens_swin_hf.CPU_TOKENS", 100)
    assert len(split_for_cpu(torch.zeros(5 * 16, 1), tokens_per_row=16)) > 1  # windows of the first stage
    for part, one in zip(logits_and_gradients(), whole, strict=True):
        torch.testing.assert_close(part, one, atol=1e-4, rtol=1e-4)


def test_the_backend_is_the_one_asked_for_where_it_is_faster(make_model, monkeypatch):
    model, pixel_values = make_model(), torch.randn(1, 3, 16, 16)
    model.set_attn_implementation("sdpa")
    used = []

    def spy(name, attention):
        return lambda *args, **kwargs: used.append(name) or attention(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", spy("sdpa", ALL_ATTENTION_FUNCTIONS["sdpa"]))
    monkeypatch.setattr("swin_hf.layers_swin_hf.eager_attention_forward", spy("eager", eager_attention_forward))
    with torch.no_grad():
        model(pixel_values)
    assert used == ["sdpa"] * 3
    used.clear()
    model(pixel_values)
    assert used == ["eager"] * 3  # on a CPU PyTorch has no fused kernel with a gradient for the bias


def test_parts_hold_whole_groups():
    rows = torch.zeros(30, 1)
    assert [len(part) for part in split_for_cpu(rows, tokens_per_row=CPU_TOKENS // 4, group=6)] == [6] * 5
    assert [len(part) for part in split_for_cpu(rows, tokens_per_row=CPU_TOKENS // 10)] == [30]  # in training
    with torch.no_grad():
        assert [len(part) for part in split_for_cpu(rows)] == [30]
        assert [len(part) for part in split_for_cpu(rows, tokens_per_row=CPU_TOKENS // 10)] == [15, 15]
    assert split_for_cpu(rows.to("meta"), tokens_per_row=10**6)[0].shape == (30, 1)


def test_order_of_shifted_windows_by_hand():
    # A 4 x 4 map, windows of 2 x 2, moved by one: the first window holds tokens 5, 6, 9, 10.
    order = shifted_token_order(4, 4, (2, 2), (1, 1))
    assert order.tolist() == [5, 6, 9, 10, 7, 4, 11, 8, 13, 14, 1, 2, 15, 12, 3, 0]
    assert order[shifted_token_places(4, 4, (2, 2), (1, 1))].tolist() == list(range(16))
