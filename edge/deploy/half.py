"""The deploy form in half precision, for images and outputs in single precision."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from edge.deploy.activations import (
    GELU_TANH_SCALE,
    DeployActivation,
    DeployXIELU,
    clipped_gelu,
    gelu_tanh,
    laplace,
    mish,
    squared_relu,
)
from edge.deploy.folding import Normalise
from edge.deploy.layers import DeployCosineAttention

LARGEST_CUBED = 10.0
LARGEST_SQUARE_ROOT = 255.0
LARGEST_SQUARED = 128.0  # of the numbers that are squared: the largest float16 is 65504
SMALLEST_NORMAL = 2.0**-14  # of float16; ARM kernels flush smaller numbers to 0, and then divide by it


class DividedInverseRoot(nn.Module):
    """1 / sqrt(x) as a division: rsqrt kernels of ARM processors square their result, which float16 cannot hold."""

    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one / torch.sqrt(x)


def gelu_probability(x: torch.Tensor) -> torch.Tensor:
    """gelu(x) / x in its tanh approximation, with x clamped so that its cube fits into float16 (it saturates long before).

    XNNPACK has no exact gelu in float16; the approximation differs from it by 5e-4 at most. (1 + tanh(y)) / 2 is written as
    sigmoid(2 y): near -1 float16 holds tanh to 1 / 2048 only, and some kernels stop a step before it, so that large negative
    x would not become 0.
    """
    z = torch.clamp(x, -LARGEST_CUBED, LARGEST_CUBED)
    return torch.sigmoid(2.0 * GELU_TANH_SCALE * (z + 0.044715 * (z * z * z)))


def half_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * gelu_probability(x)


def half_clipped_gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.clamp(half_gelu(x), -10.0, 10.0)


def half_laplace(x: torch.Tensor) -> torch.Tensor:
    return gelu_probability((x - 0.707107) * (1 / 0.282095))


def half_mish(x: torch.Tensor) -> torch.Tensor:
    """mish whose squares fit into float16; from 5 on it equals x in that precision."""
    e = torch.exp(torch.clamp(x, max=5.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


def half_squared_relu(x: torch.Tensor) -> torch.Tensor:
    positive = torch.clamp(x, 0.0, LARGEST_SQUARE_ROOT)
    return positive * positive


def half_hardswish(x: torch.Tensor) -> torch.Tensor:
    return x * (torch.clamp(x + 3.0, 0.0, 6.0) * (1 / 6))


FUNCTIONS = {  # replacements of those that overflow or that XNNPACK has in single precision only
    F.gelu: half_gelu,
    gelu_tanh: half_gelu,
    clipped_gelu: half_clipped_gelu,
    laplace: half_laplace,
    mish: half_mish,
    squared_relu: half_squared_relu,
    F.hardswish: half_hardswish,
}


def half_activation(activation: nn.Module) -> None:
    """Replace the function of an activation by one that works in float16."""
    if isinstance(activation, DeployActivation):
        activation.function = FUNCTIONS.get(activation.function, activation.function)
    elif isinstance(activation, DeployXIELU):
        activation.largest = LARGEST_SQUARE_ROOT


def _largest_tokens(deployed: nn.Module, images: list[torch.Tensor]) -> dict[Normalise, float]:
    """The largest absolute value that each norm squares."""
    largest: dict[Normalise, float] = {}

    def note(module: Normalise, arguments: tuple[torch.Tensor]) -> None:
        tokens = arguments[0]
        if module.centre:
            tokens = tokens - tokens.mean(dim=1, keepdim=True)
        largest[module] = max(largest.get(module, 0.0), float(tokens.abs().max()))

    norms = [module for module in deployed.modules() if isinstance(module, Normalise)]
    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    with torch.no_grad():
        for pixel_values in images:
            deployed(pixel_values)
    for hook in hooks:
        hook.remove()
    return largest


class HalfPrecision(nn.Module):
    """A deploy form that computes in float16 and takes and returns float32."""

    def __init__(self, deployed: nn.Module, images: list[torch.Tensor]):
        """images: inputs of the deploy form, on which the numbers that it squares are measured."""
        super().__init__()
        self.inner = copy.deepcopy(deployed)
        for module, largest in _largest_tokens(self.inner, images).items():
            factor = 2.0 ** math.floor(math.log2(LARGEST_SQUARED / max(largest, LARGEST_SQUARED / 2**10)))
            module.prescaled(factor)
            module.eps.clamp_(min=SMALLEST_NORMAL)
        for module in list(self.inner.modules()):
            if isinstance(module, DeployCosineAttention):
                module.smallest_squared_norm = SMALLEST_NORMAL
            if hasattr(module, "inverse_root"):
                module.inverse_root = DividedInverseRoot()
            half_activation(module)
        self.inner.half()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        outputs = self.inner(pixel_values if pixel_values.dtype == torch.uint8 else pixel_values.half())
        return outputs.float() if isinstance(outputs, torch.Tensor) else tuple(output.float() for output in outputs)
