"""From pixels in [0, 1] to a model's input, and back."""

import torch
from torch import nn

LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in grey (ITU-R BT.601), Pillow's


class Normalisation(nn.Module):
    """Normalises RGB pixels (B, 3, H, W) in [0, 1] as an image processor does, for models of greyscale as (B, 1, H, W).

    The values stay as they are if the processor does not normalise.
    """

    def __init__(self, processor):
        super().__init__()
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,), (1.0,))
        self.is_grey = channels_of(processor) == 1
        self.register_buffer("luma", torch.tensor(LUMA).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.is_grey:
            pixels = (pixels * self.luma).sum(dim=1, keepdim=True)
        return (pixels - self.mean) / self.std

    def undo(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] from a model's input."""
        return pixel_values * self.std + self.mean


def channels_of(processor) -> int:
    """Channels of the images that a processor makes: 1 for greyscale, else 3."""
    if hasattr(processor, "num_channels"):
        return processor.num_channels
    mean = processor.image_mean if processor.do_normalize else None
    return 1 if isinstance(mean, list | tuple) and len(mean) == 1 else 3
