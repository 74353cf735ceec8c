"""Losses of the heads."""

# B batch, K classes, H W image in pixels

import torch
from torch import nn

FEWEST_HARD = 16  # of online hard example mining: one in so many pixels counts at least


def infer_problem_type(labels: torch.Tensor, num_labels: int) -> str:
    """The kind of problem that labels are of, for a model with so many outputs whose config does not say.

    As in the stock models: one output is a regression, integers are classes, other (B, K) labels are several labels of each
    image. Unlike there, rows that sum to 1 are class probabilities.
    """
    if num_labels == 1:
        return "regression"
    is_per_class = labels.ndim == 2 and labels.shape[1] == num_labels
    if is_per_class and (labels.dtype == torch.bool or (labels.is_floating_point() and not are_probabilities(labels))):
        return "multi_label_classification"
    return "single_label_classification"


@torch.compiler.disable(reason="it depends on the labels' values; set problem_type in the config")
def are_probabilities(labels: torch.Tensor) -> bool:
    """Whether every row of (B, K) numbers sums to 1, but for rounding."""
    return bool(((labels.detach().float().sum(dim=1) - 1).abs() < 0.5).all() & (labels.detach() >= 0).all())


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Loss of (B, K) logits for the kind of problem.

    labels: (B,) class indices or (B, K) class probabilities (mixup, cutmix) for "single_label_classification"; (B, K) of 0 and
        1 for "multi_label_classification"; (B,) or (B, K) numbers for "regression".
    problem_type: None infers it, as `infer_problem_type` says.
    label_smoothing: share of the label that is spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567).

    Raises:
        ValueError: labels of another shape or kind.
    """
    B, K = logits.shape
    problem_type = problem_type or infer_problem_type(labels, K)
    labels = labels.to(logits.device)
    if problem_type == "regression":
        if labels.numel() != logits.numel():
            raise ValueError(f"regression labels must hold {B} x {K} numbers like the logits, got {tuple(labels.shape)}")
        return nn.functional.mse_loss(logits, labels.reshape(logits.shape).to(logits.dtype))
    if problem_type == "multi_label_classification":
        if labels.shape != logits.shape:
            raise ValueError(f"multi-label labels must have shape {(B, K)} like the logits, got {tuple(labels.shape)}")
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    is_soft = labels.is_floating_point()
    if tuple(labels.shape) not in ([(B, K)] if is_soft else [(B,), (B, 1)]):
        raise ValueError(
            f"labels must be class indices of shape ({B},) or class probabilities of shape {(B, K)}, got {labels.dtype} "
            f'{tuple(labels.shape)}; set problem_type to "multi_label_classification" or "regression" for those'
        )
    if is_soft and not torch.compiler.is_compiling() and bool((labels.detach().float().sum(dim=1) > 1.5).any()):
        raise ValueError(
            "labels must be class probabilities, whose rows sum to 1, got rows that sum to more; set problem_type to "
            '"multi_label_classification" for several labels of an image'
        )
    labels = labels.to(logits.dtype) if is_soft else labels.reshape(B).long()
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


def segmentation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int = 255,
    class_weights: torch.Tensor | None = None,
    ohem_threshold: float | None = None,
    dice_weight: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy of the pixels of (B, K, H, W) logits, and a share of `dice_loss`; 0 where no pixel counts.

    labels: (B, H, W) class indices; pixels of `ignore_index` do not count.
    class_weights: (K,) numbers by which the pixels of each class count.
    ohem_threshold: count only the pixels whose own class has no higher probability, or if they are fewer than 1/16 of all,
        the 1/16 with the lowest (online hard example mining: Shrivastava et al. 2016, arXiv:1604.03540).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weight = None if class_weights is None else class_weights.to(logits)
    losses = nn.functional.cross_entropy(logits, labels, weight=weight, ignore_index=ignore_index, reduction="none")
    counts = labels != ignore_index
    shares = counts.to(losses.dtype) if weight is None else weight[labels.where(counts, 0)] * counts
    if ohem_threshold is not None:
        shares = shares * _hard(logits.detach(), labels, counts, ohem_threshold)
    loss = (losses * (shares > 0)).sum() / shares.sum().clamp_min(torch.finfo(losses.dtype).tiny)
    return loss + dice_weight * dice_loss(logits, labels, ignore_index) if dice_weight else loss


def _hard(logits: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor, threshold: float) -> torch.Tensor:
    """Which of the (B, H, W) pixels that count are hard."""
    own = logits.softmax(dim=1).gather(1, labels.where(counts, 0)[:, None])[:, 0].masked_fill(~counts, torch.inf)
    fewest = (counts.sum() // FEWEST_HARD).clamp_min(1)
    return own <= own.flatten().sort().values[fewest - 1].clamp_min(threshold)


def dice_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """1 less the mean Dice coefficient 2 |p t| / (|p| + |t|) of the classes that occur in (B, H, W) labels; 0 if none do.

    Of (B, K, H, W) logits, with probabilities p for the prediction, over all pixels of the batch that count (soft Dice:
    Milletari et al. 2016, arXiv:1606.04797, without the squares in the denominator).
    """
    counts = (labels != ignore_index)[:, None]
    probabilities = logits.softmax(dim=1) * counts
    truth = torch.zeros_like(probabilities).scatter_(1, labels[:, None].where(counts, 0), 1.0) * counts
    both, all_predicted, all_true = (values.sum(dim=(0, 2, 3)) for values in (probabilities * truth, probabilities, truth))
    occurs = (all_true > 0).to(both.dtype)
    coefficients = 2 * both / (all_predicted + all_true).clamp_min(torch.finfo(both.dtype).tiny)
    return (occurs - coefficients * occurs).sum() / occurs.sum().clamp_min(1)
