"""The deploy form in half precision, for images and outputs in single precision."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from edge.activations import GELU_TANH_SCALE, DeployActivation, gelu_tanh
from edge.deploy_layers import DeployCosineAttention
from edge.folding import Normalise

LARGEST_CUBED = 10.0
LARGEST_SQUARED = 128.0  # of the numbers that are squared: float16 ends at 65504
SMALLEST_NORMAL = 2.0**-14  # of float16; the kernels of ARM processors take less for 0, and then divide by it


class DividedInverseRoot(nn.Module):
    """1 / sqrt(x) as it is written: the kernels of ARM processors for rsqrt square its result, which float16 cannot hold."""

    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one / torch.sqrt(x)


def bounded_gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """gelu_tanh whose cubes fit into float16: tanh is 1 long before."""
    z = torch.clamp(x, -LARGEST_CUBED, LARGEST_CUBED)
    return 0.5 * x * (1.0 + torch.tanh(GELU_TANH_SCALE * (z + 0.044715 * (z * z * z))))


def _largest_tokens(deployed: nn.Module, images: list[torch.Tensor]) -> dict[Normalise, float]:
    """The largest number that each norm squares."""
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
        """images: inputs of the deploy form, to see how large the numbers get that it squares."""
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
            if isinstance(module, DeployActivation) and module.function in (F.gelu, gelu_tanh):
                # XNNPACK has no exact gelu in float16; the usual approximation differs from it by 5e-4 at most.
                module.function = bounded_gelu_tanh
        self.inner.half()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        outputs = self.inner(pixel_values if pixel_values.dtype == torch.uint8 else pixel_values.half())
        return outputs.float() if isinstance(outputs, torch.Tensor) else tuple(output.float() for output in outputs)
