"""Losses of the heads."""

# B batch, K classes, H W image in pixels

import torch
from torch import nn


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Loss of (B, K) logits: cross-entropy unless `problem_type` says otherwise.

    labels: (B,) class indices or (B, K) class probabilities (mixup, cutmix); (B, K) of 0 and 1 for
        "multi_label_classification"; (B,) or (B, K) numbers for "regression".
    label_smoothing: share of the label that is spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567).

    The stock models silently take float labels for a multi-label problem and train with binary cross-entropy.

    Raises:
        ValueError: labels of another shape or kind.
    """
    B, K = logits.shape
    if problem_type == "regression":
        if labels.numel() != logits.numel():
            raise ValueError(f"regression labels must hold {B} x {K} numbers like the logits, got {tuple(labels.shape)}")
        return nn.functional.mse_loss(logits, labels.view_as(logits).to(logits.dtype))
    if problem_type == "multi_label_classification":
        if labels.shape != logits.shape:
            raise ValueError(f"multi-label labels must have shape {(B, K)} like the logits, got {tuple(labels.shape)}")
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    is_soft = labels.is_floating_point()
    if tuple(labels.shape) != ((B, K) if is_soft else (B,)):
        raise ValueError(
            f"labels must be class indices of shape ({B},) or class probabilities of shape {(B, K)}, got {labels.dtype} "
            f'{tuple(labels.shape)}; set problem_type to "multi_label_classification" or "regression" for those'
        )
    if is_soft:
        labels = labels.to(logits.dtype)
    return nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def masked_reconstruction_loss(
    reconstruction: torch.Tensor, pixel_values: torch.Tensor, masked_pixels: torch.Tensor
) -> torch.Tensor:
    """Mean absolute error of (B, C, H, W) images over the pixels that `masked_pixels` (B, 1, H, W) marks (SimMIM).

    Xie et al. 2022, arXiv:2111.09886, section 3.4. As in the authors' code, a small constant avoids the division by zero of an
    empty mask.
    """
    error = nn.functional.l1_loss(reconstruction, pixel_values, reduction="none")
    return (error * masked_pixels).sum() / (masked_pixels.sum() + 1e-5) / pixel_values.shape[1]
