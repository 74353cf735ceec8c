"""The last step of an export: compare the exported graph and the program with the model, and say what they miss."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.export import ExportedProgram

from edge.deploy.form import flat
from edge.device.masks import IGNORED, MaskedImage
from edge.device.parity import Parity
from edge.device.runner import Runner, about_image
from edge.device.segmentation import class_map_of, confusion_of, mean_iou
from edge.export.bounds import Accuracy, count_right, missed_accuracy, missed_bound
from edge.export.checkpoint import model_outputs
from edge.export.form_choice import FEW_IMAGES, ChosenForm
from edge.export.prepare import HeldOut, Prepared, Samples
from edge.export.settings import ExportError

MAX_INCOMPLETE = 1e-2  # of the mean of class maps from the logits, relative to the largest value: int8 and float16 round


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How close a graph or a program is to the model.

    parity: by stage, as in `edge.json`.
    accuracy: on the held-out images; None if it was not measured.
    misses: which bound of the recipe is missed, in words; empty if none.
    """

    parity: dict[str, Parity]
    accuracy: Accuracy | None = None
    misses: str = ""


def judge_graph(prepared: Prepared, chosen: ChosenForm, traced: dict[str, ExportedProgram]) -> Judgement:
    """Compare the exported graph of `forward` with the model on a few images."""
    graph, samples = traced["forward"].module(check_guards=False), chosen.samples["forward"]
    with torch.no_grad():
        outputs = [_to_compare(prepared, graph(torch.from_numpy(array))) for array in samples.inputs[:FEW_IMAGES]]
    parity = samples.compare(outputs, prepared.class_map_size("forward"))
    return Judgement(parity={"exported": parity}, misses=missed_bound(prepared.recipe, parity))


def judge_program(prepared: Prepared, chosen: ChosenForm, runner: Runner) -> Judgement:
    """Run every method on all its images as a device would, up to the first bound that one misses.

    Raises:
        NotFiniteError: an output is NaN or infinite; the message names the image.
    """
    parity: dict[str, Parity] = {}
    for name, samples in chosen.samples.items():
        stage = "program" if name == "forward" else f"program {name}"
        outputs = [_to_compare(prepared, tuple(map(torch.from_numpy, values))) for values in _run(runner, samples, name)]
        parity[stage] = samples.compare(outputs, prepared.class_map_size(name))
        if misses := missed_bound(prepared.recipe, parity[stage]):
            return Judgement(parity=parity, misses=f"{misses} in method {name}")
    held_out = prepared.held_out
    if held_out is not None:
        logits = np.concatenate([values[0] for values in _run(runner, held_out)])
        accuracy = count_right(held_out.expected, logits, held_out.classes)
    elif prepared.held_out_masks:
        accuracy = mask_accuracy(prepared, runner)
    else:
        return Judgement(parity=parity)
    return Judgement(parity=parity, accuracy=accuracy, misses=missed_accuracy(prepared.recipe, accuracy))


def _to_compare(prepared: Prepared, outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> np.ndarray:
    """Outputs of a batch that the model has too, flattened: class maps are no outputs of a classifier.

    Raises:
        ExportError: logits are not the mean of their class maps.
    """
    if not prepared.settings.explain:
        return flat(outputs)
    logits, maps = outputs
    difference, largest = float((maps.mean(dim=(2, 3)) - logits).abs().max()), float(maps.abs().max())
    if not difference <= MAX_INCOMPLETE * max(largest, 1.0):
        raise ExportError(f"the logits must be the mean of the class maps, got a difference of {difference:.1e}")
    return flat(logits)


def mask_accuracy(prepared: Prepared, runner: Runner) -> Accuracy:
    """The mean IoU of a segmenter and of its program on the held-out images, each at its own size."""
    contract, shape, K = prepared.contract, prepared.samples["forward"].map_shape, len(prepared.labels)

    def by_model(image: MaskedImage) -> np.ndarray:
        logits = model_outputs(prepared.model, prepared.processor, [contract.pixel_values(image.image)], [image.name])
        return class_map_of(logits.reshape(shape), image.image.height, image.image.width)

    def of(segment: Callable[[MaskedImage], np.ndarray]) -> float:
        images = (read() for read in prepared.held_out_masks)
        return mean_iou(sum(confusion_of(segment(image), image.mask, K, IGNORED) for image in images))

    by_program = of(lambda image: runner.segment(image.image).class_map)
    return Accuracy(num_images=len(prepared.held_out_masks), model=of(by_model), program=by_program)


def _run(runner: Runner, images: Samples | HeldOut, method: str = "forward") -> Iterator[list[np.ndarray]]:
    """Outputs of a method for all its inputs."""
    for number, array in enumerate(images.inputs):
        with about_image(images.names[number * len(array)]):
            yield runner.outputs(array, method)
