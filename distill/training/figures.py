"""Figures of a finished training, with the data that they were measured on."""

from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of correct answers for n images with its 95 % interval (Wilson 1927)."""

    correct: int
    n: int
    accuracy: float
    low: float
    high: float

    def as_evaluation(self, dataset: str) -> dict[str, Any]:
        """The "evaluation" of `metrics.json`, which model cards quote."""
        return evaluation_of("accuracy", self.accuracy, self.n, dataset)


def accuracy_with_interval(predicted: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Accuracy of predicted classes (n,) against labels (n,)."""
    correct, n = int((predicted == labels).sum()), len(labels)
    low, high = wilson_interval(correct, n)
    return Accuracy(correct=correct, n=n, accuracy=correct / n, low=low, high=high)


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share, accurate also near 0 and 1 and for small n (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluation_of(metric: str, value: float, n: int, dataset: str) -> dict[str, Any]:
    """A figure of n test images as the "evaluation" of `metrics.json`; an accuracy comes with its interval."""
    evaluation = {"dataset": public_name(dataset), "metric": metric, "value": value, "n": n}
    if metric == "accuracy":
        low, high = wilson_interval(round(value * n), n)
        evaluation |= {"low": low, "high": high}
    return evaluation


def public_name(name: str) -> str:
    """What a card calls a data set or checkpoint: its id, or the name of its folder, not where that lies."""
    path = Path(name)
    return path.resolve().name if path.exists() else name
