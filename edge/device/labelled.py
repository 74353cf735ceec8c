"""Labelled images of a folder."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import ExplainedError
from .image import load_image
from .listing import Listing, list_files, no_images
from .names import as_utf8, file_stem, plain, split_of


class SplitError(ExplainedError):
    """A folder has folders of splits, but not the one that is needed; the message names them."""


@dataclass(frozen=True)
class LabelledImage:
    """An upright RGB image and the label that its class folder or its file name gives, None if it is not a known one.

    name: of the image in messages, relative to the folder that it comes from.
    """

    image: Image.Image
    label: str | None
    name: str = "an image"


ImageReader = Callable[[], LabelledImage]


def open_folder(folder: str | Path, labels: list[str], splits: tuple[str, ...]) -> list[ImageReader]:
    """A reader for each image under a folder, which raises an `UnreadableImageError` if the image cannot be decoded.

    splits: which of the folders train, validation and test to take, if there are any, in order of preference.

    Raises:
        FileNotFoundError: the folder does not exist or holds no images.
        SplitError: it has folders of other splits only.
    """
    listing, names = list_files(folder), FileLabels(labels)
    below = _images_of_split(listing, names, splits)
    if not below:
        raise FileNotFoundError(no_images(folder, listing))
    return [partial(_read_file, listing.root / path, path, names) for path in below]


def _images_of_split(listing: Listing, names: "FileLabels", splits: tuple[str, ...]) -> list[Path]:
    """All images, or those of the first split that there is; folders that hold nothing but the splits are looked into."""
    top = Path()
    while len(inside := listing.children(top)) == 1 and not names.of_folder(inside[0].name) and not split_of(inside[0].name):
        top = inside[0]
    folders = [path for path in inside if path in listing.with_images]
    of_split = {path: split_of(path.name) for path in folders if split_of(path.name)}
    if not of_split or any(names.of_folder(path.name) for path in folders):
        return listing.images
    chosen = next((split for split in splits if split in of_split.values()), None)
    if chosen is None:
        found = ", ".join(path.name for path in of_split)
        place = listing.root / top
        raise SplitError(f"{place} must have a folder {' or '.join(splits)}, got {found}; name one: {place / 'FOLDER'}")
    return [image for path, split in of_split.items() if split == chosen for image in listing.below(path)]


class FileLabels:
    """Labels as class folders and files are named after them."""

    def __init__(self, labels: list[str]):
        self.by_name = {plain(label): label for label in labels}
        self.by_stem = {file_stem(label): label for label in labels}

    def of_folder(self, name: str) -> str | None:
        """The label that a class folder is named after."""
        return self.by_name.get(plain(name)) or self.by_stem.get(plain(name))

    def of_image(self, path: Path) -> str | None:
        """The label from an image's class folder or its name `<label>_<n>`; None if it is none of these."""
        for folder in path.parts[:-1]:
            if (label := self.of_folder(folder)) is not None:
                return label
        stem = plain(re.sub(r"_\d+$", "", path.stem))
        return self.by_stem.get(stem) or self.by_name.get(stem)


def _read_file(file: Path, path: Path, names: FileLabels) -> LabelledImage:
    return LabelledImage(load_image(file), names.of_image(path), as_utf8(path))


def evenly(items, at_most: int) -> list:
    """At most so many items, evenly spaced, so that every class of a sorted list is represented."""
    items = list(items)
    if len(items) <= at_most:
        return items
    return [items[round(index)] for index in np.linspace(0, len(items) - 1, at_most)]
