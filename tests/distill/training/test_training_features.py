"""Features that training needs: stochastic depth, checkpointing, compilation, autocast, several processes, no hidden state."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from conftest import KINDS, TINY
from torch._dynamo.utils import counters

from swin_hf.windows import REMEMBERED_CONSTANTS, attention_mask, relative_position_index


@pytest.mark.parametrize("version", [1, 2])
def test_drop_path_skips_both_branches(make_model, version):
    block = make_model(version=version).swin.encoder.layers[1].blocks[1].train()
    feature_map = torch.randn(64, 4, 4, 32)
    block.drop_path.drop_prob = 0.5
    kept = (block(feature_map)[0] - feature_map).abs().amax(dim=(1, 2, 3)) > 0
    assert 36 < kept.sum() < 60  # about three of four samples keep one branch or both
    block.drop_path.drop_prob = 1 - 1e-7
    assert torch.equal(block(feature_map)[0], feature_map)


@pytest.mark.parametrize("kind", KINDS)
def test_drop_path_rates_rise_linearly_to_the_last_block(make_model, kind):
    model = make_model(**KINDS[kind], drop_path_rate=0.2)
    rates = [block.drop_path.drop_prob for stage in model.swin.encoder.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(make_model, kind, reentrant):
    model = make_model(**KINDS[kind], drop_path_rate=0.3).train()
    before = copy.deepcopy(model.state_dict())
    pixel_values, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])

    def gradients():
        torch.manual_seed(1)
        model.load_state_dict(before)
        model.zero_grad()
        model(pixel_values, labels=labels).loss.backward()
        statistics = [buffer.clone() for buffer in model.buffers()]  # of batch normalisation, which count an image once
        return [parameter.grad.clone() for parameter in model.parameters()] + statistics

    expected = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    blocks = [block for stage in model.swin.encoder.layers for block in stage.blocks]
    assert all(block.gradient_checkpointing for block in blocks)
    for actual, gradient in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(actual, gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_whole_and_once_for_training_and_inference(make_model, kind):
    torch._dynamo.reset()
    counters.clear()
    model = make_model(**KINDS[kind] | {"image_size": 28, "depths": [2, 2]}, drop_path_rate=0.1).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        compiled(torch.randn(2, 3, 28, 28), labels=torch.tensor([0, 1])).loss.backward()
    assert counters["stats"]["unique_graphs"] == 1
    model.eval()
    with torch.no_grad():
        for _ in range(3):
            pixel_values = torch.randn(2, 3, 28, 28)
            logits = compiled(pixel_values).logits
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    torch.testing.assert_close(logits, model(pixel_values).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_autocast_and_weights_stay_close(make_model, kind, attention, dtype):
    model = make_model(**KINDS[kind] | {"image_size": 28}, mask_padding=True)
    model.set_attn_implementation(attention)
    pixel_values = torch.randn(2, 3, 28, 28)
    expected = model(pixel_values).logits
    with torch.autocast("cpu", dtype=dtype):
        output = model(pixel_values, labels=torch.tensor([0, 1]))
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    scale = expected.abs().max()
    assert (output.logits - expected).abs().max() < 0.05 * scale
    lowered = model.to(dtype)(pixel_values.to(dtype)).logits
    assert lowered.dtype == dtype and (lowered - expected).abs().max() < 0.1 * scale


def test_cosine_attention_of_tiny_queries_and_keys_is_finite_in_half_precision(make_model):
    lowered = make_model(version=2).half()
    for name, parameter in lowered.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            torch.nn.init.normal_(parameter, std=1e-6)
    pixel_values = torch.randn(2, 3, 16, 16).half()
    expected = copy.deepcopy(lowered).float()(pixel_values.float()).logits
    assert (lowered(pixel_values).logits - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_hidden_states_and_attentions_can_be_kept(make_model, kind):
    model = make_model(**KINDS[kind])
    output = model(torch.randn(2, 3, 16, 16), output_hidden_states=True, output_attentions=True)
    kept = [*output.hidden_states, *output.attentions]
    for tensor in kept:
        tensor.retain_grad()
    output.logits.square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in kept)


def test_flex_attention_gives_the_same_logits(make_model):
    model = make_model(image_size=24, window_size=4, depths=[2], num_heads=[2]).requires_grad_(False)
    pixel_values = torch.randn(2, 3, 24, 24)
    expected = model(pixel_values).logits
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(model(pixel_values).logits, expected, atol=1e-5, rtol=1e-5)


TWO_PROCESSES = """
import copy, json, sys, torch, torch.distributed as dist
from swin_hf import SwinHfConfig, SwinHfForImageClassification
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
rank, folder, cases = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for case, (changes, way) in cases.items():
    torch.manual_seed(0)
    model = SwinHfForImageClassification(SwinHfConfig(**changes, num_labels=3, weight_init="fan_in", drop_path_rate=0.0))
    model.eval()  # batch normalisation of two processes is that of one only where it is synchronised, which takes GPUs
    pixels, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    whole = copy.deepcopy(model)
    whole(pixels, labels=labels).loss.backward()
    if way == "ddp":
        parallel = torch.nn.parallel.DistributedDataParallel(model)  # unused parameters would be an error in the second step
    else:
        for module in model.modules():
            if type(module).__name__ in model._no_split_modules:
                fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
        parallel = fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    for _ in range(2):
        parallel.zero_grad()
        mine = slice(2 * rank, 2 * rank + 2)
        parallel(pixels[mine], labels=labels[mine]).loss.backward()
    for (name, ours), expected in zip(model.named_parameters(), whole.parameters()):
        grad = ours.grad if way == "ddp" else ours.grad.full_tensor()
        torch.testing.assert_close(grad, expected.grad, atol=1e-5, rtol=1e-4, msg=lambda why: f"{case}, {name}: {why}")
"""


def test_two_processes_give_the_gradients_of_one(tmp_path):
    ways = {"V1": "ddp", "TinyViT": "ddp", "V2": "fsdp2", "mixed": "fsdp2"}
    cases = {kind: (TINY | KINDS[kind], way) for kind, way in ways.items()}
    command, last = [sys.executable, "-c", TWO_PROCESSES], [str(tmp_path), json.dumps(cases)]
    both = [subprocess.Popen([*command, str(rank), *last], stderr=subprocess.PIPE) for rank in (0, 1)]
    for process in both:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()[-2000:]


@pytest.mark.parametrize("kind", [*KINDS, "convolutions alone"])
def test_units_for_fsdp_and_device_maps_are_layers_of_the_model(make_model, kind):
    model = make_model(**KINDS.get(kind, {"stage_blocks": ["conv", "conv"]}))
    kinds = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) == kinds & {"SwinHfEmbeddings", "SwinHfBlock", "SwinHfMBConv"}


def test_constants_are_shared_bounded_and_never_saved(make_model):
    first = attention_mask((8, 8), (4, 4), (2, 2), False, torch.device("cpu"))
    assert attention_mask((8, 8), (4, 4), (2, 2), False, torch.device("cpu")) is first
    for side in range(2, 2 * REMEMBERED_CONSTANTS):
        relative_position_index((side, 1), (side, 1), torch.device("cpu"))
    assert relative_position_index.remembered.cache_info().currsize == REMEMBERED_CONSTANTS
    for version in (1, 2):
        assert not list(make_model(version=version).buffers())


def test_constants_first_used_for_inference_serve_training(make_model):
    model = make_model(image_size=36, version=2)
    pixel_values = torch.randn(1, 3, 36, 36)
    with torch.inference_mode():
        model(pixel_values)
    model(pixel_values, labels=torch.tensor([0])).loss.backward()


def test_constants_do_not_leak_out_of_fake_tensors(make_model):
    model = make_model(image_size=44)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(torch.randn(1, 3, 44, 44)))
    assert model(torch.randn(1, 3, 44, 44)).logits.isfinite().all()
