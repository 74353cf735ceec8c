"""What is trained and how fast: rates by depth, weight decay, frozen stages, averaged weights."""

import pytest
import torch
from conftest import KINDS, TINY_VIT

from distill.errors import SettingsError
from distill.training.optimisation import LayerError, WeightAverage, freeze_stages, parameter_groups, synchronised


def test_learning_rates_fall_from_the_head_to_the_embeddings(make_model):
    model = make_model(depths=[1, 2])
    rates = {id(p): group["lr"] for group in parameter_groups(model, 1.0, 0.05, 0.5) for p in group["params"]}
    by_name = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(by_name) == len(rates)
    assert by_name["classifier.weight"] == by_name["swin.layernorm.bias"] == 1.0
    assert by_name["swin.encoder.layers.1.blocks.1.mlp.fc1.weight"] == 0.5
    assert by_name["swin.encoder.layers.1.blocks.0.mlp.fc1.weight"] == 0.25
    assert by_name["swin.encoder.layers.0.blocks.0.mlp.fc1.weight"] == 0.125
    assert by_name["swin.encoder.layers.0.downsample.reduction.weight"] == 0.125
    assert by_name["swin.embeddings.patch_embeddings.projection.weight"] == 0.0625

    hybrid = make_model(**TINY_VIT | {"depths": [1, 2]})
    rates = {id(p): group["lr"] for group in parameter_groups(hybrid, 1.0, 0.05, 0.5) for p in group["params"]}
    by_name = {name: rates[id(parameter)] for name, parameter in hybrid.named_parameters()}
    assert by_name["swin.encoder.layers.1.blocks.1.local_conv.depthwise.conv.weight"] == 0.5
    assert by_name["swin.encoder.layers.0.blocks.0.project.norm.bias"] == 0.125
    assert by_name["swin.encoder.layers.0.downsample.depthwise.conv.weight"] == 0.125
    assert by_name["swin.embeddings.patch_embeddings.convs.1.conv.weight"] == 0.0625


@pytest.mark.parametrize("kind", KINDS)
def test_norms_biases_tables_and_temperatures_are_not_decayed(make_model, kind):
    model = make_model(**KINDS[kind], use_absolute_embeddings=True)
    groups = parameter_groups(model, 1e-3, 0.05)
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    decayed = {name for name, parameter in model.named_parameters() if id(parameter) not in undecayed}
    kinds = {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "classifier"}
    kinds |= {"conv"} if model.config.stem == "conv" else {"projection"}
    kinds |= {"reduction"} if model.config.downsample == "merge" else set()
    assert {name.split(".")[-2] for name in decayed} == kinds
    assert all(name.endswith("weight") for name in decayed)


def test_frozen_stages_keep_their_weights(make_model):
    model = make_model(depths=[1, 2])
    freeze_stages(model, 1)
    frozen = {name.split(".blocks")[0].split(".downsample")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert {name for name in frozen if "embeddings" not in name} == {"swin.encoder.layers.0"}
    with pytest.raises(LayerError, match="must be below the 2 stages"):
        freeze_stages(model, 2)
    hybrid = make_model(**TINY_VIT)
    freeze_stages(hybrid, 1)
    hybrid.train()
    training = {name for name, part in hybrid.named_modules() if isinstance(part, torch.nn.BatchNorm2d) and part.training}
    assert training and all(name.startswith("swin.encoder.layers.1.") for name in training)
    with pytest.raises(LayerError, match="Linear has none"):
        parameter_groups(torch.nn.Linear(2, 2), 1e-3, 0.0, 0.5)


def test_averaged_weights_follow_the_formula(make_model):
    model = make_model()
    average, expected = WeightAverage(model, 0.3), None
    for step in range(5):
        with torch.no_grad():
            model.classifier.weight.normal_()
        own = model.classifier.weight.clone()
        average.update(model)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = own if expected is None else decay * expected + (1 - decay) * own
        with average.in_place_of(model):
            torch.testing.assert_close(model.classifier.weight, expected)
        assert torch.equal(model.classifier.weight, own)


def test_statistics_of_batch_norms_are_averaged_too(make_model):
    model = make_model(**TINY_VIT)
    average, norm = WeightAverage(model, 0.3), model.swin.encoder.layers[0].blocks[0].expand.norm
    average.update(model)
    first, second = norm.running_mean.clone(), torch.randn_like(norm.running_mean)
    norm.running_mean.copy_(second)
    norm.num_batches_tracked.fill_(7)
    average.update(model)
    with average.in_place_of(model):
        torch.testing.assert_close(norm.running_mean, first * 2 / 11 + second * 9 / 11)  # the decay after one step
        assert norm.num_batches_tracked == 7
    assert torch.equal(norm.running_mean, second)


def test_batch_norms_are_synchronised_on_several_gpus_alone(make_model):
    model = make_model(**TINY_VIT)
    assert synchronised(model, 1, torch.device("cpu")) is model
    with pytest.raises(SettingsError, match="--sync_batch_norm must be false where there are several processes without GPUs"):
        synchronised(model, 2, torch.device("cpu"))
    kept = model.state_dict()
    together = synchronised(model, 2, torch.device("cuda", 0))  # which needs no GPU before it is moved there
    norms = [module for module in together.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    assert all(torch.equal(weight, kept[name]) for name, weight in together.state_dict().items())
