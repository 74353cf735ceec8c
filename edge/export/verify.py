"""Check a device artefact on images: against labels, and against the checkpoint that it was exported from."""

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.device.artefact import recorded_checkpoint
from edge.device.labelled import evenly
from edge.device.masks import MaskedReader, open_masked
from edge.device.parity import Parity, compare
from edge.device.runner import Runner, about_image
from edge.device.verify import (
    SPLITS,
    ReadableImages,
    VerificationError,
    label_figures,
    mask_figures,
    program_outputs,
    readable_images,
    readable_masks,
)
from edge.export.bounds import missed_bound
from edge.export.images import MAX_IMAGES, affordable, open_images
from edge.lower.recipes import Recipe, find_recipe

if TYPE_CHECKING:
    from edge.export.prepare import Samples


def verify(folder: Path, dataset: Path, checkpoint_dir: Path | None = None) -> dict[str, float | int | str]:
    """Run the program on all images of `dataset`, a folder or a saved data set, and return its figures as JSON values.

    Accuracy is counted over images whose label is known: from their class folder, a name `<label>_<n>`, or the class of a data
    set. Of a folder or data set with splits, `test` is taken, or else `validation`. The program is compared with the model in
    `checkpoint_dir`, by default the checkpoint that `edge.json` names, if it lies beside the artefact. A backbone, whose
    outputs are large, is compared on 128 images.

    Raises:
        CalibrationError: no images.
        CheckpointError: `checkpoint_dir` does not hold the model of the artefact.
        NotFiniteError: the model or the program puts out NaN or infinity; the message names the image.
        VerificationError: there are neither labels nor a checkpoint, or the program is further from the model than its
            recipe allows.
    """
    runner = Runner(folder)
    if checkpoint_dir is None and importlib.util.find_spec("transformers") is not None:
        recorded = recorded_checkpoint(folder, runner.manifest)
        checkpoint_dir = recorded if recorded is not None and recorded.is_dir() else None
    if runner.manifest.is_segmenter:
        return _verify_segmenter(runner, dataset, checkpoint_dir)
    readers = open_images(dataset, runner.manifest.labels, SPLITS)
    if not runner.manifest.is_classifier:
        readers = evenly(readers, MAX_IMAGES)
    images = readable_images(runner, readers, dataset)
    if not images.labelled and checkpoint_dir is None:
        raise VerificationError(
            f"dataset must hold labelled images, or checkpoint_dir must be given: {dataset} has no labels that the artefact "
            f"knows, and its checkpoint is not there; {images.why_unlabelled(runner.manifest.labels)}"
        )
    # One after the other: the threads of PyTorch and of the runtime slow each other down.
    reference = None if checkpoint_dir is None else _outputs_of_checkpoint(runner, images, Path(checkpoint_dir))
    outputs = program_outputs(runner, images)
    figures = label_figures(runner, images, outputs)
    if reference is not None:
        figures |= _compare_with_checkpoint(runner, outputs, reference, checkpoint_dir)
    return figures


def _outputs_of_checkpoint(runner: Runner, images: ReadableImages, checkpoint_dir: Path) -> np.ndarray:
    # Imported here: labels alone can be verified where transformers is not installed.
    from edge.export.checkpoint import load_source, model_outputs

    model, processor = load_source(checkpoint_dir, runner.manifest)
    rows = []
    for image in (read() for read in images.readers):
        rows.append(model_outputs(model, processor, [runner.manifest.input.pixel_values(image.image)], [image.name]))
    return np.concatenate(rows)


def _compare_with_checkpoint(
    runner: Runner, outputs: np.ndarray, reference: np.ndarray, checkpoint_dir: Path
) -> dict[str, float | str]:
    recipe = find_recipe(runner.manifest.recipe)
    parity = compare(outputs, reference, runner.manifest.is_classifier)
    return _close_figures(parity, recipe, checkpoint_dir)


def _close_figures(parity: Parity, recipe: Recipe, checkpoint_dir: Path) -> dict[str, float | str]:
    """The figures of a comparison that keeps the bounds of a recipe.

    Raises:
        VerificationError: it does not.
    """
    if misses := missed_bound(recipe, parity):
        raise VerificationError(f"the program is too far from {checkpoint_dir}: recipe {recipe.name} {misses}")
    found = {name: value for name, value in vars(parity).items() if value is not None and name != "num_images"}
    return {"checkpoint": str(checkpoint_dir)} | found


def _verify_segmenter(runner: Runner, dataset: Path, checkpoint_dir: Path | None) -> dict[str, float | int | str]:
    """The figures of a segmenter: on masks, if there are any, and against the checkpoint, if it is there, on 128 images.

    Raises:
        As `verify`.
    """
    labels = runner.manifest.labels
    masks = readable_masks(open_masked(dataset, SPLITS), dataset, len(labels), require_masks=checkpoint_dir is None)
    compared = evenly(masks.readers, affordable(len(labels) * math.prod(runner.manifest.map_size)))
    samples = None if checkpoint_dir is None else _samples_of_checkpoint(runner, compared, checkpoint_dir)
    figures = mask_figures(runner, masks)
    if samples is None:
        return figures
    outputs, contract = [], runner.manifest.input
    for array, name in zip(samples.inputs, samples.names):
        with about_image(name):
            outputs.append(runner.outputs(array)[0].reshape(1, -1))
    parity = samples.compare(outputs, (contract.height, contract.width) if runner.manifest.class_map else None)
    return figures | _close_figures(parity, find_recipe(runner.manifest.recipe), checkpoint_dir)


def _samples_of_checkpoint(runner: Runner, readers: list[MaskedReader], checkpoint_dir: Path) -> "Samples":
    from edge.export.checkpoint import load_source, model_outputs
    from edge.export.prepare import Samples, map_shape_of

    (model, processor), contract = load_source(checkpoint_dir, runner.manifest), runner.manifest.input
    is_enlarged = runner.manifest.map_size == (contract.height, contract.width) and not runner.manifest.class_map
    model.config.resize_logits = is_enlarged
    inputs, names = [], []
    for image in (read() for read in readers):
        inputs.append(contract.pixel_values(image.image))
        names.append(image.name)
    reference = [model_outputs(model, processor, [array], [name]) for array, name in zip(inputs, names)]
    return Samples(
        inputs=inputs,
        names=names,
        reference=np.concatenate(reference),
        are_logits=True,
        map_shape=map_shape_of(model, inputs[0], contract),
    )
