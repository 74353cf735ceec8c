"""How close two sets of logits are."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parity:
    """Comparison of logits (n, K) with reference logits (n, K).

    max_difference: largest absolute difference.
    sqnr_db: mean over images of 10 log10(|reference|^2 / |difference|^2), the reference less its mean over classes, since
        a constant added to all logits changes nothing.
    agreement: share of images with the same top class.
    """

    num_images: int
    max_difference: float
    sqnr_db: float
    agreement: float


def compare(logits: np.ndarray, reference: np.ndarray) -> Parity:
    """Compare logits (n, K) with a reference of the same shape."""
    difference = logits - reference
    signal = ((reference - reference.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    noise = np.maximum(((difference - difference.mean(axis=1, keepdims=True)) ** 2).sum(axis=1), 1e-20)
    return Parity(
        num_images=len(logits),
        max_difference=float(np.abs(difference).max()),
        sqnr_db=float(np.mean(10 * np.log10(np.maximum(signal, 1e-20) / noise))),
        agreement=float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean()),
    )
