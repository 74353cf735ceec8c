"""Figures of a finished training, with the data that they were measured on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.data.splits import ImageSettings
from distill.public_names import dataset_type
from edge.device.scores import largest_class_share, wilson_interval
from swin_hf.model_card import doubt

AGREEMENT = "teacher_agreement"  # an accuracy, where the labels are the classes that the teacher found


def as_agreement(name: str) -> str:
    """The name of a figure where the labels are the classes that the teacher found."""
    return name.replace("accuracy", AGREEMENT)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of correct answers for n images with its 95 % interval (Wilson 1927).

    largest_class_share: of the images, the accuracy of always naming the largest class.
    """

    correct: int
    n: int
    accuracy: float
    low: float
    high: float
    largest_class_share: float

    @property
    def doubt(self) -> str:
        """What to say first if nothing shows that the model learned anything, else empty."""
        return doubt(self.accuracy, self.low, self.high, self.n, self.largest_class_share)

    def as_evaluation(self, images: ImageSettings, is_of_teacher: bool = False) -> dict[str, Any]:
        """The "evaluation" of `metrics.json`, which model cards quote. is_of_teacher: it found the labels."""
        return evaluation_of(
            AGREEMENT if is_of_teacher else "accuracy", self.accuracy, self.n, images, self.largest_class_share
        )


def accuracy_with_interval(predicted: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Accuracy of predicted classes (n,) against labels (n,)."""
    correct, n = int((predicted == labels).sum()), len(labels)
    low, high = wilson_interval(correct, n)
    share = largest_class_share(labels)
    return Accuracy(correct=correct, n=n, accuracy=correct / n, low=low, high=high, largest_class_share=share)


def evaluation_of(
    metric: str, value: float, n: int, images: ImageSettings, largest_share: float | None = None
) -> dict[str, Any]:
    """A figure of n test images as the "evaluation" of `metrics.json`; an accuracy or agreement comes with its interval.

    largest_share: of the test images, that of the largest class, for an accuracy.
    """
    evaluation = {"dataset": images.public_name, "dataset_type": dataset_type(images.dataset)}
    evaluation |= {"metric": metric, "value": value, "n": n}
    if metric in ("accuracy", AGREEMENT):
        low, high = wilson_interval(round(value * n), n)
        evaluation |= {"low": low, "high": high, "largest_class_share": largest_share}
    return evaluation
