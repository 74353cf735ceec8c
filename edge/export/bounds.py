"""The bounds that a recipe sets on how far a program may be from its model."""

from dataclasses import asdict, dataclass

import numpy as np

from edge.device.parity import Parity
from edge.device.temperature import MIN_LABELLED_IMAGES
from edge.lower.recipes import Recipe

ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracies of a model and its program on held-out images: shares of right images, or mean IoUs of class maps."""

    num_images: int
    model: float
    program: float

    @property
    def figures(self) -> dict[str, float | int]:
        """As in `edge.json`."""
        return asdict(self)


def count_right(expected: np.ndarray, logits: np.ndarray, classes: np.ndarray) -> Accuracy:
    """Accuracy of a model's logits `expected` (n, K) and its program's `logits` (n, K) on images of the `classes` (n,)."""
    model, program = (float((values.argmax(axis=1) == classes).mean()) for values in (expected, logits))
    return Accuracy(num_images=len(classes), model=model, program=program)


def missed_bound(recipe: Recipe, parity: Parity) -> str:
    """Which bound of a recipe outputs miss, in words; empty if none."""
    agreement = 1.0 if parity.agreement is None else parity.agreement
    is_close = parity.sqnr_db is None or parity.sqnr_db >= recipe.min_sqnr_db
    if is_close and agreement >= recipe.min_agreement:
        return ""
    decibels = "" if parity.sqnr_db is None else f"{parity.sqnr_db:.1f} dB and "
    return (
        f"must keep {recipe.min_sqnr_db:.0f} dB and {recipe.min_agreement:.0%} agreement with the model on "
        f"{parity.num_images} images, got {decibels}{agreement:.1%}"
    )


def missed_accuracy(recipe: Recipe, accuracy: Accuracy) -> str:
    """How a program misses the bound of a recipe on accuracy, in words; empty if it does not, or if images are too few."""
    n, lost = accuracy.num_images, accuracy.model - accuracy.program
    if n < MIN_LABELLED_IMAGES or lost <= max(1 / n, recipe.max_accuracy_drop) + ROUNDING:
        return ""
    return (
        f"must lose {recipe.max_accuracy_drop:.1%} of accuracy at most, got {accuracy.program:.1%} after "
        f"{accuracy.model:.1%} on {n} held-out images"
    )
