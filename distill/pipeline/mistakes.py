"""What the program of a run got wrong, class by class and image by image, and how sure it was."""

# n images, K classes

from dataclasses import dataclass

import numpy as np

from edge.device.scores import NUM_CALIBRATION_BINS, by_class, confidence_bins

MOST_MISTAKES = 24  # shown, those of which the program was surest


@dataclass(frozen=True, kw_only=True)
class OfClass:
    """The accuracy of the teacher and of the program on the n test images of a class."""

    label: str
    n: int
    teacher: float
    program: float


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A test image, by its number in that split, whose class the program gets wrong, and how probable it thinks its own."""

    image: int
    label: str
    predicted: str
    probability: float
    teacher: str


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A test image, by its number in that split, of which the program names another class than the model it was made of."""

    image: int
    label: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The n test images for whose first class the program gives a probability from `low` to `high`.

    confidence: the mean of these probabilities. accuracy: how many of the images are right.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def classes_of(teacher: np.ndarray, program: np.ndarray, labels: np.ndarray, names: list[str]) -> list[OfClass]:
    """By first classes (n,); the worst of the program first."""
    taught = {row["label"]: row["accuracy"] for row in by_class(teacher, labels, names)}
    return [
        OfClass(label=row["label"], n=row["n"], teacher=taught[row["label"]], program=row["accuracy"])
        for row in by_class(program, labels, names)
    ]


def mistakes_of(
    probabilities: np.ndarray, teacher: np.ndarray, labels: np.ndarray, names: list[str], at_most: int = MOST_MISTAKES
) -> list[Mistake]:
    """The mistakes of which the program was surest. probabilities: (n, K). teacher: its first classes (n,)."""
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = sorted(np.flatnonzero(predicted != labels), key=lambda number: -sure[number])
    return [
        Mistake(
            image=int(number),
            label=names[labels[number]],
            predicted=names[predicted[number]],
            probability=float(sure[number]),
            teacher=names[teacher[number]],
        )
        for number in wrong[:at_most]
    ]


def flips_of(before: np.ndarray, after: np.ndarray, labels: np.ndarray, names: list[str]) -> list[Flip]:
    """Images of which a program names another class. before, after: first classes (n,) of its model and of itself."""
    return [
        Flip(image=int(at), label=names[labels[at]], before=names[before[at]], after=names[after[at]])
        for at in np.flatnonzero(before != after)
    ]


def reliability_of(probabilities: np.ndarray, labels: np.ndarray) -> list[Bin]:
    """The bins of the expected calibration error. probabilities: (n, K)."""
    sure, right, number = confidence_bins(probabilities, labels)
    rows = []
    for at in range(NUM_CALIBRATION_BINS):
        own = number == at
        n = int(own.sum())
        rows.append(
            Bin(
                low=at / NUM_CALIBRATION_BINS,
                high=(at + 1) / NUM_CALIBRATION_BINS,
                n=n,
                confidence=float(sure[own].mean()) if n else 0.0,
                accuracy=float(right[own].mean()) if n else 0.0,
            )
        )
    return rows
