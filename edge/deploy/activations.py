"""Activations in the operations that a mobile backend takes.

XNNPACK lowers every `gelu` as the exact one, whatever its `approximate` is, and takes neither `erf` nor `softplus` nor powers
other than squares. So every activation for which it has no kernel is written out here.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

GELU_TANH_SCALE = math.sqrt(2 / math.pi)
LARGEST_SQUARE_ROOT = 1e18  # of float32
SMALLEST_STEP = 1e-20  # far below the spacing of floats around any other argument


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.tanh(GELU_TANH_SCALE * (x + 0.044715 * (x * x * x))))


def clipped_gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.clamp(F.gelu(x), -10.0, 10.0)


def laplace(x: torch.Tensor) -> torch.Tensor:
    """The normal distribution's integral, as gelu(z) / z."""
    z = (x - 0.707107) * (1 / 0.282095) + SMALLEST_STEP
    return F.gelu(z) / z


def mish(x: torch.Tensor) -> torch.Tensor:
    """x tanh(log(1 + e)) with e = exp(x) is x n / (n + 2) with n = e (e + 2); from 20 on it is x."""
    e = torch.exp(torch.clamp(x, max=20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


def sqrt_softplus(x: torch.Tensor) -> torch.Tensor:
    """sqrt(max(x, 0) + log(1 + e)), e = exp(-|x|); the logarithm as a series of 2 artanh(e / (2 + e)), since 1 + e loses e."""
    e = torch.exp(-torch.abs(x))
    ratio = e / (e + 2.0)
    square = ratio * ratio
    series = square * (1 / 13) + 1 / 11
    for denominator in (9, 7, 5, 3, 1):
        series = square * series + 1 / denominator
    return torch.sqrt(torch.relu(x) + 2.0 * ratio * series)


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    positive = torch.relu(x)
    return positive * positive


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def silu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def leaky_relu(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, 0.01)


def on_tokens(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """An activation of tokens (L, C), or of a map (B, C, H, W) as tokens.

    The constants of activations that are written out would make XNNPACK move the channels of a map to the front and back.
    """
    if x.ndim != 4:
        return function(x)
    B, C, H, W = x.shape
    return function(x.permute(0, 2, 3, 1).reshape(-1, C)).view(B, H, W, C).permute(0, 3, 1, 2)


class DeployPReLU(nn.Module):
    """PReLU with its learned slope, which XNNPACK takes for 4-D maps only."""

    def __init__(self, prelu: nn.PReLU):
        super().__init__()
        self.register_buffer("slope", prelu.weight.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return on_tokens(lambda tokens: torch.relu(tokens) - self.slope * torch.relu(-tokens), x)


class DeployXIELU(nn.Module):
    """xIELU (Huang et al. 2024, arXiv:2411.13010) with its learned slopes.

    largest: upper limit of the argument that is squared.
    """

    def __init__(self, xielu: nn.Module):
        super().__init__()
        self.largest = LARGEST_SQUARE_ROOT
        self.beta = float(xielu.beta)
        self.alpha_positive = float(F.softplus(xielu.alpha_p.detach().float()))
        self.alpha_negative = self.beta + float(F.softplus(xielu.alpha_n.detach().float()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return on_tokens(self.curve, x)

    def curve(self, x: torch.Tensor) -> torch.Tensor:
        positive, negative = torch.clamp(x, 0.0, self.largest), torch.clamp(x, max=0.0)
        curved = self.alpha_negative * (torch.exp(negative) - 1.0 - negative)
        return self.alpha_positive * (positive * positive) + curved + self.beta * x


class DeployActivation(nn.Module):
    """An activation without parameters."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x) if self.function in KERNELS else on_tokens(self.function, x)


KERNELS = frozenset((F.gelu, torch.relu, F.relu6, F.hardswish, torch.tanh, torch.sigmoid))  # which XNNPACK has
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys(("gelu", "gelu_python"), F.gelu),
    **dict.fromkeys(
        ("gelu_fast", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"),
        gelu_tanh,
    ),
    "gelu_10": clipped_gelu,
    "hardswish": F.hardswish,
    "laplace": laplace,
    "leaky_relu": leaky_relu,
    "mish": mish,
    "quick_gelu": quick_gelu,
    "relu": torch.relu,
    "relu2": squared_relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    **dict.fromkeys(("silu", "swish"), silu),
    "sqrtsoftplus": sqrt_softplus,
    "tanh": torch.tanh,
}


def deploy_activation(name: str, module: nn.Module) -> nn.Module:
    """The deploy form of `module`, the activation `name` of `ACT2FN`.

    An activation that is unknown here is returned unchanged; the export finds out whether the backend takes it.
    """
    if name == "linear":
        return nn.Identity()
    if name == "prelu":
        return DeployPReLU(module)
    if name == "xielu":
        return DeployXIELU(module)
    return DeployActivation(FUNCTIONS[name]) if name in FUNCTIONS else module
