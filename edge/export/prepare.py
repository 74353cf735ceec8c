"""The first step of an export: read checkpoint and images, refuse what cannot be exported, and run the model."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edge.device.artefact import InputContract
from edge.device.labelled import LabelledImage, evenly
from edge.device.parity import Parity, compare
from edge.export.calibration import MIN_CALIBRATION_IMAGES, require_real_images
from edge.export.checkpoint import input_contract, load_checkpoint, model_outputs, outputs_named
from edge.export.images import MAX_IMAGES, load_images, method_inputs
from edge.export.settings import ExportError, ExportSettings
from edge.lower.recipes import CASTS, Recipe, find_recipe
from swin_hf import SwinHfBackbone, SwinHfForImageClassification, SwinHfImageProcessorPil

MAX_LABELLED_IMAGES = 256  # for the accuracy and the temperature


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Inputs of a method, and the model's outputs for them, with which every form of it is compared.

    inputs: (B, ..) each. names: of the images in them. reference: (n, ..), logits or all feature maps flattened.
    """

    inputs: list[np.ndarray]
    names: list[str]
    reference: np.ndarray
    are_logits: bool

    def tensors(self, at_most: int = MAX_IMAGES) -> list[torch.Tensor]:
        """At most so many inputs, evenly spaced."""
        return [torch.from_numpy(array) for array in evenly(self.inputs, at_most)]

    def compare(self, outputs: list[np.ndarray]) -> Parity:
        """Outputs for all inputs, or for the first ones, against the model's."""
        joined = np.concatenate(outputs)
        return compare(joined, self.reference[: len(joined)], self.are_logits)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Labelled images that nothing is calibrated on: inputs of `forward`, the model's logits (n, K), and classes (n,)."""

    inputs: list[np.ndarray]
    names: list[str]
    expected: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A checkpoint to export, and the images that its program is made and checked with.

    recipe: of the settings, adapted to the input.
    labels: names of the classes, or of the feature maps of a backbone.
    methods: batch size, height and width of the images of each method.
    samples: of each method.
    held_out: None without labelled images.
    """

    checkpoint_dir: Path
    settings: ExportSettings
    recipe: Recipe
    model: SwinHfForImageClassification | SwinHfBackbone
    processor: SwinHfImageProcessorPil
    contract: InputContract
    labels: list[str]
    methods: dict[str, dict[str, int]]
    samples: dict[str, Samples]
    held_out: HeldOut | None

    @property
    def is_classifier(self) -> bool:
        return isinstance(self.model, SwinHfForImageClassification)


def prepare(checkpoint_dir: Path, settings: ExportSettings) -> Prepared:
    """Read the checkpoint in `checkpoint_dir` and the images of the settings, and run the model on the images.

    Raises:
        CheckpointError: no such checkpoint, or an image processor that a device cannot repeat.
        ExportError: the settings ask for what the checkpoint cannot give, or name no images.
        CalibrationError: no images, too few, or noise.
        NotFiniteError: the model puts out NaN or infinity.
    """
    recipe = find_recipe(settings.recipe)
    if settings.input_dtype == "uint8":  # no backend takes the cast to floats
        recipe = replace(recipe, outside=(*recipe.outside, *CASTS))
    model, processor = load_checkpoint(checkpoint_dir)
    contract = input_contract(model.config, processor, settings.input_dtype)
    sizes = settings.sizes or ((contract.height, contract.width),)
    contract = replace(contract, height=sizes[0][0], width=sizes[0][1])
    methods = methods_of(sizes, settings.batch_sizes)
    is_classifier = isinstance(model, SwinHfForImageClassification)
    labels = outputs_named(model)
    if recipe.train_epochs:
        _require_trainable(recipe, is_classifier, methods)
    images = images_to_compare_on(settings, labels)
    labelled = _labelled_images(settings, labels) if is_classifier else []
    if settings.validation is not None and not labelled:
        raise ExportError(
            f"validation must hold images of the model's classes ({', '.join(labels[:5])}, ..) in class folders, got none in "
            f"{settings.validation}"
        )
    inputs = {name: method_inputs(images, contract, method) for name, method in methods.items()}
    # PyTorch's work comes before the runtime's first run: two spinning thread pools slow each other down.
    names, samples = [image.name for image in images], {}
    for method, arrays in inputs.items():
        reference = model_outputs(model, processor, arrays, names)
        samples[method] = Samples(inputs=arrays, names=names, reference=reference, are_logits=is_classifier)
    held_out = None
    if labelled:
        arrays = method_inputs(labelled, contract, methods["forward"])
        classes = np.array([labels.index(image.label) for image in labelled])
        names = [image.name for image in labelled]
        expected = model_outputs(model, processor, arrays, names)
        held_out = HeldOut(inputs=arrays, names=names, expected=expected, classes=classes)
    return Prepared(
        checkpoint_dir=Path(checkpoint_dir),
        settings=settings,
        recipe=recipe,
        model=model,
        processor=processor,
        contract=contract,
        labels=labels,
        methods=methods,
        samples=samples,
        held_out=held_out,
    )


def methods_of(sizes: tuple[tuple[int, int], ...], batch_sizes: tuple[int, ...]) -> dict[str, dict[str, int]]:
    """Batch size, height and width of each method: the first is `forward`, the names of the others say what differs."""
    methods = {}
    for height, width in sizes:
        for batch_size in batch_sizes:
            name = "forward"
            if (height, width) != sizes[0]:
                name += f"_{height}x{width}"
            if batch_size != batch_sizes[0]:
                name += f"_batch{batch_size}"
            methods[name] = {"batch_size": batch_size, "height": height, "width": width}
    return methods


def _require_trainable(recipe: Recipe, is_classifier: bool, methods: dict[str, dict[str, int]]) -> None:
    """Check what a recipe with training needs.

    Raises:
        ExportError: it is missing.
    """
    if not is_classifier:
        raise ExportError(f"recipe {recipe.name} must have a classifier to train, got a backbone; take int8")
    if len(methods) > 1:
        raise ExportError(f"recipe {recipe.name} must have one size and batch size, got {', '.join(methods)}")
    if importlib.util.find_spec("accelerate") is None:
        raise ExportError(f"recipe {recipe.name} needs accelerate; pip install swin-hf[train]")


def images_to_compare_on(settings: ExportSettings, labels: list[str]) -> list[LabelledImage]:
    """The images that an export finds its scales on and is checked on.

    Raises:
        ExportError: the settings name none.
        CalibrationError: they cannot be read, or are too few, noise, or of one colour.
    """
    recipe = find_recipe(settings.recipe)
    if settings.dataset is None:
        raise ExportError(
            "dataset must be a folder or a list of real images, on which an export is calibrated and checked, got None"
        )
    images = load_images(settings.dataset, labels, MAX_IMAGES, ("train",))
    at_least = MIN_CALIBRATION_IMAGES if recipe.is_calibrated else 1
    require_real_images(images, 2 * at_least if recipe.train_epochs else at_least, recipe.name)
    return images


def _labelled_images(settings: ExportSettings, labels: list[str]) -> list[LabelledImage]:
    if settings.validation is None:
        return []
    images = load_images(settings.validation, labels, MAX_LABELLED_IMAGES, ("validation",))
    return [image for image in images if image.label in labels]
