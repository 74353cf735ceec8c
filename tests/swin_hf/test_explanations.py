"""Explanations against what they promise: completeness, plain attention rollout, and worked gradients."""

import pytest
import torch
from conftest import KINDS, TINY, TINY_VIT
from torch import nn

from swin_hf import SwinHfForSemanticSegmentation, SwinHfUperNetConfig
from swin_hf.explanations import ExplanationError, attention_rollout, class_maps, grad_cam

CLASSIFIERS = KINDS | {
    "batch norm": {"norm": "batch"},
    "RMSNorm": {"norm": "rms"},
    "RMSNorm after pooling": {"norm": "rms", "norm_after_pooling": True},
    "batch norm after pooling": {"norm": "batch", "norm_after_pooling": True},
    "pruned": {"block_num_heads": [[1], [3, 2]], "block_head_dim": [[8], [8, 8]], "stage_dims": [16, 24]},
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("size", [(32, 32), (36, 20)])
def test_class_maps_are_complete(make_model, kind, size):
    model, images = make_model(**CLASSIFIERS[kind]), torch.randn(2, 3, *size)
    maps, logits = class_maps(model, images), model(images).logits
    torch.testing.assert_close(maps.mean(dim=(2, 3)), logits, atol=1e-5, rtol=1e-5)
    assert maps.shape[:2] == (2, 3) and maps.std(dim=(2, 3)).min() > 0


def test_class_maps_are_those_of_single_places(make_model):
    """With one token alone, a classifier that normalises first says what its place adds."""
    model, images = make_model(), torch.randn(1, 3, 32, 32)
    tokens = model.swin(images).last_hidden_state[0]
    torch.testing.assert_close(class_maps(model, images)[0].flatten(1).T, model.classifier(tokens))


def plain_rollout(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Products of whole attention matrices, for one stage whose window spans the map."""
    total = torch.eye(model.swin(images).last_hidden_state.shape[1])
    for weights in model.swin(images, output_attentions=True).attentions:
        attention = weights.mean(dim=1) + torch.eye(weights.shape[-1])
        total = attention / attention.sum(dim=-1, keepdim=True) @ total
    return total.mean(dim=1)


@pytest.mark.parametrize("version", [1, 2])
def test_rollout_is_the_plain_one_if_one_window_spans_the_map(make_model, version):
    model = make_model(version=version, depths=[3], num_heads=[2], window_size=8, image_size=16)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(attention_rollout(model, images).flatten(1), plain_rollout(model, images))


@pytest.mark.parametrize("size", [(16, 16), (22, 18)])
def test_rollout_through_shifted_windows_is_that_of_whole_matrices(make_model, size):
    """Whole attention matrices, filled in token by token: windows, shift, padding, then the next stage."""
    model = make_model(depths=[2, 2], window_size=3, mask_padding=True)
    images = torch.randn(1, 3, *size)
    attentions, sides = list(model.swin(images, output_attentions=True).attentions), [side // 2 for side in size]
    total, stages = None, []
    for number, stage in enumerate(model.swin.encoder.layers):
        H, W = sides
        for block in stage.blocks:
            window, shift = block.fit_window(H, W)
            weights, matrix = attentions.pop(0).mean(dim=1), torch.zeros(H * W, H * W)
            padded_h, padded_w = (-(-side // own) * own for side, own in zip((H, W), window))
            moved = shift or (0, 0)
            for n, of_window in enumerate(weights):
                top, left = n // (padded_w // window[1]) * window[0], n % (padded_w // window[1]) * window[1]
                places = [
                    ((top + r + moved[0]) % padded_h, (left + c + moved[1]) % padded_w)
                    for r in range(window[0])
                    for c in range(window[1])
                ]
                for q, (row, column) in enumerate(places):
                    for k, (other_row, other_column) in enumerate(places):
                        if row < H and column < W and other_row < H and other_column < W:
                            matrix[row * W + column, other_row * W + other_column] = of_window[q, k]
            matrix = matrix / matrix.sum(dim=1, keepdim=True)
            stages.append((matrix + torch.eye(H * W)) / 2)
        if number == 0:
            sides = [-(-side // 2) for side in sides]
            merge = torch.zeros(sides[0] * sides[1], H * W)
            for row in range(H):
                for column in range(W):
                    merge[row // 2 * sides[1] + column // 2, row * W + column] = 1
            stages.append(merge / merge.sum(dim=1, keepdim=True))
    for matrix in stages:
        total = matrix if total is None else matrix @ total
    found = attention_rollout(model, images)
    torch.testing.assert_close(found.flatten(1), total.mean(dim=0, keepdim=True))
    assert found.sum().item() == pytest.approx(1)


def test_rollout_of_a_hybrid_begins_where_windows_do(make_model):
    model = make_model(
        **TINY_VIT | {"depths": [1, 1, 2], "num_heads": [1, 2, 2], "stage_blocks": ["conv", "window", "window"]}
    )
    found = attention_rollout(model, torch.randn(2, 3, 64, 48))
    assert found.shape == (2, 8, 6) and torch.allclose(found.sum(dim=(1, 2)), torch.ones(2))
    with pytest.raises(ExplanationError, match="must have windows for attention rollout"):
        attention_rollout(make_model(stage_blocks=["conv", "conv"]), torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_grad_cam_by_hand(make_model, kind):
    """Of the last map it is the gradient of the logit, spelled out by finite differences of each channel's mean."""
    model = make_model(**KINDS[kind]).double()
    images, classes = torch.randn(1, 3, 32, 32, dtype=torch.float64), torch.tensor([2])
    tokens = model.swin.encode(images).stage_maps[-1].detach()

    def logit(given: torch.Tensor) -> torch.Tensor:
        norm = model.swin.layernorm
        pooled = norm(given.mean(dim=(1, 2))) if model.config.norm_after_pooling else norm(given).mean(dim=(1, 2))
        return model.classifier(pooled)[0, 2]

    step, slopes = 1e-6, []
    for channel in range(tokens.shape[-1]):
        moved = tokens.clone()
        moved[..., channel] += step  # in every place: the sum of the gradients
        slopes.append((logit(moved) - logit(tokens)) / step / tokens[..., 0].numel())
    expected = (tokens * torch.stack(slopes)).sum(dim=-1).relu()
    torch.testing.assert_close(grad_cam(model, images, classes), expected, atol=1e-6, rtol=1e-3)


def test_grad_cam_takes_the_likeliest_class_and_any_stage(make_model):
    model, images = make_model().requires_grad_(False), torch.randn(2, 3, 32, 32)
    likeliest = model(images).logits.argmax(dim=1)
    assert torch.equal(grad_cam(model, images), grad_cam(model, images, likeliest))
    assert grad_cam(model, images, stage=0).shape == (2, 16, 16)
    for stage in (2, -3):
        with pytest.raises(ExplanationError, match=f"stage must be one of 0 to 1, got {stage}"):
            grad_cam(model, images, stage=stage)
    with pytest.raises(ExplanationError, match="must have classes to be explained"):
        grad_cam(make_model(num_labels=0), images)


@pytest.mark.parametrize("head", ["uper", "light"])
def test_segmenters_are_explained(head):
    backbone = TINY | {"out_features": ["stage1", "stage2"], "weight_init": "fan_in"}
    config = SwinHfUperNetConfig(
        backbone_config=backbone, decode_head=head, hidden_size=8, use_auxiliary_head=False, num_labels=3
    )
    model, images = SwinHfForSemanticSegmentation(config).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(class_maps(model, images), model(images).logits)
    likeliest = model(images).logits.argmax(dim=1).flatten(1).mode().values
    found = grad_cam(model, images, likeliest)
    assert found.shape == (2, 8, 8) and found.min() >= 0 and grad_cam(model, images).shape == (2, 8, 8)
    assert attention_rollout(model, images).sum().item() == pytest.approx(2)
