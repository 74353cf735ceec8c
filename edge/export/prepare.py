"""The first step of an export: read checkpoint and images, refuse what cannot be exported, and run the model."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edge.deploy.form import Exportable, encoder_config
from edge.device.artefact import InputContract
from edge.device.labelled import LabelledImage, SplitError, evenly
from edge.device.masks import MaskedReader, open_masked
from edge.device.palette import palette_of
from edge.device.parity import Parity, compare, compare_class_maps
from edge.device.segmentation import class_map_of
from edge.device.verify import VerificationError, readable_masks
from edge.export.calibration import MIN_CALIBRATION_IMAGES, require_real_images
from edge.export.checkpoint import input_contract, load_checkpoint, model_outputs, outputs_named
from edge.export.images import MAX_IMAGES, affordable, load_images, method_inputs
from edge.export.settings import ExportError, ExportSettings
from edge.lower.recipes import CASTS, Recipe, find_recipe
from swin_hf import SwinHfForImageClassification, SwinHfForSemanticSegmentation, SwinHfImageProcessorPil

MAX_LABELLED_IMAGES = 256  # for the accuracy and the temperature


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Inputs of a method, and the model's outputs for them, with which every form of it is compared.

    inputs: (B, ..) each. names: of the images in them. reference: (n, ..), logits or all feature maps flattened.
    map_shape: (K, h, w) of the logits of a segmenter for one image; None of other outputs.
    """

    inputs: list[np.ndarray]
    names: list[str]
    reference: np.ndarray
    are_logits: bool
    map_shape: tuple[int, int, int] | None = None

    def tensors(self, at_most: int = MAX_IMAGES) -> list[torch.Tensor]:
        """At most so many inputs, evenly spaced."""
        return [torch.from_numpy(array) for array in evenly(self.inputs, at_most)]

    def compare(self, outputs: list[np.ndarray], class_map_size: tuple[int, int] | None = None) -> Parity:
        """Outputs (B, ..) for all inputs, or for the first ones, against the model's.

        class_map_size: (height, width), if the outputs are class maps of this size instead of logits.
        """
        joined = np.concatenate(outputs)
        if class_map_size is not None:
            logits = self.reference[: len(joined)].reshape(-1, *self.map_shape)
            maps = np.stack([class_map_of(of_image, *class_map_size) for of_image in logits])
            return compare_class_maps(joined.reshape(maps.shape), maps)
        return compare(joined, self.reference[: len(joined)], self.are_logits, self.num_classes)

    @property
    def num_classes(self) -> int | None:
        return None if self.map_shape is None else self.map_shape[0]


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
    held_out: labelled images, of a classifier. held_out_masks: readers of images with masks, of a segmenter.
    """

    checkpoint_dir: Path
    settings: ExportSettings
    recipe: Recipe
    model: Exportable
    processor: SwinHfImageProcessorPil
    contract: InputContract
    labels: list[str]
    methods: dict[str, dict[str, int]]
    samples: dict[str, Samples]
    held_out: HeldOut | None
    held_out_masks: list[MaskedReader]

    def class_map_size(self, method: str) -> tuple[int, int] | None:
        """(height, width) of the class maps that a method puts out; None if it puts out logits or feature maps."""
        own = self.methods[method]
        return (own["height"], own["width"]) if self.settings.class_map else None

    @property
    def map_size(self) -> tuple[int, int] | None:
        """(height, width) of what `forward` of a segmenter puts out."""
        shape = self.samples["forward"].map_shape
        return self.class_map_size("forward") or (None if shape is None else shape[1:])

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        return palette_of(len(self.labels)) if isinstance(self.model, SwinHfForSemanticSegmentation) else []


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
    if settings.class_map:
        recipe = replace(recipe, outside=(*recipe.outside, *CASTS, "aten::argmax"))
    model, processor = load_checkpoint(checkpoint_dir)
    contract = input_contract(encoder_config(model), processor, settings.input_dtype)
    sizes = settings.sizes or ((contract.height, contract.width),)
    contract = replace(contract, height=sizes[0][0], width=sizes[0][1])
    methods = methods_of(sizes, settings.batch_sizes)
    is_classifier = isinstance(model, SwinHfForImageClassification)
    is_segmenter = isinstance(model, SwinHfForSemanticSegmentation)
    _check_outputs(settings, is_classifier, is_segmenter, contract)
    if is_segmenter:
        model.config.resize_logits = settings.enlarge
    labels = outputs_named(model)
    if recipe.train_epochs:
        _require_trainable(recipe, is_classifier, methods)
    images = images_to_compare_on(settings, labels, beside_masks=is_segmenter)
    labelled = _labelled_images(settings, labels) if is_classifier else []
    masked = _masked_images(settings, len(labels)) if is_segmenter else []
    if settings.validation is not None and not labelled and not masked:
        raise ExportError(
            f"validation must hold images of the model's classes ({', '.join(labels[:5])}, ..) in class folders, got none in "
            f"{settings.validation}"
        )
    largest = 0  # numbers that the model puts out for one image
    for method in methods.values():
        one = method_inputs(images[:1], contract, method | {"batch_size": 1})
        largest = max(largest, model_outputs(model, processor, one, [images[0].name]).size)
    images = evenly(images, affordable(largest))
    inputs = {name: method_inputs(images, contract, method) for name, method in methods.items()}
    # PyTorch's work comes before the runtime's first run: two spinning thread pools slow each other down.
    names, samples = [image.name for image in images], {}
    for method, arrays in inputs.items():
        reference = model_outputs(model, processor, arrays, names)
        samples[method] = Samples(
            inputs=arrays,
            names=names,
            reference=reference,
            are_logits=is_classifier or is_segmenter,
            map_shape=map_shape_of(model, arrays[0], contract) if is_segmenter else None,
        )
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
        held_out_masks=masked,
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


@torch.no_grad()
def map_shape_of(model: SwinHfForSemanticSegmentation, inputs: np.ndarray, contract: InputContract) -> tuple[int, int, int]:
    """(K, h, w) of a segmenter's logits for one image like those of `inputs`."""
    height, width = inputs.shape[1:3] if contract.layout == "NHWC" else inputs.shape[2:]
    return tuple(model(torch.zeros(1, contract.channels, height, width)).logits.shape[1:])


def _check_outputs(settings: ExportSettings, is_classifier: bool, is_segmenter: bool, contract: InputContract) -> None:
    """Check what only some models put out, and what segmenters cannot have.

    Raises:
        ExportError: another model is to put it out, or a segmenter's images are cropped.
    """
    recipe = find_recipe(settings.recipe)
    if settings.explain and (not is_classifier or recipe.train_epochs):
        raise ExportError(f"explain must come with a classifier and a recipe without training, got recipe {recipe.name}")
    for name in ("enlarge", "class_map"):
        if getattr(settings, name) and not is_segmenter:
            raise ExportError(f"{name} must be left out for a model that is no segmenter")
    if is_segmenter and contract.crop_pct is not None:
        raise ExportError(
            f"the image processor of a segmenter must show it whole images, got crop_pct {contract.crop_pct}; set it to null"
        )


def _require_trainable(recipe: Recipe, is_classifier: bool, methods: dict[str, dict[str, int]]) -> None:
    """Check what a recipe with training needs.

    Raises:
        ExportError: it is missing.
    """
    if not is_classifier:
        raise ExportError(f"recipe {recipe.name} must have a classifier to train, got another model; take int8")
    if len(methods) > 1:
        raise ExportError(f"recipe {recipe.name} must have one size and batch size, got {', '.join(methods)}")
    if importlib.util.find_spec("accelerate") is None:
        raise ExportError(f"recipe {recipe.name} needs accelerate; pip install swin-hf[train]")


def images_to_compare_on(settings: ExportSettings, labels: list[str], beside_masks: bool = False) -> list[LabelledImage]:
    """The images that an export finds its scales on and is checked on; `beside_masks` as for `load_images`.

    Raises:
        ExportError: the settings name none.
        CalibrationError: they cannot be read, or are too few, noise, or of one colour.
    """
    recipe = find_recipe(settings.recipe)
    if settings.dataset is None:
        raise ExportError(
            "dataset must be a folder or a list of real images, on which an export is calibrated and checked, got None"
        )
    images = load_images(settings.dataset, labels, MAX_IMAGES, ("train",), beside_masks)
    at_least = MIN_CALIBRATION_IMAGES if recipe.is_calibrated else 1
    require_real_images(images, 2 * at_least if recipe.train_epochs else at_least, recipe.name)
    return images


def _masked_images(settings: ExportSettings, num_classes: int) -> list[MaskedReader]:
    """Readers of held-out images with masks.

    Raises:
        ExportError: there are none.
    """
    if settings.validation is None:
        return []
    if not isinstance(settings.validation, str | Path):
        raise ExportError("validation must be a folder for a segmenter, with its folders images and masks")
    try:
        readers = evenly(open_masked(settings.validation, ("validation",)), MAX_LABELLED_IMAGES)
        return readable_masks(readers, settings.validation, num_classes, require_masks=True).with_masks
    except (FileNotFoundError, SplitError, VerificationError) as error:
        raise ExportError(f"validation: {error}") from error


def _labelled_images(settings: ExportSettings, labels: list[str]) -> list[LabelledImage]:
    if settings.validation is None:
        return []
    images = load_images(settings.validation, labels, MAX_LABELLED_IMAGES, ("validation",))
    return [image for image in images if image.label in labels]
