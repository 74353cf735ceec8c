"""Batched geometric augmentation on the training device, so that teacher and student can be shown the very same pixels."""

import math

import torch
from torch import nn

from distill.pipeline.settings import AugmentationSettings


class RandomAffine(nn.Module):
    """Rotate, shift, scale, shear and perhaps mirror each image of a batch (B, C, H, W) by its own random amount.

    What comes in from outside the image repeats its border. The randomness is that of PyTorch's global generator on the CPU,
    which a Trainer checkpoint stores, so a resumed run sees the same images.
    """

    def __init__(self, settings: AugmentationSettings):
        super().__init__()
        self.settings = settings

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        matrices = self.sample_matrices(images.shape[0], images.shape[2] / images.shape[3]).to(images.device)
        grid = nn.functional.affine_grid(matrices, list(images.shape), align_corners=False)
        return nn.functional.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)

    def sample_matrices(self, batch_size: int, aspect: float = 1.0) -> torch.Tensor:
        """Random output-to-input maps (B, 2, 3) in coordinates of -1 to 1; `aspect` is height over width."""
        limits = self.settings

        def uniform(limit: float) -> torch.Tensor:
            return (torch.rand(batch_size) * 2 - 1) * limit

        angle = uniform(math.radians(limits.rotation_degrees))
        scale = 1 + uniform(limits.scale_share)
        shear = uniform(limits.shear_share)
        shift_x, shift_y = uniform(2 * limits.translate_share), uniform(2 * limits.translate_share)  # 2 spans the image
        mirror = torch.ones(batch_size)
        if limits.horizontal_flip:
            mirror = torch.where(torch.rand(batch_size) < 0.5, -1.0, 1.0)
        cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
        top = torch.stack((mirror * cosine, mirror * (shear * cosine - sine) * aspect, shift_x), dim=1)
        bottom = torch.stack((sine / aspect, shear * sine + cosine, shift_y), dim=1)
        return torch.stack((top, bottom), dim=1)
