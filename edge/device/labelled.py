"""Labelled images of a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .image import image_files, label_of, load_image


@dataclass(frozen=True)
class LabelledImage:
    """An upright RGB image and the label that its class folder or its file name gives, None if it is not a known one.

    name: its path or number, for messages.
    """

    image: Image.Image
    label: str | None
    name: str = "an image"


ImageReader = Callable[[], LabelledImage]


def open_folder(folder: str | Path, labels: list[str]) -> list[ImageReader]:
    """A reader for each image under a folder, which raises an `UnreadableImageError` if the image cannot be decoded.

    Raises:
        FileNotFoundError: the folder does not exist or holds no images.
    """
    return [partial(_read_file, path, Path(folder), labels) for path in image_files(folder)]


def _read_file(path: Path, folder: Path, labels: list[str]) -> LabelledImage:
    return LabelledImage(load_image(path), label_of(path, folder, labels), str(path))


def evenly(items, at_most: int) -> list:
    """At most so many items, evenly spaced, so that every class of a sorted list is represented."""
    items = list(items)
    if len(items) <= at_most:
        return items
    return [items[round(index)] for index in np.linspace(0, len(items) - 1, at_most)]
