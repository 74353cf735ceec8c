"""Masked image modelling: images are predicted from their unmasked parts, for pre-training without labels."""

# B batch, H W image in pixels

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForMaskedImageModeling, EvalPrediction

from distill.data.normalisation import Normalisation
from distill.data.targets import NOTHING
from distill.errors import require
from distill.training.tasks.task import Metric, Objective, ObjectiveContext, Output, Panels, Task, pictures_of
from swin_hf import SwinHfConfig


class MaskedImageModeling(Objective):
    """SimMIM (Xie et al. 2022, arXiv:2111.09886): predicts the pixels of masked squares from the rest of the image."""

    def __init__(self, processor, patch_size: int, mask_patch_size: int, mask_share: float):
        super().__init__()
        self.normalise = Normalisation(processor)
        self.patch_size, self.mask_patch_size, self.mask_share = patch_size, mask_patch_size, mask_share

    def augment(self, pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch unchanged: only the masked squares are random."""
        return pixels, targets

    def learn(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor, crops: np.ndarray | None = None) -> Output:
        return self._reconstruct(model, pixels, None)

    def judge(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> Output:
        return self._reconstruct(model, pixels, torch.Generator().manual_seed(0))  # every evaluation masks the same squares

    def _reconstruct(self, model: nn.Module, pixels: torch.Tensor, random: torch.Generator | None) -> Output:
        masked = self.sample_mask(*pixels.shape[:1], *pixels.shape[2:], random).to(pixels.device)
        loss = model(pixel_values=self.normalise(pixels), bool_masked_pos=masked.flatten(1)).loss
        return Output(loss=loss, predictions=loss.repeat(len(pixels)))

    def draw(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[Panels]:
        masked = self.sample_mask(*pixels.shape[:1], *pixels.shape[2:], torch.Generator().manual_seed(0)).to(pixels.device)
        output = model(pixel_values=self.normalise(pixels), bool_masked_pos=masked.flatten(1))
        hidden = masked.repeat_interleave(self.patch_size, 1).repeat_interleave(self.patch_size, 2)[:, None]
        guessed = torch.where(hidden, self.normalise.undo(output.reconstruction.float()), pixels)
        rows = zip(pictures_of(pixels), pictures_of(pixels.masked_fill(hidden, 0.5)), pictures_of(guessed))
        return [Panels(pictures=list(row), caption="image, what was seen, prediction") for row in rows]

    def sample_mask(self, batch_size: int, height: int, width: int, random: torch.Generator | None = None) -> torch.Tensor:
        """Masks (B, rows, columns) of patches, each with the same number of whole squares (section 3.2)."""
        side = self.mask_patch_size
        rows, columns = height // side, width // side
        num_masked = math.ceil(self.mask_share * rows * columns)
        order = torch.rand(batch_size, rows * columns, generator=random).argsort(dim=1)
        squares = (order.argsort(dim=1) < num_masked).view(batch_size, rows, columns)
        patches = side // self.patch_size
        return squares.repeat_interleave(patches, 1).repeat_interleave(patches, 2)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return {"reconstruction_error": float(np.mean(prediction.predictions))}


def make_objective(context: ObjectiveContext) -> MaskedImageModeling:
    side, size = context.task.mask_patch_size, context.task.image_size
    patch = context.config.patch_height_width[0]
    fits = side % patch == 0 and size % side == 0
    require(fits, "mask_patch_size", f"be a multiple of the patch of {patch} pixels and divide --image_size {size}", side)
    return MaskedImageModeling(context.processor, patch, side, context.task.mask_share)


def reconstruct_every_token(config: SwinHfConfig, changes: dict[str, Any]) -> None:
    """Make the decoder of a preset enlarge its last feature map to the size of the image."""
    if "encoder_stride" not in changes:
        config.encoder_stride = config.token_height_width[0]


MASKED_IMAGE_MODELING = Task(
    name="masked-image-modeling",
    auto_class=AutoModelForMaskedImageModeling,
    targets=NOTHING,
    make_objective=make_objective,
    judged_by=(Metric(name="reconstruction_error", higher_is_better=False, shown_as="validation"),),
    adapt_config=reconstruct_every_token,
    size_multiple=lambda settings: settings.mask_patch_size,
)
