"""Images that are not decoded yet: where each one is, and its targets."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edge.device.errors import ExplainedError
from edge.device.image import UnreadableImageError, load_image

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | {"training": "train", "val": "validation", "valid": "validation"}
IMAGE_NAMES = ("image", "images", "image_path", "file_name", "filename", "path", "img")
LABEL_NAMES = ("label", "labels", "class", "class_name", "target")
MASK_NAMES = ("mask", "masks", "annotation", "annotations", "segmentation", "segmentation_mask", "mask_path")


class DataError(ExplainedError):
    """The images cannot be used; the message says what is wrong with them and what to do."""


@dataclass(frozen=True)
class ImageSource:
    """An image with a name for messages; `open` returns its file, or its encoded bytes if it has no file."""

    name: str
    open: Callable[[], Path | io.BytesIO]

    def load(self) -> Image.Image:
        """The image in RGB.

        Raises:
            UnreadableImageError: it cannot be decoded; the message names it.
        """
        try:
            return load_image(self.open())
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{self.name} cannot be read: {error.__cause__}") from error

    def load_mask(self) -> Image.Image:
        """The numbers of classes as 8-bit levels; the colours of a palette are ignored.

        Raises:
            UnreadableImageError: it cannot be decoded, or holds colours or numbers above 255; the message names it.
        """
        try:
            with Image.open(self.open()) as mask:
                levels = np.asarray(mask)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableImageError(f"{self.name} cannot be read: {error}") from error
        if levels.ndim != 2 or levels.dtype.kind not in "bui" or levels.min(initial=0) < 0 or levels.max(initial=0) > 255:
            raise UnreadableImageError(f"{self.name} must be a mask with a number from 0 to 255 in each pixel, not colours")
        return Image.fromarray(levels.astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class FoundImages:
    """Images that are not decoded yet, by split; the split "all" is not divided yet.

    labels: for each image an index into `class_names`; 0 for all where there are masks, or nothing at all, to learn from.
    masks: for each image the one that says which class each of its pixels has, in segmentation.
    """

    images: dict[str, list[ImageSource]]
    labels: dict[str, list[int]]
    class_names: list[str]
    masks: dict[str, list[ImageSource]] | None = None

    @property
    def whole(self) -> str:
        """The split from which missing splits are taken."""
        return "all" if "all" in self.images else "train"
