"""From pixels in [0, 1] to a model's input, and back."""

import torch
from torch import nn


class Normalisation(nn.Module):
    """Normalises pixels (B, 3, H, W) in [0, 1] as an image processor does; changes nothing if that does not normalise."""

    def __init__(self, processor):
        super().__init__()
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean) / self.std

    def undo(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] from a model's input."""
        return pixel_values * self.std + self.mean
