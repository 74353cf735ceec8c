"""The images of the run that a model comes from: those it may be judged on, and those that it was trained on."""

import json
from pathlib import Path

from edge.device.errors import ExplainedError

DATA, FACTS, SAVED = "data", "data.json", "dataset_dict.json"


class OwnImagesError(ExplainedError):
    """No images are given, and the model lies in no run; the message says what to give."""


def images_to_judge_on(folder: Path, given: Path | None) -> Path:
    """The images that were given, or those that the run of a model or a program stored, of which the test split is taken.

    Raises:
        OwnImagesError: there are neither.
    """
    if given is not None:
        return given
    stored = Path(folder).resolve().parent / DATA
    if not (stored / SAVED).is_file():
        raise OwnImagesError(
            f"--dataset must name labelled images, as {folder} lies in no run of distill/run.py that has some"
        )
    return stored


def warning_of_training_images(folder: Path, dataset: Path, num_images: int) -> str:
    """What to say if training images are among `num_images` that a model or program is judged on; empty if they are not.

    The run that it lies in recorded its data set, and how many images of each split it took from there.
    """
    try:
        facts = json.loads((Path(folder).resolve().parent / DATA / FACTS).read_text(encoding="utf-8"))
        same = Path(facts["dataset"]).resolve() == Path(dataset).resolve()
        counts = {split: len(numbers) for split, numbers in facts["split"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    if not same or num_images <= counts.get("test", 0):
        return ""
    trained = counts.get("train", 0) + counts.get("validation", 0)
    return (
        f"note: {dataset} is the data set of the run that {folder} lies in: {trained:,} of its images were used for training "
        "or validation, so that this is no test; leave out --dataset to take the run's own test images"
    )
