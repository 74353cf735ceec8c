"""Which layers quantization hurts most: one layer is rounded at a time, all others stay exact."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from edge.deploy.activations import DeployActivation
from edge.deploy.form import flat
from edge.device.parity import compare
from edge.lower.quantize import INT4_GROUP
from edge.lower.recipes import Recipe

INT8_LEVELS, INT4_LEVELS = 127, 7  # on either side of 0
QUANTIZED_LAYERS = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Sensitivity:
    """How far rounding one layer alone moves the outputs.

    sqnr_db: ratio of the outputs to their error, in decibels.
    """

    layer: str
    precision: str
    sqnr_db: float


def quantized_layers(deployed: nn.Module, recipe: Recipe) -> dict[str, nn.Module]:
    """Layers of a deploy form that a recipe quantizes, by name."""
    return {
        name: module
        for name, module in deployed.named_modules()
        if isinstance(module, QUANTIZED_LAYERS) and recipe.precision_of(name, isinstance(module, nn.Conv2d)) != "fp32"
    }


@torch.no_grad()
def layer_sensitivity(
    deployed: nn.Module,
    recipe: Recipe,
    images: list[torch.Tensor],
    reference: np.ndarray,
    are_logits: bool = True,
    num_classes: int | None = None,
) -> list[Sensitivity]:
    """Sensitivity of each quantized layer of a deploy form, the most sensitive first.

    A layer before a ReLU is quantized together with it, so that its output is rounded behind the ReLU.

    reference: (n, ..) outputs of the deploy form for the n `images`, flattened. num_classes: as for `compare`.
    """
    layers = quantized_layers(deployed, recipe)
    before_relu = _before_relu(deployed, layers, images[0])
    ranges = _ranges(deployed, layers, images, before_relu)
    found = []
    for name, layer in layers.items():
        precision = recipe.precision_of(name)
        weight = layer.weight.data
        layer.weight.data = _rounded_in_groups(weight) if precision == "int4-dynamic" else _rounded_per_channel(weight)
        static = precision == "int8-static"
        low_in, high_in, low_out, high_out = ranges[name]
        hooks = []
        if static:
            hooks = [
                layer.register_forward_pre_hook(lambda _, arguments: (_rounded(arguments[0], low_in, high_in),)),  # noqa: B023
                layer.register_forward_hook(lambda _, __, output: _rounded(output, low_out, high_out)),  # noqa: B023
            ]
        else:
            hooks = [layer.register_forward_pre_hook(lambda _, arguments: (_rounded_per_token(arguments[0]),))]
        outputs = np.concatenate([flat(deployed(pixel_values)) for pixel_values in images])
        layer.weight.data = weight
        for hook in hooks:
            hook.remove()
        found.append(Sensitivity(name, precision, compare(outputs, reference, are_logits, num_classes).sqnr_db))
    return sorted(found, key=lambda sensitivity: sensitivity.sqnr_db)


def _before_relu(deployed: nn.Module, layers: dict[str, nn.Module], image: torch.Tensor) -> set[str]:
    """Names of the layers whose output goes into a ReLU."""
    outputs: dict[str, torch.Tensor] = {}
    found = set()
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, layer in layers.items()
    ]
    for module in deployed.modules():
        if isinstance(module, DeployActivation) and module.function is torch.relu:
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, taken: found.update(name for name, output in outputs.items() if output is taken[0])
                )
            )
    deployed(image)
    for hook in hooks:
        hook.remove()
    return found


def _ranges(
    deployed: nn.Module, layers: dict[str, nn.Module], images: list[torch.Tensor], before_relu: set[str]
) -> dict[str, list[float]]:
    """Lowest and highest input, and lowest and highest output, of each layer, behind its ReLU if it has one."""
    ranges: dict[str, list[float]] = {name: [0.0, 0.0, 0.0, 0.0] for name in layers}

    def note(name: str, values: torch.Tensor, at: int) -> None:
        lowest = 0.0 if at == 2 and name in before_relu else float(values.min())
        ranges[name][at] = min(ranges[name][at], lowest)
        ranges[name][at + 1] = max(ranges[name][at + 1], float(values.max()))

    hooks = []
    for name, layer in layers.items():
        hooks.append(layer.register_forward_pre_hook(lambda _, arguments, name=name: note(name, arguments[0], 0)))
        hooks.append(layer.register_forward_hook(lambda _, __, output, name=name: note(name, output, 2)))
    for pixel_values in images:
        deployed(pixel_values)
    for hook in hooks:
        hook.remove()
    return ranges


def _rounded(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Values rounded to 256 levels between two limits, like a static int8 tensor."""
    scale = max(high - low, 1e-12) / 255
    zero_point = round(-128 - low / scale)
    return torch.fake_quantize_per_tensor_affine(values, scale, max(-128, min(127, zero_point)), -128, 127)


def _rounded_per_channel(weight: torch.Tensor, levels: int = INT8_LEVELS) -> torch.Tensor:
    """Weights rounded with a scale per output channel to `levels` levels on either side of 0."""
    scale = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / levels
    zero_points = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_points, 0, -levels, levels)


def _rounded_in_groups(weight: torch.Tensor) -> torch.Tensor:
    """Weights rounded with a scale per group to 15 levels; unchanged if their width is no multiple of the group."""
    if weight.shape[1] % INT4_GROUP:
        return weight
    return _rounded_per_channel(weight.reshape(-1, INT4_GROUP), INT4_LEVELS).view(weight.shape)


def _rounded_per_token(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens rounded to 256 levels each, like a dynamic int8 tensor."""
    low, high = tokens.amin(dim=-1, keepdim=True).clamp(max=0), tokens.amax(dim=-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    return torch.round(tokens / scale) * scale
