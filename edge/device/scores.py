"""How well a classifier does: intervals, calibration, classes and confusions, with NumPy alone."""

# n images, K classes

from collections import Counter
from statistics import NormalDist

import numpy as np

from .parity import log_softmax

NUM_CALIBRATION_BINS = 15


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share, accurate also near 0 and 1 and for small n (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the first class, in 15 bins (Guo et al. 2017, arXiv:1706.04599, equation 3).

    probabilities: (n, K). labels: (n,).
    """
    if not np.isfinite(probabilities).all():
        return float("nan")
    confidence, right, bins = confidence_bins(probabilities, labels)
    gaps = np.bincount(bins, weights=right - confidence, minlength=NUM_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def confidence_bins(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The probability of the first class of each image, whether it is right, and the bin of that probability, (n,) each."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    return confidence, right, np.minimum((confidence * NUM_CALIBRATION_BINS).astype(int), NUM_CALIBRATION_BINS - 1)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of labels (n,) under logits (n, K), in nats."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def largest_class_share(labels: np.ndarray) -> float:
    """The share of the most frequent of labels (n,)."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def by_class(predicted: np.ndarray, labels: np.ndarray, names: list[str]) -> list[dict[str, str | int | float]]:
    """The accuracy of each class that occurs in labels (n,), the worst first, then the larger ones."""
    rows = []
    for number in np.unique(labels):
        own = predicted[labels == number]
        rows.append({"label": names[number], "n": len(own), "accuracy": float((own == number).mean())})
    return sorted(rows, key=lambda row: (row["accuracy"], -row["n"]))


def confusions(predicted: np.ndarray, labels: np.ndarray, names: list[str]) -> list[dict[str, str | int]]:
    """Which class was taken for which, the most frequent first."""
    pairs = Counter((names[truth], names[guess]) for truth, guess in zip(labels, predicted) if truth != guess)
    return [{"label": truth, "predicted": guess, "count": count} for (truth, guess), count in pairs.most_common()]
