"""What a report says beside accuracies: how far probabilities can be trusted, and whom each step of a run changed."""

# n images, K classes

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edge.device.parity import log_softmax
from edge.device.scores import calibration_error, negative_log_likelihood
from edge.device.temperature import fit_temperature


@dataclass(frozen=True, kw_only=True)
class Probabilities:
    """How far the probabilities of a step can be trusted, on the test images.

    nll: mean negative log-likelihood of the labels, in nats.
    calibration_error: expected calibration error of the first class, in 15 bins (Guo et al. 2017, arXiv:1706.04599).
    temperature: by which the logits are divided, fitted on the validation images; the other two are the same with it.
    """

    step: str
    nll: float
    calibration_error: float
    temperature: float
    nll_with_it: float
    calibration_error_with_it: float


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """The accuracy of a step on n test images as they are and after each corruption, by name."""

    step: str
    n: int
    accuracies: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one step of a run changed in the first classes of the test images.

    broken, mended: images that were right before and are wrong after it, and the other way round.
    other: images that were wrong before and are wrong in another way.
    worst_class: the class whose accuracy fell most, with its accuracy before and after, and its number of images.
    """

    before: str
    after: str
    n: int
    broken: int
    mended: int
    other: int
    worst_class: str
    worst_before: float
    worst_after: float
    worst_n: int


def judge_probabilities(
    step: str,
    test: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    temperature: float | None = None,
) -> Probabilities:
    """How far a step's probabilities can be trusted.

    test, validation: logits (n, K) and labels (n,).
    temperature: if it is known; otherwise it is fitted on `validation`.
    """
    logits, labels = test
    temperature = fit_temperature(*validation) if temperature is None else temperature
    return Probabilities(
        step=step,
        nll=negative_log_likelihood(logits, labels),
        calibration_error=calibration_error(np.exp(log_softmax(logits)), labels),
        temperature=temperature,
        nll_with_it=negative_log_likelihood(logits / temperature, labels),
        calibration_error_with_it=calibration_error(np.exp(log_softmax(logits / temperature)), labels),
    )


def changes_of(top: dict[str, np.ndarray], labels: np.ndarray, class_names: list[str]) -> list[Change]:
    """What each step changed. top: first classes (n,) by step, in their order."""
    return [change_between(*pair, top[pair[0]], top[pair[1]], labels, class_names) for pair in pairwise(top)]


def change_between(
    before: str, after: str, first: np.ndarray, second: np.ndarray, labels: np.ndarray, class_names: list[str]
) -> Change:
    was, is_now = first == labels, second == labels
    present, own, counts = np.unique(labels, return_inverse=True, return_counts=True)
    accuracies = [np.bincount(own, weights=right) / counts for right in (was, is_now)]
    worst = int((accuracies[0] - accuracies[1]).argmax())
    return Change(
        before=before,
        after=after,
        n=len(labels),
        broken=int((was & ~is_now).sum()),
        mended=int((~was & is_now).sum()),
        other=int((~was & ~is_now & (first != second)).sum()),
        worst_class=class_names[present[worst]],
        worst_before=float(accuracies[0][worst]),
        worst_after=float(accuracies[1][worst]),
        worst_n=int(counts[worst]),
    )


# -- as tables -----------------------------------------------------------------------------------------------------------


def table_of_probabilities(rows: list[Probabilities]) -> list[dict[str, str]]:
    return [
        {
            "step": row.step,
            "NLL": f"{row.nll:.3f}",
            "ECE": f"{row.calibration_error:.1%}",
            "temperature": f"{row.temperature:.2f}",
            "NLL with it": f"{row.nll_with_it:.3f}",
            "ECE with it": f"{row.calibration_error_with_it:.1%}",
        }
        for row in rows
    ]


def table_of_robustness(rows: list[Robustness]) -> list[dict[str, str]]:
    return [{"step": row.step} | {name: f"{value:.1%}" for name, value in row.accuracies.items()} for row in rows]


def table_of_changes(rows: list[Change]) -> list[dict[str, str]]:
    def fall(row: Change) -> str:
        if row.worst_after >= row.worst_before:
            return "none"
        return f"{row.worst_class}: {row.worst_before:.1%} to {row.worst_after:.1%} of {row.worst_n}"

    return [
        {
            "step": f"{row.before} to {row.after}",
            "right to wrong": str(row.broken),
            "wrong to right": str(row.mended),
            "wrong otherwise": str(row.other),
            "class that fell most": fall(row),
        }
        for row in rows
    ]
