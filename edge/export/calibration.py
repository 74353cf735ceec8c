"""Real images for an export: to find scales on, and to compare the program with the model."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from edge.device.artefact import InputContract
from edge.device.image import UnreadableImageError, find_images, label_of, load_image, to_rgb

MIN_CALIBRATION_IMAGES = 16
MAX_IMAGES = 128  # to compare on
MAX_LABELLED_IMAGES = 256  # for the accuracy and the temperature
MAX_CALIBRATION_IMAGES = 32  # as many as the literature takes (RepQ-ViT); histograms of all activations take their time
MIN_CORRELATION = 0.3  # of neighbouring pixels: photographs and scans have 0.8 and more, noise has none
MIN_DEVIATION = 1.0  # of the levels of an image, of 255

ImageSource = str | Path | Iterable[Image.Image]


class CalibrationError(ValueError):
    """There are no images to check an export on, or not the right ones; the message says why."""


@dataclass(frozen=True)
class LabelledImage:
    """An upright RGB image, and its class by the name of its folder or its own, if that is one of the labels."""

    image: Image.Image
    label: str | None


def load_images(
    source: ImageSource, labels: list[str], at_most: int = MAX_IMAGES, splits: tuple[str, ...] = ("train",)
) -> list[LabelledImage]:
    """Images of a source as `open_images` takes it, or given as they are; at most so many, evenly out of all.

    Warns of those that cannot be read.

    Raises:
        CalibrationError: there are none, or none that can be read.
    """
    if not isinstance(source, str | Path):
        return evenly([LabelledImage(to_rgb(image), None) for image in source], at_most)
    readers = evenly(open_images(source, labels, splits), at_most)
    images, unreadable = [], []
    for read in readers:
        try:
            images.append(read())
        except UnreadableImageError as error:
            unreadable.append(error)
    if not images:
        raise CalibrationError(f"none of the images in {source} can be read: {unreadable[0]}")
    if unreadable:
        warnings.warn(f"left out {len(unreadable)} of {len(readers)} images in {source}: {unreadable[0]}", stacklevel=2)
    return images


def open_images(source: str | Path, labels: list[str], splits: tuple[str, ...]) -> list[Callable[[], LabelledImage]]:
    """A reader for each image of a folder, or of a data set saved by `datasets`, which raises an `UnreadableImageError`.

    splits: names of the splits to take from a data set that has several, the best first.

    Raises:
        CalibrationError: there are none.
    """
    folder = Path(source)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _open_saved_dataset(folder, splits)
    try:
        return [partial(_read_file, path, folder, labels) for path in find_images(folder)]
    except FileNotFoundError as error:
        raise CalibrationError(str(error)) from error


def _read_file(path: Path, folder: Path, labels: list[str]) -> LabelledImage:
    return LabelledImage(load_image(path), label_of(path, folder, labels))


def _open_saved_dataset(folder: Path, splits: tuple[str, ...]) -> list[Callable[[], LabelledImage]]:
    try:
        import datasets
    except ImportError as error:
        raise CalibrationError(f"{folder} is a saved data set, which needs datasets; pip install swin-hf[train]") from error
    dataset = datasets.load_from_disk(str(folder))
    if isinstance(dataset, datasets.DatasetDict):
        split = next((name for name in splits if name in dataset), None)
        if split is None:
            raise CalibrationError(
                f"{folder} must have a split {' or '.join(splits)}, got {', '.join(dataset)}; name one: {folder / 'SPLIT'}"
            )
        dataset = dataset[split]
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if not columns or not len(dataset):
        raise CalibrationError(f"{folder} must be a data set with an image column, got columns {dataset.column_names}")
    classes = next((f for f in dataset.features.items() if isinstance(f[1], datasets.ClassLabel)), None)

    def read(index: int) -> LabelledImage:
        try:
            row = dataset[index]
        except (OSError, SyntaxError, ValueError) as error:
            raise UnreadableImageError(f"image {index} of {folder} cannot be read: {error}") from error
        return LabelledImage(to_rgb(row[columns[0]]), classes[1].int2str(row[classes[0]]) if classes else None)

    return [partial(read, index) for index in range(len(dataset))]


def evenly(items, at_most: int) -> list:
    """At most so many of the items, at even distances, so that sorted classes are all there."""
    items = list(items)
    if len(items) <= at_most:
        return items
    return [items[round(index)] for index in np.linspace(0, len(items) - 1, at_most)]


def require_real_images(images: list[LabelledImage], at_least: int, recipe: str) -> None:
    """Check that there are enough different images to find scales on, and that they are images of something.

    Raises:
        CalibrationError: too few, or what was given is noise or empty.
    """
    distinct = len({image.image.tobytes() for image in images})
    if distinct < at_least:
        raise CalibrationError(
            f"recipe {recipe} needs at least {at_least} images to calibrate on, got {distinct} different ones; give a folder "
            "with more of them with --data"
        )
    correlations = [correlation for image in images if (correlation := neighbour_correlation(image.image)) is not None]
    if len(correlations) < len(images) / 2:
        raise CalibrationError("images to calibrate on must show something, most of these are of one colour")
    if float(np.median(correlations)) < MIN_CORRELATION:
        raise CalibrationError(
            f"images to calibrate on must be real ones, these are noise: neighbouring pixels correlate by "
            f"{np.median(correlations):.2f}, in photographs by 0.8 and more; scales found on noise fit nothing else"
        )


def neighbour_correlation(image: Image.Image) -> float | None:
    """Correlation of horizontally and vertically neighbouring pixels, each channel about its mean; None for a plain image."""
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels - pixels.mean(axis=(0, 1))
    if pixels.std() < MIN_DEVIATION or min(pixels.shape[:2]) < 2:
        return None
    products = [(pixels[:, 1:] * pixels[:, :-1]).mean(), (pixels[1:] * pixels[:-1]).mean()]
    return float(np.mean(products) / pixels.var())


def method_inputs(
    images: list[LabelledImage], contract: InputContract, method: dict[str, int], at_most: int | None = None
) -> list[np.ndarray]:
    """Inputs of a method, (B, ..) each; the first images again where they do not fill the last batch."""
    B, height, width = method["batch_size"], method["height"], method["width"]
    images = images[:at_most]
    arrays = [contract.pixel_values(image.image, height, width) for image in images]
    arrays += [arrays[index % len(images)] for index in range(-len(arrays) % B)]
    return [np.concatenate(arrays[start : start + B]) for start in range(0, len(arrays), B)]
