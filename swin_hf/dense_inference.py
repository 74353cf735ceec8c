"""Class maps of large images: sliding windows, and the mean over scales and mirror images."""

# B batch, H W image in pixels, K classes

import torch
from torch import nn
from transformers import PreTrainedModel

from .segmentation_heads_swin_hf import resized


@torch.no_grad()
def class_probabilities(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
) -> torch.Tensor:
    """Probabilities (B, K, H, W) of the classes of the pixels of normalised images (B, C, H, W) of any size.

    window, stride: look at windows of this (height, width), so far apart, and take the mean of their logits where they
        overlap. By default the window is the whole image, and the stride 2/3 of the window, as is usual on ADE20K.
    scales: of the image; the mean of the probabilities at each is taken. flip: and of those for the mirror image.

    Raises:
        ValueError: a window, stride or scale that is not positive, or a stride larger than the window.
    """
    if window is not None:
        stride = stride or tuple(max(2 * side // 3, 1) for side in window)
        if not all(0 < step <= side for step, side in zip(stride, window)):
            raise ValueError(f"stride must be positive and no larger than the window {window}, got {stride}")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive numbers, got {scales}")
    size, total = pixel_values.shape[2:], 0.0
    for scale in scales:
        scaled = _scaled(pixel_values, scale)
        for mirrored in (False, True) if flip else (False,):
            given = scaled.flip(3) if mirrored else scaled
            logits = _logits(model, given) if window is None else sliding_logits(model, given, window, stride)
            total = total + resized(logits.flip(3) if mirrored else logits, size).softmax(dim=1)
    return total / (len(scales) * (1 + flip))


@torch.no_grad()
def sliding_logits(
    model: PreTrainedModel, pixel_values: torch.Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> torch.Tensor:
    """Logits (B, K, H, W) of images (B, C, H, W) from overlapping windows, the last of which end with the image."""
    total, count = 0.0, torch.zeros(1, 1, *pixel_values.shape[2:], device=pixel_values.device)
    for top, bottom in _intervals(pixel_values.shape[2], window[0], stride[0]):
        for left, right in _intervals(pixel_values.shape[3], window[1], stride[1]):
            logits = _logits(model, pixel_values[:, :, top:bottom, left:right])
            around = (left, pixel_values.shape[3] - right, top, pixel_values.shape[2] - bottom)
            total = total + nn.functional.pad(logits, around)
            count[:, :, top:bottom, left:right] += 1
    return total / count


def _intervals(length: int, side: int, step: int) -> list[tuple[int, int]]:
    """Begin and end of each window along one side of an image."""
    begins = [*range(0, max(length - side, 0), step), max(length - side, 0)]
    return [(begin, min(begin + side, length)) for begin in begins]


def _logits(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    return resized(model(pixel_values=pixel_values).logits.float(), pixel_values.shape[2:])


def _scaled(pixel_values: torch.Tensor, scale: float) -> torch.Tensor:
    if scale == 1:
        return pixel_values
    size = tuple(max(round(side * scale), 1) for side in pixel_values.shape[2:])
    return nn.functional.interpolate(pixel_values, size=size, mode="bilinear", antialias=scale < 1)
