"""What a model costs and how good it is: accuracy with its interval, agreement, parameters and MACs."""

from dataclasses import dataclass
from statistics import NormalDist

import datasets
import numpy as np
import torch

from distill.compress.distillation import collate
from distill.compress.teachers import Classifier
from edge.compare import macs


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of right answers among n images with its 95 % interval (Wilson 1927)."""

    correct: int
    n: int
    accuracy: float
    low: float
    high: float


def accuracy_with_interval(predicted: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Accuracy of predicted classes (n,) against labels (n,)."""
    correct, n = int((predicted == labels).sum()), len(labels)
    low, high = wilson_interval(correct, n)
    return Accuracy(correct=correct, n=n, accuracy=correct / n, low=low, high=high)


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share, good also near 0 and 1 and for small n (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


@torch.no_grad()
def classifier_logits(classifier: Classifier, dataset: datasets.Dataset, batch_size: int = 64) -> np.ndarray:
    """Logits (n, K) of all images of a split, without augmentation."""
    classifier.eval()
    batches = (
        dataset.select(range(start, min(start + batch_size, len(dataset)))) for start in range(0, len(dataset), batch_size)
    )
    return np.concatenate([classifier(collate(list(rows))["pixels"].float() / 255).numpy() for rows in batches])


def count_parameters(classifier: Classifier) -> int:
    """Number of parameters of the model."""
    return sum(parameter.numel() for parameter in classifier.model.parameters())


def count_macs(classifier: Classifier, image_size: int) -> int:
    """Multiply-accumulate operations for one image, as `edge.macs` counts them."""
    return macs.count_macs(classifier, torch.zeros(1, 3, image_size, image_size))
