"""Recipes: rules, quantization, equalisation, sensitivity, training, lowering and its budget."""

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import KINDS, TINY_VIT
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant, is_tagged_as_implicit_q_dq
from executorch.devtools.inspector import Inspector
from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer
from executorch.runtime import Runtime
from torch import fx, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from edge.deploy.form import deploy
from edge.deploy.half import HalfPrecision
from edge.deploy.position_bias import LaidOutBias
from edge.deploy.view import InputView
from edge.device.errors import ExplainedError
from edge.device.parity import compare
from edge.lower import lowering
from edge.lower.equalisation import channel_ranges, equalise
from edge.lower.lowering import LoweringError, lower, trace
from edge.lower.quantize import RecipeQuantizer, exported_graph, in_precision, layers_of, quantize, with_scalars_as_buffers
from edge.lower.recipes import PRECISIONS, RECIPES, Recipe, RecipeError, Rule, find_recipe
from edge.lower.sensitivity import layer_sensitivity
from swin_hf.layers_swin_hf import bias_of_pairs

CAST = "dim_order_ops::_to_dim_order_copy"
VIEW = InputView(height=16, width=16, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
ONE_STAGE = {"depths": [2], "num_heads": [2], "embed_dim": 32}
HYBRID = TINY_VIT | {"image_size": 16, "patch_size": 2, "embed_dim": 32, "depths": [1, 1]}
SMALL = {
    "V1": ONE_STAGE,
    "V2": ONE_STAGE | {"version": 2},
    "hybrid": HYBRID,
    "padded hybrid": HYBRID | {"window_size": 3},
    "padded V2 hybrid": HYBRID | {"version": 2, "padding": "swin", "window_size": 3},
    "large windows": HYBRID | {"image_size": 32, "stage_blocks": ["window", "conv"], "stage_windows": [9, 4]},
}


def smooth_images(count: int) -> list[torch.Tensor]:
    return [nn.functional.interpolate(torch.rand(1, 3, 4, 4), size=(16, 16), mode="bilinear") for _ in range(count)]


def outputs_of(module, images) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate([module(image).numpy() for image in images])


def test_first_rule_that_matches_wins():
    rules = (Rule("*.fc2", "int8-dynamic"), Rule("encoder.*", "int8-static"), Rule("*.fc2", "fp32"))
    recipe = Recipe(name="mine", summary="", rules=rules, min_sqnr_db=0, min_agreement=0)
    assert recipe.precision_of("encoder.stages.0.blocks.0.mlp.fc2") == "int8-dynamic"
    assert recipe.precision_of("encoder.stages.0.blocks.0.mlp.fc1") == "int8-static"
    assert recipe.precision_of("classifier") == "fp32"


def test_recipes_name_known_precisions_and_misspelt_ones_are_found():
    assert {rule.precision for recipe in RECIPES.values() for rule in recipe.rules} <= set(PRECISIONS)
    with pytest.raises(RecipeError, match=r"recipe must be one of fp32, .*, got 'int8-dyn'; did you mean int8-dynamic"):
        find_recipe("int8-dyn")
    assert issubclass(RecipeError, ExplainedError)


def test_rules_and_recipes_of_unknown_values_are_refused_where_they_are_built():
    with pytest.raises(RecipeError, match=r"precision must be one of fp32, .*'int8-statc'; did you mean int8-static"):
        Rule("*", "int8-statc")
    for changes, message in (
        ({"backend": "xnpack"}, "backend must be one of xnnpack, coreml, vulkan, got 'xnpack'; did you mean xnnpack"),
        ({"float_dtype": "bfloat16"}, "float_dtype must be one of float32, float16, got 'bfloat16'; did you mean float16"),
        ({"min_agreement": 90}, r"min_agreement of recipe int8 must lie in \[0, 1\], got 90"),
        ({"min_sqnr_db": -1.0}, "min_sqnr_db of recipe int8 must be 0 or more, got -1.0"),
        ({"max_accuracy_drop": float("nan")}, r"max_accuracy_drop of recipe int8 must lie in \[0, 1\], got nan"),
    ):
        with pytest.raises(RecipeError, match=message):
            replace(RECIPES["int8"], **changes)


def test_layers_are_marked_as_the_rules_say(make_model):
    deployed = deploy(make_model(**ONE_STAGE), VIEW)
    rules = (Rule("*.fc2", "fp32"), Rule("*.fc1", "int8-dynamic"), Rule("*", "int8-static"))
    recipe = replace(RECIPES["int8"], rules=rules)
    graph = exported_graph(deployed, torch.rand(1, 3, 16, 16))
    layers = {node.name: name for node, name in layers_of(graph)}
    prepared, found = prepare_pt2e(graph, RecipeQuantizer(recipe)), {}
    for node in prepared.graph.nodes:
        if node.name not in layers:
            continue
        name, source = layers[node.name], node.args[0]
        observer = getattr(prepared, source.target, None) if source.op == "call_module" else None
        found[name] = "fp32" if observer is None else "int8-dynamic" if observer.is_dynamic else "int8-static"
    assert found["encoder.stages.0.blocks.0.attention.q_proj"] == "int8-static"
    assert found["encoder.embeddings.projection"] == "int8-static"
    assert found["encoder.stages.0.blocks.1.mlp.fc1"] == "int8-dynamic"
    assert found["encoder.stages.0.blocks.1.mlp.fc2"] == "fp32"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("fp16", "V2"), ("int8", "V1"), ("int8", "V2"), ("int8-dynamic", "V1"), ("int4", "V1")),
        *(("int8", "hybrid"), ("fp16", "hybrid"), ("int8-dynamic", "large windows")),
        *(("int8", "padded hybrid"), ("int8", "padded V2 hybrid")),
    ],
)
def test_programs_follow_the_model_in_one_delegate(make_model, monkeypatch, name, kind):
    model, recipe = make_model(**SMALL[kind]), RECIPES[name]
    images = smooth_images(20)
    deployed = deploy(model, VIEW, compact=recipe.is_quantized)
    nodes = nodes_given(monkeypatch)
    form = in_precision(deployed, recipe, images)
    lowered = lower(trace({"forward": (form, images[0])}), recipe, {})
    program = Runtime.get().load_program(lowered.program)
    forward = program.load_method("forward")
    found = np.concatenate([forward.execute([image])[0].numpy().copy() for image in images])
    expected = np.concatenate([model(2 * image - 1).logits.detach().numpy() for image in images])
    assert compare(found, expected).sqnr_db > {"fp16": 45, "int8": 22, "int8-dynamic": 25, "int4": 10}[name]
    assert lowered.num_delegates == 1
    assert lowered.outside == ({CAST: 2} if name == "fp16" else {})  # of the pixels and of the logits
    copies = [node.name for node in nodes if node.kwargs.get("memory_format")]
    assert len(copies) <= 2, copies  # of the pixels and of the pooled channels: none between tokens and maps
    assert not [node.name for node in nodes if is_moved_needlessly(node)]


def nodes_given(monkeypatch) -> list[fx.Node]:
    """The nodes of the graphs that XNNPACK is given, as they are lowered."""
    nodes, transform = [], XNNPACKPassManager.transform

    def noted(manager):
        program = transform(manager)
        nodes.extend(program.graph.nodes)
        return program

    monkeypatch.setattr(XNNPACKPassManager, "transform", noted)
    return nodes


def is_moved_needlessly(node: fx.Node) -> bool:
    """Whether a node moves numbers that the node before it moves too, moves none, or takes int8 numbers to float for it."""
    if node.op != "call_function" or not re.search("clone|view|permute|slice|cat", node.target.__name__):
        return False
    source, readers = node.all_input_nodes[0], list(node.users)
    if "clone" in node.name or ("view" in node.name and "view" in source.name):
        return True
    if "view" in node.name and source.meta["val"].shape == node.meta["val"].shape:
        return True
    ends = [source, *readers] if is_dequant(source) and all(map(is_quant, readers)) else []
    return not all(map(is_tagged_as_implicit_q_dq, ends))


class WithLaidOutBiases(nn.Module):
    """Biases of windows of a single row and of a single column."""

    def __init__(self):
        super().__init__()
        windows = [((side, 5 // side), compact) for side in (1, 5) for compact in (False, True)]
        table = torch.randn(9, 2)
        self.biases = nn.ModuleList(
            LaidOutBias(bias_of_pairs(table, window, window)[0], window, compact) for window, compact in windows
        )

    def forward(self, x):
        for bias in self.biases:
            x = x + bias()
        return x


def test_biases_of_a_single_row_or_column_can_be_laid_out():
    module, x = WithLaidOutBiases().eval(), torch.randn(2, 5, 5)
    lowered = lower(trace({"forward": (module, x)}), RECIPES["int8"], {})
    assert lowered.num_delegates == 1 and not lowered.outside
    found = Runtime.get().load_program(lowered.program).load_method("forward").execute([x])[0]
    torch.testing.assert_close(found, module(x), atol=1e-5, rtol=0.0)


class ProductOfProjections(nn.Module):
    """Queries times keys without a bias, whose range is even around 0 if that of the inputs is."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x):
        keys = self.k_proj(x).view(2, 5, 2, 4).permute(0, 2, 3, 1).reshape(2, 8, 5)
        return torch.bmm(self.q_proj(x), keys)


def test_products_of_matrices_run_where_they_stand(tmp_path):
    # XNNPACK would put a product whose right side has zero point 0 behind all that does not need it.
    module, x = ProductOfProjections().eval(), torch.randn(2, 5, 8)
    graph = quantize(module, RECIPES["int8"], [x, -x])
    (product,) = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.bmm.default)
    assert is_dequant(product.args[1]) and product.args[1].args[2] == 1
    torch.testing.assert_close(graph(x), module(x), atol=0.15, rtol=0.0)
    lowered = lower(trace({"forward": (graph, x)}), RECIPES["int8"], {})
    assert [name for name in names_of_operations(lowered.program, x, tmp_path) if "Batch Matrix" in name] == [
        "Batch Matrix Multiply (NC, F32) GEMM #1"
    ]


def names_of_operations(program: bytes, x: torch.Tensor, folder: Path) -> list[str]:
    """The operations that the backend ran, in their order."""
    module = _load_for_executorch_from_buffer(program, enable_etdump=True)
    module.forward([x])
    module.write_etdump_result_to_file(str(folder / "run.etdp"))
    blocks = Inspector(etdump_path=str(folder / "run.etdp")).event_blocks
    return [event.name for block in blocks if block.name == "Execute" for event in block.events if event.is_delegated_op]


def test_half_precision_survives_large_activations(make_model):
    # Squares of tokens about 1,000 do not fit into float16.
    model = make_model(**ONE_STAGE)
    model.swin.encoder.layers[0].blocks[0].mlp.fc2.bias.data += 1000 * torch.randn(32)
    images = smooth_images(4)
    deployed = deploy(model, VIEW)
    assert compare(outputs_of(HalfPrecision(deployed, images), images), outputs_of(deployed, images)).sqnr_db > 30


class WithScalars(nn.Module):
    def forward(self, x):
        y = x.half()
        return (torch.clamp(2 * y + 1e-05, max=1) / 3 * (y - 4)).float()


def test_numbers_in_half_precision_need_no_casts():
    graph, x = exported_graph(WithScalars().eval(), torch.rand(2, 4)), torch.rand(2, 4)
    before = graph(x)
    assert torch.equal(with_scalars_as_buffers(graph)(x), before)
    assert {value.item() for value in graph.buffers()} == {2.0, 3.0, 4.0, torch.tensor(1e-05).half().item()}
    assert lower(trace({"forward": (graph, x)}), RECIPES["fp16"], {}).outside == {CAST: 2}


def test_methods_share_their_weights(make_model):
    model, recipe = make_model(**ONE_STAGE, num_labels=1000), RECIPES["fp32"]
    views = {"forward": VIEW, "forward_24x16": replace(VIEW, height=24), "forward_batch2": replace(VIEW, batch_size=2)}
    methods = {
        name: (deploy(model, view), torch.rand(view.batch_size, 3, view.height, view.width)) for name, view in views.items()
    }
    alone = len(lower(trace({"forward": methods["forward"]}), recipe, {}).program)
    together = len(lower(trace(methods), recipe, {}).program)
    assert together < 1.5 * alone
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert weights < alone < 1.2 * weights


def test_short_names_of_constants_change_nothing_else(make_model, monkeypatch):
    image = torch.rand(1, 3, 16, 16)
    method = {"forward": (deploy(make_model(**HYBRID), VIEW), image)}
    short = lower(trace(method), RECIPES["fp32"], {}).program
    monkeypatch.setattr(lowering, "short_constant_names", nullcontext)
    long = lower(trace(method), RECIPES["fp32"], {}).program
    names = set(re.findall(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", long))
    assert len(names) > 20 and not any(name in short for name in names)
    saved = (len(long) - len(short)) / (2 * len(names))  # each name is there twice
    assert 64 - 11 <= saved <= 64 - 11 + 7  # and is padded
    outputs = [Runtime.get().load_program(program).load_method("forward").execute([image])[0] for program in (short, long)]
    assert torch.equal(*outputs)


def test_program_carries_its_constants(make_model):
    constants = {"labels": ("blå", "röd", "grön"), "temperature": 1.5, "input_contract": "{}"}
    deployed = deploy(make_model(**ONE_STAGE), VIEW)
    lowered = lower(trace({"forward": (deployed, torch.rand(1, 3, 16, 16))}), RECIPES["fp32"], constants)
    program = Runtime.get().load_program(lowered.program)
    found = {name: program.load_method(name).execute([]) for name in constants}
    assert found == {"labels": ["blå", "röd", "grön"], "temperature": [1.5], "input_contract": ["{}"]}


class WithErf(nn.Module):
    """Something that the backend has no kernel for, inside a module that can be named."""

    def __init__(self):
        super().__init__()
        self.first, self.culprit, self.last = nn.Linear(4, 4), Erf(), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.culprit(self.first(x)))


class Erf(nn.Module):
    def forward(self, x):
        return torch.erf(x)


def test_what_the_backend_leaves_out_is_named():
    traced = trace({"forward": (WithErf().eval(), torch.rand(2, 4))})
    with pytest.raises(LoweringError, match=r"got 1 x aten::erf; the first comes from .*culprit"):
        lower(traced, RECIPES["fp32"], {})
    with pytest.raises(LoweringError, match=r"must have 1 delegates at most, got 2, cut at last"):
        lower(traced, replace(RECIPES["fp32"], outside=("aten::erf",)), {})


def test_equalisation_keeps_the_function_and_evens_the_channels(make_model):
    model = make_model(depths=[2, 2])
    attention = model.swin.encoder.layers[0].blocks[0].attention
    attention.v_proj.weight.data[0] *= 20  # one channel far above the others
    images = smooth_images(8)
    deployed = deploy(model, VIEW)
    for behind_norms in (False, True):
        evened = equalise(deployed, channel_ranges(deployed, images, behind_norms))
        np.testing.assert_allclose(outputs_of(evened, images), outputs_of(deployed, images), atol=2e-5)
    ranges = evened.encoder.stages[0].blocks[0].attention.v_proj.weight.abs().amax(dim=1)
    before = deployed.encoder.stages[0].blocks[0].attention.v_proj.weight.abs().amax(dim=1)
    assert ranges.max() / ranges.median() < 0.5 * before.max() / before.median()


def test_the_most_sensitive_layer_comes_first(make_model):
    model = make_model(**ONE_STAGE)
    fc1 = model.swin.encoder.layers[0].blocks[1].mlp.fc1
    fc1.bias.data[0] = 2000.0  # an activation that leaves the others few levels
    model.swin.encoder.layers[0].blocks[1].mlp.fc2.weight.data[:, 0] = 0.0
    deployed, images = deploy(model, VIEW), smooth_images(8)
    weights = {name: value.clone() for name, value in deployed.state_dict().items()}
    found = layer_sensitivity(deployed, RECIPES["int8-static"], images, outputs_of(deployed, images))
    assert found[0].layer in ("encoder.stages.0.blocks.1.mlp.fc1", "encoder.stages.0.blocks.1.mlp.fc2")
    assert found[0].sqnr_db < found[-1].sqnr_db - 10
    assert all(torch.equal(weights[name], value) for name, value in deployed.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in deployed.modules())


@pytest.mark.parametrize("name", ["0.blocks.0.expand", "0.blocks.0.depthwise", "1.blocks.0.mlp.fc1"])
def test_sensitivity_is_that_of_quantizing_the_layer_alone(make_model, name):
    """Also before a ReLU, together with which a layer is quantized."""
    model = make_model(**KINDS["TinyViT"] | {"hidden_act": "relu", "depths": [1, 1]})
    view = InputView(batch_size=1, height=32, width=32, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    deployed, images = deploy(model, view, compact=True), [torch.rand(1, 3, 32, 32) for _ in range(12)]
    reference, recipe = outputs_of(deployed, images), RECIPES["int8-static"]
    name = f"encoder.stages.{name}"
    (found,) = [one for one in layer_sensitivity(deployed, recipe, images, reference) if one.layer == name]
    alone = quantize(deployed, replace(recipe, rules=(Rule(name, "int8-static"),)), images)
    assert found.sqnr_db == pytest.approx(compare(outputs_of(alone, images), reference).sqnr_db, abs=2)


def test_four_bits_hurt_more_than_eight(make_model):
    deployed, images = deploy(make_model(**ONE_STAGE), VIEW), smooth_images(4)
    reference = outputs_of(deployed, images)
    by_recipe = {
        name: {one.layer: one.sqnr_db for one in layer_sensitivity(deployed, RECIPES[name], images, reference)}
        for name in ("int4", "int8-dynamic")
    }
    layer = "encoder.stages.0.blocks.0.mlp.fc1"
    # Rounding noise grows with the step: 127 levels of a row are 18 times as fine as 7 of a group, 20 log10(18) = 25 dB less
    # what the smaller range of a group gives back.
    assert 12 < by_recipe["int8-dynamic"][layer] - by_recipe["int4"][layer] < 25
    assert by_recipe["int8-dynamic"]["classifier"] == by_recipe["int4"]["classifier"]  # of 8 bits in both


@pytest.mark.parametrize("kind", ["V1", "hybrid"])
def test_training_with_rounding_brings_the_outputs_closer(make_model, monkeypatch, capsys, kind):
    qat = pytest.importorskip("edge.lower.qat", reason="needs accelerate", exc_type=ImportError)
    from accelerate.state import PartialState

    torch.manual_seed(0)
    deployed = deploy(make_model(**SMALL[kind]), VIEW)
    for module in deployed.modules():  # weights whose rounding hurts: a few large ones among small ones
        if isinstance(module, nn.Linear):
            module.weight.data[:, 0] *= 12
    images, others = smooth_images(32), smooth_images(32)
    recipe = replace(RECIPES["int8-qat"], train_epochs=4)
    monkeypatch.setattr(qat, "LEARNING_RATE", 1e-4)  # few steps
    monkeypatch.setattr(PartialState, "default_device", torch.device("meta"))  # stands for a GPU
    PartialState._reset_state()
    assert PartialState().device.type == "meta"
    trained = qat.train_quantized(deployed, recipe, images)
    assert PartialState().device.type == "meta"  # other trainings of the process go on there
    assert capsys.readouterr().out == ""  # where `--json` writes
    reference = outputs_of(deployed, others)
    before = compare(outputs_of(quantize(deployed, recipe, images), others), reference)
    assert compare(outputs_of(trained, others), reference).kl < before.kl


@pytest.mark.parametrize("kind", ["V1", "large windows"])
@pytest.mark.parametrize("backend", ["vulkan", "coreml"])
def test_programs_of_other_backends_are_lowered_whole(make_model, backend, kind):
    if backend == "coreml":
        pytest.importorskip("coremltools")
    deployed = deploy(make_model(**SMALL[kind]), VIEW)
    lowered = lower(trace({"forward": (deployed, torch.rand(1, 3, 16, 16))}), RECIPES[backend], {})
    assert lowered.num_delegates == 1 and lowered.outside == {}
