"""Quantization of a deploy form by the rules of a recipe, with PyTorch's export quantization (PT2E)."""

import copy
from collections.abc import Iterable
from functools import partial

import torch
from executorch.backends.transforms.duplicate_dynamic_quant_chain import DuplicateDynamicQuantChainPass
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import OP_TO_ANNOTATOR, propagate_annotation
from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_dynamic_qdq
from torch import fx, nn
from torchao.quantization import quantize_
from torchao.quantization.granularity import PerGroup
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer
from torchao.quantization.quant_api import Int8DynamicActivationIntxWeightConfig

from edge.deploy.half import HalfPrecision
from edge.lower.lowering import trace
from edge.lower.recipes import Recipe

INT4_GROUP = 32  # weights that share a scale
QUANTIZABLE = (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default)
PATTERNS = {  # XNNPACK's own patterns, those with an activation first
    "int8-static": ("linear_relu", "conv_relu", "linear", "conv"),
    "int8-dynamic": ("linear",),
}


class RecipeQuantizer(Quantizer):
    """Marks the layers of an exported graph for quantization by the rules of a recipe.

    training: use fake quantization, through which gradients pass.
    """

    def __init__(self, recipe: Recipe, training: bool = False):
        super().__init__()
        self.recipe, self.training = recipe, training

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        return model

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        precisions = {
            node: self.recipe.precision_of(layer, node.target is torch.ops.aten.conv2d.default)
            for node, layer in layers_of(model)
        }
        for precision, patterns in PATTERNS.items():
            config = get_symmetric_quantization_config(
                is_per_channel=True,
                is_dynamic=precision == "int8-dynamic",
                is_qat=self.training and precision == "int8-static",
            )
            for pattern in patterns:
                OP_TO_ANNOTATOR[pattern](model, config, partial(_has_precision, precisions, precision))
        propagate_annotation(model)  # views and permutations of int8 tensors are int8
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to check: what cannot be lowered is found by the budget of the recipe."""


def _has_precision(precisions: dict[fx.Node, str], precision: str, node: fx.Node) -> bool:
    return precisions.get(node, precision) == precision  # the patterns ask for weights and biases too


def layers_of(model: fx.GraphModule) -> list[tuple[fx.Node, str]]:
    """Nodes of linear layers and convolutions in an exported graph, with the name of the layer in the deploy form."""
    nodes = [node for node in model.graph.nodes if node.op == "call_function" and node.target in QUANTIZABLE]
    return [(node, str(node.args[1].target).removesuffix(".weight")) for node in nodes]


def exported_graph(module: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """The graph of a deploy form for inputs like `example`."""
    return trace({"forward": (module, example)})["forward"].module(check_guards=False)


def in_precision(deployed: nn.Module, recipe: Recipe, images: list[torch.Tensor]) -> nn.Module:
    """A deploy form in the precision in which `recipe` lowers it; `images` are inputs of the deploy form."""
    if recipe.is_quantized:
        return quantize(deployed, recipe, images)
    if recipe.float_dtype == "float16" and recipe.backend == "xnnpack":
        return with_scalars_as_buffers(exported_graph(HalfPrecision(deployed, images), images[0]))
    return deployed


def with_scalars_as_buffers(model: fx.GraphModule) -> fx.GraphModule:
    """A graph in which numbers that are added to tensors, or multiplied with them, are buffers of the tensors' precision.

    ExecuTorch makes them float32 constants and, in every run and outside of the delegate, casts them to float16.
    """
    for node in list(model.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        tensors = [argument.meta["val"] for argument in node.args if isinstance(argument, fx.Node)]
        dtypes = {tensor.dtype for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()}
        if len(dtypes) != 1:
            continue
        (dtype,) = dtypes
        for position, (argument, declared) in enumerate(zip(node.args, node.target._schema.arguments)):
            if isinstance(declared.type, torch.TensorType) and isinstance(argument, int | float):
                node.update_arg(position, _buffer(model, node, float(argument), dtype))
    model.recompile()
    return model


def _buffer(model: fx.GraphModule, user: fx.Node, value: float, dtype: torch.dtype) -> fx.Node:
    """A node before `user` that reads the buffer of a number, which all its users share."""
    name = f"scalar_{value}_{dtype}".translate(str.maketrans(".-+", "_mp"))
    if not hasattr(model, name):
        model.register_buffer(name, torch.tensor(value, dtype=dtype))
    with model.graph.inserting_before(user):
        return model.graph.get_attr(name)


def quantize(deployed: nn.Module, recipe: Recipe, images: Iterable[torch.Tensor]) -> nn.Module:
    """A deploy form in the precisions of `recipe`, with static scales found on `images`, inputs of the deploy form."""
    return converted(prepare_for_calibration(quantize_to_int4(deployed, recipe), recipe, list(images)))


def prepare_for_calibration(deployed: nn.Module, recipe: Recipe, images: list[torch.Tensor]) -> fx.GraphModule:
    """The graph of a deploy form with observers that have seen `images`."""
    prepared = prepare_pt2e(exported_graph(deployed, images[0]), RecipeQuantizer(recipe))
    with torch.no_grad():
        for pixel_values in images:
            prepared(pixel_values)
    return prepared


def prepare_for_training(deployed: nn.Module, recipe: Recipe, example: torch.Tensor) -> fx.GraphModule:
    """The graph of a deploy form with simulated rounding, through which gradients pass."""
    trainable = copy.deepcopy(deployed).requires_grad_(True)
    return prepare_qat_pt2e(exported_graph(trainable, example), RecipeQuantizer(recipe, training=True))


def converted(prepared: fx.GraphModule) -> fx.GraphModule:
    """The quantized graph of a calibrated or trained one."""
    graph = convert_pt2e(prepared)
    # Queries, keys and values read the same tensor; if they shared one dynamic scale, the backend would cut the program there.
    DuplicateDynamicQuantChainPass()(graph)
    for product in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.bmm.default):
        _move_zero_point(product.args[1])
    graph.recompile()
    return graph


def _move_zero_point(operand: fx.Node) -> None:
    """Let int8 numbers, which views and permutations bring to a product of matrices, have a zero point other than 0.

    For a zero point of 0 XNNPACK has a product of its own, no faster. It puts it at the end of its graph and sorts, so that
    the position biases of all later blocks are laid out before it: they leave the cache again, and all of them wait in memory.
    """
    if not is_dequant(operand) or is_dynamic_qdq(operand) or operand.args[2] != 0:
        return
    rounding = operand.args[1:]
    scale, _, low, high, dtype = rounding
    moved = (scale * (high + 1) / high, 1, low, high, dtype)  # one level less above 0 reaches as far
    read = operand
    while is_dequant(read) and read.args[1:] == rounding:
        rounded = read.args[0]
        for node in (rounded, *rounded.users):
            node.args = (node.args[0], *moved)
        sources = rounded.args[0].all_input_nodes
        if len(sources) != 1:
            break
        read = sources[0]


def quantize_to_int4(deployed: nn.Module, recipe: Recipe) -> nn.Module:
    """A copy of a deploy form with the recipe's int4 layers quantized, if their width is a multiple of the group."""

    def chosen(module: nn.Module, name: str) -> bool:
        fits = isinstance(module, nn.Linear) and module.in_features % INT4_GROUP == 0
        return fits and recipe.precision_of(name) == "int4-dynamic"

    if not any(chosen(module, name) for name, module in deployed.named_modules()):
        return deployed
    deployed = copy.deepcopy(deployed)
    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(INT4_GROUP))
    quantize_(deployed, config, filter_fn=chosen)
    return deployed
