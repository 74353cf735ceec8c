"""Real images for an export: to find scales on, and to compare the program with the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edge.artefact import InputContract
from edge.image import UnreadableImageError, find_images, label_of, load_image, to_pixel_values, to_rgb

MIN_CALIBRATION_IMAGES = 16
MAX_IMAGES = 128  # to compare on
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


def load_images(source: ImageSource, labels: list[str], at_most: int = MAX_IMAGES) -> list[LabelledImage]:
    """Images of a folder, of a data set saved by `datasets`, or given as they are; at most so many, evenly out of all.

    Raises:
        CalibrationError: there are none, or none that can be read.
    """
    if not isinstance(source, str | Path):
        return evenly([LabelledImage(to_rgb(image), None) for image in source], at_most)
    folder = Path(source)
    if is_saved_dataset(folder):
        return _load_saved_dataset(folder, at_most)
    try:
        paths = evenly(find_images(folder), at_most)
    except FileNotFoundError as error:
        raise CalibrationError(str(error)) from error
    images = []
    for path in paths:
        try:
            images.append(LabelledImage(load_image(path), label_of(path, folder, labels)))
        except UnreadableImageError:
            continue
    if not images:
        raise CalibrationError(f"none of the images in {folder} can be read")
    return images


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved a data set, or splits of one, in this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _load_saved_dataset(folder: Path, at_most: int) -> list[LabelledImage]:
    try:
        import datasets
    except ImportError as error:
        raise CalibrationError(f"{folder} is a saved data set, which needs datasets; pip install swin-hf[train]") from error
    dataset = datasets.load_from_disk(str(folder))
    if isinstance(dataset, datasets.DatasetDict):
        dataset = dataset["train"] if "train" in dataset else next(iter(dataset.values()))
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if not columns or not len(dataset):
        raise CalibrationError(f"{folder} must be a data set with an image column, got columns {dataset.column_names}")
    classes = next((f for f in dataset.features.items() if isinstance(f[1], datasets.ClassLabel)), None)
    rows = [dataset[int(index)] for index in evenly(range(len(dataset)), at_most)]
    return [LabelledImage(to_rgb(row[columns[0]]), classes[1].int2str(row[classes[0]]) if classes else None) for row in rows]


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
    arrays = [to_pixel_values(image.image, height, width, contract.resample, contract.dtype) for image in images]
    arrays += [arrays[index % len(images)] for index in range(-len(arrays) % B)]
    return [np.concatenate(arrays[start : start + B]) for start in range(0, len(arrays), B)]
