"""Norms split into a normalisation and constants that are folded into neighbouring linear layers.

A norm is "normalise, then scale and shift each channel". Before a linear layer, scale and shift become part of that layer
(Swin, which normalises before each branch). After one, the layer can centre its own outputs over the channels, or absorb all
of a BatchNorm (Swin V2, and the norm of the patch embeddings).
"""

# C channels

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Affine:
    """`x * scale + shift` for each of C channels."""

    scale: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def identity(cls, channels: int) -> "Affine":
        return cls(torch.ones(channels), torch.zeros(channels))


class InverseRoot(nn.Module):
    """1 / sqrt(x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.rsqrt(x)


class Normalise(nn.Module):
    """Divide (L, C) tokens by their deviation over the channels, in matrix products with a column of 1 / C.

    XNNPACK has no kernel for LayerNorm nor for means over the last dimension.

    centre: subtract the mean first. RMSNorm does not, nor is it needed if the linear layer before centres its outputs.
    """

    def __init__(self, channels: int, eps: float, centre: bool):
        super().__init__()
        self.centre, self.prescale = centre, 1.0
        self.register_buffer("eps", torch.tensor([eps]))
        self.register_buffer("mean_column", torch.full((channels, 1), 1.0 / channels))
        self.inverse_root = InverseRoot()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        centred = self.centred(tokens)
        return centred * self.inverse_deviation(centred)

    def centred(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens before they are divided."""
        if self.centre:
            tokens = tokens - torch.mm(tokens, self.mean_column)
        return tokens * self.prescale if self.prescale != 1.0 else tokens

    def inverse_deviation(self, centred: torch.Tensor) -> torch.Tensor:
        """What each of the centred tokens is multiplied by, (L, 1)."""
        return self.inverse_root(torch.addmm(self.eps, centred * centred, self.mean_column))

    def prescaled(self, factor: float) -> None:
        """Scale tokens by `factor` before they are squared; the output does not change."""
        self.prescale = factor
        self.eps.mul_(factor**2)


class Rescale(nn.Module):
    """An affine map of the channels that cannot be folded into a linear layer."""

    def __init__(self, affine: Affine):
        super().__init__()
        self.register_buffer("scale", affine.scale)
        self.register_buffer("shift", affine.shift if affine.shift.any() else None)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens * self.scale
        return tokens if self.shift is None else tokens + self.shift


def take_apart(norm: nn.Module) -> tuple[nn.Module, Affine]:
    """The part of a norm that depends on the token, and the constant part."""
    if isinstance(norm, _BatchNorm):
        scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        return nn.Identity(), Affine(scale, norm.bias.detach() - norm.running_mean * scale)
    centre = isinstance(norm, nn.LayerNorm)
    shift = norm.bias.detach() if centre else torch.zeros_like(norm.weight)
    return Normalise(norm.weight.numel(), norm.eps, centre), Affine(norm.weight.detach(), shift)


def with_affine_before(layer: nn.Linear | nn.Conv2d, affine: Affine) -> nn.Module:
    """A layer that maps x to layer(affine(x)), for a linear layer or a pointwise convolution."""
    weight = layer.weight.detach().double()
    matrix = weight.flatten(1)
    return _like(layer, (matrix * affine.scale.double()).view_as(weight), _bias(layer) + matrix @ affine.shift.double())


def norm_after(layer: nn.Linear | nn.Conv2d, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """`layer` with as much of the following `norm` folded into it as possible, and the rest of the norm."""
    normalise, affine = take_apart(norm)
    weight, bias = layer.weight.detach().double(), _bias(layer)
    if isinstance(normalise, Normalise):
        if normalise.centre:
            weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
            normalise = Normalise(len(bias), float(normalise.eps), centre=False)
        return _like(layer, weight, bias), nn.Sequential(normalise, Rescale(affine))
    scale = affine.scale.double()
    weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    return _like(layer, weight, bias * scale + affine.shift.double()), nn.Identity()


def scaled_rows(linear: nn.Linear, scale: torch.Tensor | float) -> nn.Linear:
    """A layer whose output channels are those of `linear` times `scale`, one number or one per channel."""
    weight = linear.weight.detach().double() * (scale if isinstance(scale, float) else scale.double()[:, None])
    return _linear(weight, None if linear.bias is None else _bias(linear) * scale)


def _bias(layer: nn.Linear | nn.Conv2d) -> torch.Tensor:
    """The bias in double precision, zeros where there is none."""
    if layer.bias is None:
        return torch.zeros(layer.weight.shape[0], dtype=torch.float64)
    return layer.bias.detach().double()


def _like(layer: nn.Linear | nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    """A copy of a layer with other weights; without a bias where it would add nothing."""
    bias = bias if layer.bias is not None or bool(bias.any()) else None
    if isinstance(layer, nn.Linear):
        return _linear(weight, bias)
    return conv(layer, weight, bias)


def conv(layer: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    """A convolution like `layer`, with its stride, padding and groups, of these weights."""
    made = nn.Conv2d(
        in_channels=weight.shape[1] * layer.groups,
        out_channels=weight.shape[0],
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        groups=layer.groups,
        bias=bias is not None,
    )
    return _with_values(made, weight, bias)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    return _with_values(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None), weight, bias)


def _with_values(layer: nn.Linear | nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
