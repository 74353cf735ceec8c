"""Images of an export or a verification: from a folder, a data set saved by `datasets`, or given as they are."""

import io
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from edge.device.artefact import InputContract
from edge.device.errors import ExplainedError
from edge.device.image import UnreadableImageError, load_image, to_rgb
from edge.device.labelled import FileLabels, ImageReader, LabelledImage, SplitError, evenly, open_folder
from edge.device.masks import open_beside_masks
from edge.device.names import plain

MAX_IMAGES, MIN_IMAGES = 128, 16  # to compare on, if there are so many
MOST_NUMBERS = 2**28  # of outputs that are kept to compare with, a gigabyte

Images = str | Path | Iterable[Image.Image]


class CalibrationError(ExplainedError):
    """There are no images to check an export on, or not the right ones; the message says why."""


def load_images(
    source: Images,
    labels: list[str],
    at_most: int = MAX_IMAGES,
    splits: tuple[str, ...] = ("train",),
    beside_masks: bool = False,
) -> list[LabelledImage]:
    """Images of a source that `open_images` takes, or a list of images; at most so many, evenly spaced.

    Warns of those that cannot be read.

    beside_masks: whether a folder may hold masks too, which are no images.

    Raises:
        CalibrationError: there are none, or none that can be read.
    """
    if not isinstance(source, str | Path):
        return evenly([LabelledImage(to_rgb(image), None, f"image {n}") for n, image in enumerate(source)], at_most)
    readers = evenly(open_images(source, labels, splits, beside_masks), at_most)
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


def affordable(numbers: int) -> int:
    """How many images outputs are compared on, of so many numbers each, which are kept in memory."""
    return min(max(MOST_NUMBERS // numbers, MIN_IMAGES), MAX_IMAGES)


def open_images(
    source: str | Path, labels: list[str], splits: tuple[str, ...], beside_masks: bool = False
) -> list[ImageReader]:
    """A reader for each image of a folder or a saved data set, which raises an `UnreadableImageError`.

    splits: which to take from a folder or a data set that has several, in order of preference.

    Raises:
        CalibrationError: there are none.
    """
    folder = Path(source)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _open_saved_dataset(folder, labels, splits)
    try:
        return open_beside_masks(folder, splits) if beside_masks else open_folder(folder, labels, splits)
    except (FileNotFoundError, SplitError) as error:
        raise CalibrationError(str(error)) from error


def _open_saved_dataset(folder: Path, labels: list[str], splits: tuple[str, ...]) -> list[ImageReader]:
    try:
        import datasets
    except ImportError as error:
        raise CalibrationError(f"{folder} is a saved data set, which needs datasets; pip install swin-hf[train]") from error
    try:
        dataset = datasets.load_from_disk(str(folder))
    except ValueError as error:
        raise CalibrationError(f"{folder} cannot be read as a saved data set: {error}") from error
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
    dataset, known_as = dataset.cast_column(columns[0], datasets.Image(decode=False)), FileLabels(labels).by_name

    def read(index: int) -> LabelledImage:
        row, name = dataset[index], f"image {index} of {folder}"
        cell = row[columns[0]] or {"bytes": None, "path": None}
        if cell["bytes"] is None and cell["path"] is None:
            raise UnreadableImageError(f"{name} cannot be read: it is empty")
        file = cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])
        label = None if classes is None or row[classes[0]] is None else classes[1].int2str(row[classes[0]])
        known = None if label is None else known_as.get(plain(label), label)
        return LabelledImage(load_image(file, name), known, f"{index} ({label})")

    return [partial(read, index) for index in range(len(dataset))]


def method_inputs(
    images: list[LabelledImage], contract: InputContract, method: dict[str, int], at_most: int | None = None
) -> list[np.ndarray]:
    """Inputs of a method, (B, ..) each; the first images are repeated to fill the last batch."""
    B, height, width = method["batch_size"], method["height"], method["width"]
    images = images[:at_most]
    arrays = [contract.pixel_values(image.image, height, width) for image in images]
    arrays += [arrays[index % len(images)] for index in range(-len(arrays) % B)]
    return [np.concatenate(arrays[start : start + B]) for start in range(0, len(arrays), B)]
