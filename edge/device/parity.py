"""How close two sets of outputs are."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parity:
    """Comparison of outputs (n, K) with reference outputs (n, K).

    max_difference: largest absolute difference.
    sqnr_db: 10 log10(|reference|^2 / |difference|^2) summed over all images, so that good ones do not hide a bad one. Logits
        are first centred over classes, since adding a constant to all of them changes nothing.
    agreement: share of images with the same top class; None for feature maps.
    kl: mean KL(reference || outputs) of the probabilities, in nats; None for feature maps.
    """

    num_images: int
    max_difference: float
    sqnr_db: float
    agreement: float | None
    kl: float | None


def compare(outputs: np.ndarray, reference: np.ndarray, are_logits: bool = True) -> Parity:
    """Compare outputs (n, K) with a reference of the same shape."""
    outputs, reference = outputs.astype(np.float64), reference.astype(np.float64)
    difference = outputs - reference
    centre = reference.mean(axis=1, keepdims=True) if are_logits else 0.0
    drift = difference.mean(axis=1, keepdims=True) if are_logits else 0.0
    signal, noise = (max(float((values**2).sum()), 1e-20) for values in (reference - centre, difference - drift))
    agreement = kl = None
    if are_logits:
        agreement = float((outputs.argmax(axis=1) == reference.argmax(axis=1)).mean())
        expected = log_softmax(reference)
        kl = float((np.exp(expected) * (expected - log_softmax(outputs))).sum(axis=1).mean())
    return Parity(
        num_images=len(outputs),
        max_difference=float(np.abs(difference).max()),
        sqnr_db=float(10 * np.log10(signal / noise)),
        agreement=agreement,
        kl=kl,
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities of logits (..., K)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
