"""Constant tensors of a program, as floats or in int8."""

import torch
import torch.ao.quantization.fx._decomposed  # the quantized_decomposed operators
from torch import nn

LEVELS = 127  # of int8 on either side of 0


class Constant(nn.Module):
    """A constant tensor of the program."""

    def __init__(self, values: torch.Tensor):
        super().__init__()
        self.register_buffer("values", values)

    def forward(self) -> torch.Tensor:
        return self.read(self.values)

    def read(self, stored: torch.Tensor) -> torch.Tensor:
        """Floats from what is stored like this constant."""
        return stored

    def store(self, floats: torch.Tensor) -> torch.Tensor:
        """The inverse of `read`, for floats no larger than those of this constant."""
        return floats


class CompactConstant(Constant):
    """A constant tensor stored in int8 with one scale, exact to 1 / 254 of the largest value.

    As floats, position biases and masks of windows would be 1/20 of a program with int8 weights.
    """

    def __init__(self, values: torch.Tensor):
        scale = (float(values.abs().max()) or 1.0) / LEVELS
        super().__init__(torch.round(values / scale).to(torch.int8))
        self.rounding = (scale, 0, -LEVELS - 1, LEVELS, torch.int8)

    def read(self, stored: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized_decomposed.dequantize_per_tensor(stored, *self.rounding)

    def store(self, floats: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized_decomposed.quantize_per_tensor(floats, *self.rounding)


def constant(values: torch.Tensor, compact: bool) -> Constant:
    return CompactConstant(values) if compact else Constant(values)
