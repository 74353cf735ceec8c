"""How close two sets of outputs are."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parity:
    """Comparison of outputs with reference outputs.

    max_difference: largest absolute difference; None for class maps.
    sqnr_db: 10 log10(|reference|^2 / |difference|^2) summed over all images, so that good ones do not hide a bad one. Logits
        are first centred over classes, since adding a constant to all of them changes nothing. None for class maps.
    agreement: share of images, or of pixels in segmentation, with the same top class; None for feature maps.
    kl: mean KL(reference || outputs) of the probabilities, in nats; None for feature maps and class maps.
    """

    num_images: int
    max_difference: float | None
    sqnr_db: float | None
    agreement: float | None
    kl: float | None


def compare(outputs: np.ndarray, reference: np.ndarray, are_logits: bool = True, num_classes: int | None = None) -> Parity:
    """Compare outputs (n, ..) with a reference of the same shape.

    num_classes: of logits of pixels (n, K * pixels); None for logits (n, K).
    """
    num_images = len(outputs)
    outputs, reference = (values.astype(np.float64) for values in (outputs, reference))
    if are_logits and num_classes is not None:
        outputs, reference = (by_pixel(values, num_classes) for values in (outputs, reference))
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
        num_images=num_images,
        max_difference=float(np.abs(difference).max()),
        sqnr_db=float(10 * np.log10(signal / noise)),
        agreement=agreement,
        kl=kl,
    )


def by_pixel(logits: np.ndarray, num_classes: int) -> np.ndarray:
    """Logits (n, K * pixels), those of a class together, as (n * pixels, K)."""
    return logits.reshape(len(logits), num_classes, -1).transpose(0, 2, 1).reshape(-1, num_classes)


def compare_class_maps(outputs: np.ndarray, reference: np.ndarray) -> Parity:
    """Compare classes of pixels (n, ..) with a reference of the same shape."""
    agreement = float((outputs == reference).mean())
    return Parity(num_images=len(outputs), max_difference=None, sqnr_db=None, agreement=agreement, kl=None)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities of logits (..., K)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
