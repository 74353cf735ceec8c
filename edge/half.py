"""The deploy form in half precision, for images and outputs in single precision."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from edge.activations import DeployActivation, gelu_tanh
from edge.folding import Normalise

PRESCALE = 1 / 16  # tokens times this are squared: float16 ends at 65504, and the residual stream goes into the hundreds


class HalfPrecision(nn.Module):
    """A deploy form that computes in float16 and takes and returns float32."""

    def __init__(self, deployed: nn.Module):
        super().__init__()
        self.inner = copy.deepcopy(deployed)
        for module in self.inner.modules():
            if isinstance(module, Normalise):
                module.prescaled(PRESCALE)
            if isinstance(module, DeployActivation) and module.function is F.gelu:
                # XNNPACK has no exact gelu in float16; the usual approximation differs from it by 5e-4 at most.
                module.function = gelu_tanh
        self.inner.half()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        outputs = self.inner(pixel_values if pixel_values.dtype == torch.uint8 else pixel_values.half())
        return outputs.float() if isinstance(outputs, torch.Tensor) else tuple(output.float() for output in outputs)
