"""Pruning: importance by hand, pruned models equal to the dense one with zeros, and equal logits after reloading."""

import copy

import pytest
import torch
from conftest import KINDS, TINY_VIT

from distill.compress.pruning import (
    BlockImportance,
    PruningError,
    PruningPlan,
    blocks_of,
    make_plan,
    measure_importance,
    prune,
)
from swin_hf import SwinHfForImageClassification

PLAN = PruningPlan(heads=[[1], [0, 2, 3], [1]], mlp_channels=[[*range(3, 19)], [*range(0, 128, 2)], [*range(120)]])


def test_importance_is_the_taylor_term_of_all_coupled_weights(make_model):
    model = make_model(drop_path_rate=0.0)
    pixel_values, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    importance = measure_importance(model, [model(pixel_values, labels=labels).loss])[1]
    model(pixel_values, labels=labels).loss.backward()

    def taylor(layer, dim):
        return (layer.weight * layer.weight.grad).abs().sum(dim)

    block = blocks_of(model)[1]
    channels = taylor(block.mlp.fc1, 1) + taylor(block.mlp.fc2, 0)
    torch.testing.assert_close(importance.mlp_channels, channels / channels.mean())
    attention = block.attention
    channels = sum(taylor(layer, 1) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    heads = (channels + taylor(attention.o_proj, 0)).view(4, -1).sum(1)
    torch.testing.assert_close(importance.heads, heads / heads.mean())


@pytest.mark.parametrize("version", [1, 2])
def test_pruned_model_equals_dense_model_with_zeros(make_model, version):
    model = make_model(version=version)
    zeroed = copy.deepcopy(model)
    for block, heads, channels in zip(blocks_of(zeroed), PLAN.heads, PLAN.mlp_channels):
        d = block.attention.head_dim
        for head in set(range(block.attention.q_proj.out_features // d)) - set(heads):
            block.attention.o_proj.weight.data[:, head * d : (head + 1) * d] = 0
        gone = sorted(set(range(block.mlp.fc1.out_features)) - set(channels))
        block.mlp.fc2.weight.data[:, gone] = 0
    before = copy.deepcopy(model.state_dict())
    pruned = prune(model, PLAN)
    pixel_values = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(pruned(pixel_values).logits, zeroed(pixel_values).logits, atol=1e-5, rtol=0)
    assert pruned.config.block_num_heads == [[1], [3, 1]]
    assert pruned.config.block_mlp_dim == [[16], [64, 120]]
    assert pruned.num_parameters() < model.num_parameters()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_importance_in_an_inverted_residual_is_that_of_its_pointwise_layers(make_model):
    model = make_model(**TINY_VIT, drop_path_rate=0.0)
    pixel_values, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    importance = measure_importance(model, [model(pixel_values, labels=labels).loss])[0]
    model(pixel_values, labels=labels).loss.backward()
    block = blocks_of(model)[0]
    expand, project = block.expand.conv.weight, block.project.conv.weight
    channels = (expand * expand.grad).abs().sum((1, 2, 3)) + (project * project.grad).abs().sum((0, 2, 3))
    torch.testing.assert_close(importance.mlp_channels, channels / channels.mean())
    assert len(importance.heads) == 0


@pytest.mark.parametrize("kind", ["TinyViT", "mixed"])
def test_pruned_hybrid_equals_the_dense_one_with_zeros(make_model, tmp_path, kind):
    model = make_model(**KINDS[kind] | {"depths": [1, 1]})
    pixel_values, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    plan = make_plan(measure_importance(model, [model(pixel_values, labels=labels).loss]), 0.5, 0.4)
    zeroed = copy.deepcopy(model)
    for block, heads, channels in zip(blocks_of(zeroed), plan.heads, plan.mlp_channels):
        if hasattr(block, "project"):
            gone = sorted(set(range(block.project.conv.in_channels)) - set(channels))
            block.project.conv.weight.data[:, gone] = 0
            assert not heads and gone
            continue
        d = block.attention.head_dim
        for head in set(range(block.attention.q_proj.out_features // d)) - set(heads):
            block.attention.o_proj.weight.data[:, head * d : (head + 1) * d] = 0
        block.mlp.fc2.weight.data[:, sorted(set(range(block.mlp.fc1.out_features)) - set(channels))] = 0
    pruned = prune(model, plan)
    expected = zeroed(pixel_values).logits
    torch.testing.assert_close(pruned(pixel_values).logits, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    pruned.save_pretrained(tmp_path)
    reloaded = SwinHfForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(reloaded(pixel_values).logits, pruned(pixel_values).logits)


def test_pruned_model_reloads_with_equal_logits(make_model, tmp_path):
    pruned = prune(make_model(), PLAN)
    pruned.save_pretrained(tmp_path)
    reloaded = SwinHfForImageClassification.from_pretrained(tmp_path)
    pixel_values = torch.randn(2, 3, 16, 16)
    assert torch.equal(reloaded(pixel_values).logits, pruned(pixel_values).logits)


def test_pruned_model_prunes_again(make_model):
    pruned = prune(make_model(), PLAN)
    twice = prune(pruned, PruningPlan(heads=[[0], [2], [0]], mlp_channels=[[*range(8)]] * 3))
    assert twice.config.block_num_heads == [[1], [1, 1]]
    assert twice(torch.randn(1, 3, 16, 16)).logits.isfinite().all()


def test_plan_drops_the_globally_least_important():
    importance = [
        BlockImportance(heads=torch.tensor([0.1, 2.0]), mlp_channels=torch.tensor([3.0] * 8 + [0.5] * 8)),
        BlockImportance(heads=torch.tensor([1.0, 0.9, 0.2, 3.0]), mlp_channels=torch.tensor([1.0] * 16)),
    ]
    plan = make_plan(importance, prune_heads=0.34, prune_mlp=0.25)
    assert plan.heads == [[1], [0, 1, 3]]
    assert plan.mlp_channels == [list(range(8)), list(range(16))]


def test_every_block_keeps_something():
    importance = [BlockImportance(heads=torch.tensor([0.1, 0.1]), mlp_channels=torch.ones(16)) for _ in range(2)]
    assert [len(kept) for kept in make_plan(importance, 0.5, 0.5).heads] == [1, 1]
    with pytest.raises(PruningError, match=r"prune_heads must leave something in every block: at most 0\.50 of the 4"):
        make_plan(importance, prune_heads=0.75, prune_mlp=0.0)


def test_a_model_without_attention_is_pruned(make_model):
    model = make_model(stage_blocks=["conv", "conv"])
    losses = (model(torch.randn(2, 3, 16, 16)).logits.sum() for _ in range(2))
    importance = measure_importance(model, losses)
    plan = make_plan(importance, 0.4, 0.4)
    shares = plan.removed_shares(importance)
    assert shares["removed_heads"] == 0 and shares["removed_mlp"] == pytest.approx(0.4, abs=0.02)
    assert prune(model, plan)(torch.randn(1, 3, 16, 16)).logits.shape == (1, 3)
