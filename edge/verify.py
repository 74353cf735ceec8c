"""Check a device artefact on images: against the checkpoint it came from, and against labels."""

import os
import re
from pathlib import Path

import numpy as np

from edge.image import UnreadableImageError, find_images
from edge.parity import compare
from edge.runner import Runner


class VerificationError(ValueError):
    """An artefact cannot be verified, or does not hold what it promised; the message says which."""


def verify(folder: Path, data: Path, checkpoint_dir: Path | None = None) -> dict[str, float | int | str]:
    """Run the program on all images under `data` and return its figures as JSON values.

    Accuracy is counted over images whose label is known: the class folder they lie in, or a name `<label>_<n>`. The
    comparison is with `checkpoint_dir`, by default the checkpoint that `edge.json` names, if it is still there.

    Raises:
        VerificationError: there are neither labels nor a checkpoint, or the program disagrees with the model beyond the
            bound of its recipe.
    """
    runner = Runner(folder)
    if checkpoint_dir is None:
        recorded = Path(os.path.normpath(Path(folder).resolve() / runner.manifest.source["checkpoint"]))
        checkpoint_dir = recorded if recorded.is_dir() else None
    inputs, labels, unreadable = [], [], 0
    for path in find_images(data):
        try:
            inputs.append(runner.pixel_values(path))
        except UnreadableImageError:
            unreadable += 1
            continue
        labels.append(label_of(path, Path(data), runner.manifest.labels))
    if not inputs:
        raise VerificationError(f"none of the images in {data} can be read")
    labelled = [index for index, label in enumerate(labels) if label is not None]
    if not labelled and checkpoint_dir is None:
        raise VerificationError(
            f"{data} has neither class folders nor names like <label>_<n>.png, and the checkpoint is not there; "
            "give --checkpoint"
        )
    logits = np.stack([runner.logits(pixel_values) for pixel_values in inputs])
    figures: dict[str, float | int | str] = {"num_images": len(inputs), "num_unreadable": unreadable}
    if labelled:
        right = [runner.manifest.labels[logits[index].argmax()] == labels[index] for index in labelled]
        figures |= {"num_labelled": len(labelled), "accuracy": float(np.mean(right))}
    if checkpoint_dir is not None:
        figures |= _compare_with_checkpoint(runner, logits, inputs, checkpoint_dir)
    return figures


def label_of(path: Path, root: Path, labels: list[str]) -> str | None:
    """The label that an image's class folder or its name `<label>_<n>` gives, if it is one of `labels`."""
    folder = path.relative_to(root).parts[0]
    if folder in labels:
        return folder
    name = re.sub(r"_\d+$", "", path.stem)
    return name if name in labels else None


def _compare_with_checkpoint(
    runner: Runner, logits: np.ndarray, inputs: list[np.ndarray], checkpoint_dir: Path
) -> dict[str, float | str]:
    # Imported here: a device that verifies against labels alone has no transformers.
    from edge.export import load_checkpoint, model_logits
    from edge.recipes import find_recipe

    parity = compare(logits, model_logits(*load_checkpoint(Path(checkpoint_dir)), inputs))
    recipe = find_recipe(runner.manifest.recipe)
    if parity.agreement < recipe.min_agreement or parity.sqnr_db < recipe.min_sqnr_db:
        raise VerificationError(
            f"the program agrees with {checkpoint_dir} on {parity.agreement:.1%} of {parity.num_images} images at "
            f"{parity.sqnr_db:.1f} dB; recipe {recipe.name} promises {recipe.min_agreement:.0%} and "
            f"{recipe.min_sqnr_db:.0f} dB"
        )
    return {
        "checkpoint": str(checkpoint_dir),
        "agreement": parity.agreement,
        "sqnr_db": parity.sqnr_db,
        "max_difference": parity.max_difference,
    }
