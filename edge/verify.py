"""Check a device artefact: on images, against the checkpoint it came from and against labels, and by its own bundle."""

import os
import sys
from pathlib import Path

import numpy as np

from edge.artefact import SELF_TEST_FILE, read_file, read_manifest
from edge.calibration import is_saved_dataset, load_images, method_inputs
from edge.image import UnreadableImageError, find_images, label_of
from edge.parity import compare
from edge.runner import Runner, run_bundle


class VerificationError(ValueError):
    """An artefact cannot be verified, or does not hold what it promised; the message says which."""


def verify(folder: Path, data: Path, checkpoint_dir: Path | None = None) -> dict[str, float | int | str]:
    """Run the program on all images under `data`, a folder or a saved data set, and return its figures as JSON values.

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
    inputs, labels, unreadable = _inputs(runner, Path(data))
    if not inputs:
        raise VerificationError(f"none of the images in {data} can be read")
    labelled = [index for index, label in enumerate(labels) if label is not None]
    if not labelled and checkpoint_dir is None:
        raise VerificationError(
            f"{data} has neither class folders nor names like <label>_<n>.png, and the checkpoint is not there; "
            "give --checkpoint"
        )
    outputs = np.stack([np.concatenate([y.ravel() for y in runner.outputs(x)]) for x in inputs])
    figures: dict[str, float | int | str] = {"num_images": len(inputs), "num_unreadable": unreadable}
    if labelled:
        right = [runner.manifest.labels[outputs[index].argmax()] == labels[index] for index in labelled]
        figures |= {"num_labelled": len(labelled), "accuracy": float(np.mean(right))}
    if checkpoint_dir is not None:
        figures |= _compare_with_checkpoint(runner, outputs, inputs, checkpoint_dir)
    return figures


def _inputs(runner: Runner, data: Path) -> tuple[list[np.ndarray], list[str | None], int]:
    """Inputs of the program, the label of each image where it is known, and the number of images that cannot be read."""
    inputs, labels, unreadable = [], [], 0
    if is_saved_dataset(data):
        images = load_images(data, runner.manifest.labels, at_most=sys.maxsize)
        inputs = method_inputs(images, runner.manifest.input, runner.manifest.methods["forward"])
        labels = [image.label if image.label in runner.manifest.labels else None for image in images]
        return inputs, labels, unreadable
    for path in find_images(data):
        try:
            inputs.append(runner.pixel_values(path))
        except UnreadableImageError:
            unreadable += 1
            continue
        labels.append(label_of(path, data, runner.manifest.labels) if runner.is_classifier else None)
    return inputs, labels, unreadable


def _compare_with_checkpoint(
    runner: Runner, outputs: np.ndarray, inputs: list[np.ndarray], checkpoint_dir: Path
) -> dict[str, float | str]:
    # Imported here: a device that verifies against labels alone has no transformers.
    from edge.checkpoint import load_checkpoint, model_outputs
    from edge.recipes import find_recipe

    parity = compare(outputs, model_outputs(*load_checkpoint(Path(checkpoint_dir)), inputs), runner.is_classifier)
    recipe = find_recipe(runner.manifest.recipe)
    agreement = 1.0 if parity.agreement is None else parity.agreement
    if agreement < recipe.min_agreement or parity.sqnr_db < recipe.min_sqnr_db:
        raise VerificationError(
            f"the program agrees with {checkpoint_dir} on {agreement:.1%} of {parity.num_images} images at "
            f"{parity.sqnr_db:.1f} dB; recipe {recipe.name} promises {recipe.min_agreement:.0%} and "
            f"{recipe.min_sqnr_db:.0f} dB"
        )
    figures = {"checkpoint": str(checkpoint_dir), "sqnr_db": parity.sqnr_db, "max_difference": parity.max_difference}
    return figures if parity.agreement is None else figures | {"agreement": parity.agreement, "kl": parity.kl}


def self_test(folder: Path) -> tuple[int, float]:
    """Run the bundled program on its own images: their number, and the difference from the outputs that they may have.

    Raises:
        ArtefactError: the artefact has no bundle, or a damaged one.
        VerificationError: the program puts out something else than where it was exported.
    """
    manifest = read_manifest(folder)
    content = read_file(folder, manifest, SELF_TEST_FILE)
    num_images, tolerance = int(manifest.self_test["num_images"]), float(manifest.self_test["tolerance"])
    try:
        run_bundle(content, num_images, tolerance)
    except RuntimeError as error:
        raise VerificationError(
            f"the program in {Path(folder) / SELF_TEST_FILE} puts out something else than where it was exported, beyond "
            f"{tolerance:.2g}: {error}. This runtime or processor computes it wrongly"
        ) from error
    return num_images, tolerance
