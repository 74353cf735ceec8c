"""Importance: torch-pruning's criteria by hand over all coupled weights, and blocks by what the outputs lose without them."""

import copy

import pytest
import torch
from conftest import KINDS, TINY_VIT

from distill.compress.channels import DOWNSAMPLE, HEADS, HIDDEN, SCORES, STAGE, STEM, VALUES, Group, blocks_of
from distill.pruning.importance import ImportanceError, measure_blocks, measure_importance

PIXELS, LABELS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 0])
OF = {"stage": 1, "block": 0}


def loss_of(model, number=None):
    own = slice(None) if number is None else slice(number, number + 1)
    return model(PIXELS[own], labels=LABELS[own]).loss


def with_mean_one(scores):
    return scores / scores.mean()


def taylor(layer, dim):
    return (layer.weight * layer.weight.grad).abs().sum([axis for axis in range(layer.weight.ndim) if axis != dim])


@pytest.mark.parametrize("version", [1, 2])
def test_taylor_scores_are_those_of_all_coupled_weights(make_model, version):
    model = make_model(drop_path_rate=0.0, version=version)
    found = measure_importance(model, [loss_of(model)])
    loss_of(model).backward()
    block = blocks_of(model)[1][0]
    attention, mlp = block.attention, block.mlp
    expected = taylor(mlp.fc1, 0) + taylor(mlp.fc2, 1)
    torch.testing.assert_close(found[Group(kind=HIDDEN, **OF)], with_mean_one(expected))
    scores = (taylor(attention.q_proj, 0) + taylor(attention.k_proj, 0)).view(4, 8)
    torch.testing.assert_close(found[Group(kind=SCORES, **OF)], with_mean_one(scores))
    values = (taylor(attention.v_proj, 0) + taylor(attention.o_proj, 1)).view(4, 8)
    torch.testing.assert_close(found[Group(kind=VALUES, **OF)], with_mean_one(values))
    torch.testing.assert_close(found[Group(kind=HEADS, **OF)], with_mean_one((scores + values).sum(1)))


def test_a_stage_is_scored_by_all_that_writes_or_reads_it(make_model):
    model = make_model(drop_path_rate=0.0)
    found = measure_importance(model, [loss_of(model)])[Group(kind=STAGE, stage=0)]
    loss_of(model).backward()
    stage = model.swin.encoder.layers[0]
    attention, mlp = stage.blocks[0].attention, stage.blocks[0].mlp
    expected = taylor(model.swin.embeddings.patch_embeddings.projection, 0)
    expected += sum(taylor(layer, 1) for layer in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.fc1))
    expected += taylor(attention.o_proj, 0) + taylor(mlp.fc2, 0)
    joined = taylor(stage.downsample.reduction, 1)  # the four tokens, each of 16 channels
    torch.testing.assert_close(found, with_mean_one(expected + joined.view(4, 16).sum(0)))


def test_convolutions_are_scored_by_their_pointwise_and_dense_layers(make_model):
    model = make_model(**TINY_VIT, drop_path_rate=0.0)
    pixels = torch.randn(4, 3, 32, 32)
    found = measure_importance(model, [model(pixels, labels=LABELS).loss])
    model(pixels, labels=LABELS).loss.backward()
    block, down = blocks_of(model)[0][0], model.swin.encoder.layers[0].downsample
    expected = taylor(block.expand.conv, 0) + taylor(block.project.conv, 1)
    torch.testing.assert_close(found[Group(kind=HIDDEN, stage=0)], with_mean_one(expected))
    expected = taylor(down.expand.conv, 0) + taylor(down.project.conv, 1)
    torch.testing.assert_close(found[Group(kind=DOWNSAMPLE, stage=0)], with_mean_one(expected))
    first, second = model.swin.embeddings.patch_embeddings.convs
    torch.testing.assert_close(found[Group(kind=STEM, stage=0)], with_mean_one(taylor(first.conv, 0) + taylor(second.conv, 1)))


def test_taylor_scores_are_averaged_over_the_losses(make_model):
    model, group = make_model(drop_path_rate=0.0), Group(kind=HIDDEN, **OF)
    both = measure_importance(model, (loss_of(model, number) for number in (0, 1)))[group]
    fc1, fc2 = blocks_of(model)[1][0].mlp.fc1, blocks_of(model)[1][0].mlp.fc2
    total = 0
    for number in (0, 1):
        model.zero_grad()
        loss_of(model, number).backward()
        total = total + taylor(fc1, 0) + taylor(fc2, 1)
    torch.testing.assert_close(both, with_mean_one(total))


def test_the_hessian_is_that_of_all_losses_and_not_of_the_last(make_model):
    model, group = make_model(drop_path_rate=0.0), Group(kind=HIDDEN, **OF)
    found = measure_importance(model, (loss_of(model, number) for number in range(4)), "hessian")[group]
    fc1, fc2 = blocks_of(model)[1][0].mlp.fc1, blocks_of(model)[1][0].mlp.fc2
    squares = [0, 0]
    for number in range(4):
        model.zero_grad()
        loss_of(model, number).backward()
        squares = [old + layer.weight.grad.square() for old, layer in zip(squares, (fc1, fc2))]
    expected = (fc1.weight.square() * squares[0]).sum(1) + (fc2.weight.square() * squares[1]).sum(0)
    torch.testing.assert_close(found, with_mean_one(expected))


def test_frozen_stages_are_scored_like_others(make_model):
    model = make_model(drop_path_rate=0.0)
    expected = measure_importance(model, (loss_of(model) for _ in range(1)))
    frozen = [*model.swin.embeddings.parameters(), *model.swin.encoder.layers[0].parameters()]
    for weight in frozen:
        weight.requires_grad_(False)
    found = measure_importance(model, (loss_of(model) for _ in range(1)))
    assert all(torch.equal(found[group], scores) for group, scores in expected.items())
    assert {weight for weight in model.parameters() if not weight.requires_grad} == set(frozen)


def test_magnitudes_need_no_losses(make_model):
    model = make_model()
    fc1, fc2 = blocks_of(model)[1][0].mlp.fc1, blocks_of(model)[1][0].mlp.fc2
    expected = with_mean_one(fc1.weight.square().sum(1) + fc2.weight.square().sum(0))
    torch.testing.assert_close(measure_importance(model, criterion="magnitude")[Group(kind=HIDDEN, **OF)], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_matters_by_what_the_outputs_lose_without_it(make_model, kind):
    model = make_model(**KINDS[kind] | {"depths": [1, 3]})
    pixels = torch.randn(3, 3, model.config.image_size, model.config.image_size)
    found = measure_blocks(model, [pixels])
    probabilities = model(pixels).logits.softmax(1)
    for (stage, number), divergence in found.items():
        without = copy.deepcopy(model)
        blocks = without.swin.encoder.layers[stage].blocks
        blocks[number] = torch.nn.Module()
        blocks[number].forward = lambda feature_map, output_attentions=False: (feature_map, None)
        other = without(pixels).logits.softmax(1)
        expected = (probabilities * (probabilities / other).log()).sum(1).mean()
        torch.testing.assert_close(torch.tensor(divergence), expected.detach(), rtol=1e-3, atol=1e-6)
    assert len(found) == 4 and not any(part._forward_hooks for part in model.modules())


def test_what_cannot_be_measured_is_explained(make_model):
    model = make_model()
    with pytest.raises(ImportanceError, match="must be one of taylor, magnitude, hessian, got 'l1'"):
        measure_importance(model, criterion="l1")
    with pytest.raises(ImportanceError, match="'taylor' needs losses, got none; take 'magnitude' without images"):
        measure_importance(model, [])
    with pytest.raises(ImportanceError, match="the importance of blocks needs images"):
        measure_blocks(model, [])
    with pytest.raises(ImportanceError, match="a SwinHfModel does not have"):
        measure_blocks(model.swin, [PIXELS])
    with pytest.raises(ImportanceError, match="importance must be finite, got NaN or infinity"):
        measure_importance(model, [loss_of(model) * float("nan")])
    constant = sum((parameter * 0).sum() for parameter in model.parameters())
    with pytest.raises(ImportanceError, match="no loss depends on the weights"):
        measure_importance(model, [constant])
