"""Check a device artefact: on images, against the checkpoint it came from and against labels, and by its own bundle."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge.device.artefact import SELF_TEST_FILE, read_file, read_manifest, recorded_checkpoint
from edge.device.image import UnreadableImageError
from edge.device.parity import compare
from edge.device.runner import Runner, run_bundle
from edge.export.calibration import MAX_IMAGES, LabelledImage, evenly, open_images


class VerificationError(ValueError):
    """An artefact cannot be verified, or does not hold what it promised; the message says which."""


def verify(folder: Path, data: Path, checkpoint_dir: Path | None = None) -> dict[str, float | int | str]:
    """Run the program on all images under `data`, a folder or a saved data set, and return its figures as JSON values.

    Accuracy is counted over images whose label is known: the class folder they lie in, a name `<label>_<n>`, or the class of
    a data set, of which the split `test` is taken, or else `validation`. The comparison is with `checkpoint_dir`, by default
    the checkpoint that `edge.json` names, if it is still there. Of a backbone, whose maps are large, 128 images are compared.

    Raises:
        CalibrationError: no images.
        VerificationError: there are neither labels nor a checkpoint, or the program disagrees with the model beyond the
            bound of its recipe.
    """
    runner = Runner(folder)
    if checkpoint_dir is None:
        recorded = recorded_checkpoint(folder, runner.manifest)
        checkpoint_dir = recorded if recorded.is_dir() else None
    readers = open_images(data, runner.manifest.labels, splits=("test", "validation"))
    if not runner.is_classifier:
        readers = evenly(readers, MAX_IMAGES)
    readers, labels, num_unreadable = _readable(runner, readers)
    if not readers:
        raise VerificationError(f"none of the images in {data} can be read")
    labelled = [index for index, label in enumerate(labels) if label is not None]
    if not labelled and checkpoint_dir is None:
        raise VerificationError(
            f"{data} has neither class folders nor names like <label>_<n>.png, and the checkpoint is not there; "
            "give --checkpoint"
        )
    # One after the other: the threads of PyTorch and of the runtime slow each other down.
    reference = None if checkpoint_dir is None else _outputs_of_checkpoint(runner, readers, Path(checkpoint_dir))
    outputs = np.stack([np.concatenate([y.ravel() for y in runner.outputs(_input(runner, read))]) for read in readers])
    figures: dict[str, float | int | str] = {"num_images": len(readers), "num_unreadable": num_unreadable}
    if labelled:
        right = [runner.manifest.labels[outputs[index].argmax()] == labels[index] for index in labelled]
        figures |= {"num_labelled": len(labelled), "accuracy": float(np.mean(right))}
    if reference is not None:
        figures |= _compare_with_checkpoint(runner, outputs, reference, checkpoint_dir)
    return figures


def _readable(
    runner: Runner, readers: list[Callable[[], LabelledImage]]
) -> tuple[list[Callable[[], LabelledImage]], list[str | None], int]:
    """Those of the readers that work, the label of each where the artefact knows it, and the number of the others."""
    working, labels = [], []
    for read in readers:
        try:
            label = read().label
        except UnreadableImageError:
            continue
        working.append(read)
        labels.append(label if runner.is_classifier and label in runner.manifest.labels else None)
    return working, labels, len(readers) - len(working)


def _input(runner: Runner, read: Callable[[], LabelledImage]) -> np.ndarray:
    return runner.manifest.input.pixel_values(read().image)


def _outputs_of_checkpoint(runner: Runner, readers: list[Callable[[], LabelledImage]], checkpoint_dir: Path) -> np.ndarray:
    # Imported here: a device that verifies against labels alone has no transformers.
    from edge.export.checkpoint import load_checkpoint, model_outputs

    model, processor = load_checkpoint(checkpoint_dir)
    return np.concatenate([model_outputs(model, processor, [_input(runner, read)]) for read in readers])


def _compare_with_checkpoint(
    runner: Runner, outputs: np.ndarray, reference: np.ndarray, checkpoint_dir: Path
) -> dict[str, float | str]:
    from edge.lower.recipes import find_recipe

    recipe = find_recipe(runner.manifest.recipe)
    parity = compare(outputs, reference, runner.is_classifier)
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
    num_images, tolerance = manifest.self_test.num_images, manifest.self_test.tolerance
    try:
        run_bundle(content, num_images, tolerance)
    except RuntimeError as error:
        raise VerificationError(
            f"the program in {Path(folder) / SELF_TEST_FILE} puts out something else than where it was exported, beyond "
            f"{tolerance:.2g}: {error}. This runtime or processor computes it wrongly"
        ) from error
    return num_images, tolerance
