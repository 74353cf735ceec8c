"""Images that are not decoded yet: where each one is, and its targets."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from edge.device.errors import ExplainedError
from edge.device.image import ORIENTATION, load_image, load_mask, opened
from edge.device.names import split_of

SPLITS = ("train", "validation", "test")
ON_THEIR_SIDE = {  # EXIF orientations that exchange height and width, and what makes the image upright
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = frozenset(range(2, 9))  # EXIF orientations of images that are not stored upright
LABEL_NAMES = ("label", "labels", "class", "class_name", "target")


class DataError(ExplainedError):
    """The images cannot be used; the message says what is wrong with them and what to do."""


class NoClassesError(DataError):
    """A folder has images, and no folders of classes."""


@dataclass(frozen=True)
class ImageSource:
    """An image with a name for messages; `open` returns its file, or its encoded bytes if it has no file."""

    name: str
    open: Callable[[], Path | io.BytesIO]

    def load(self, at_least: int | None = None) -> Image.Image:
        """The image in RGB. at_least: as in `edge.device.image.load_image`.

        Raises:
            UnreadableImageError: it cannot be decoded; the message names it.
        """
        return load_image(self.open(), self.name, at_least)

    def load_mask(self) -> Image.Image:
        """The numbers of classes as 8-bit levels, as `edge.device.image.load_mask` reads them.

        Raises:
            UnreadableImageError: it cannot be decoded, or holds colours or numbers above 255; the message names it.
        """
        return load_mask(self.open(), self.name)

    def stored(self) -> tuple[int, tuple[int, int]]:
        """The EXIF orientation, 1 if there is none, and the size (width, height) as the pixels are stored."""
        with opened(self.open(), self.name) as image:
            orientation, size = image.getexif().get(ORIENTATION, 1), image.size
            swapped = image.format == "TIFF" and orientation in ON_THEIR_SIDE  # Pillow gives the size after turning
            return orientation, size[::-1] if swapped else size


@dataclass(frozen=True, kw_only=True)
class FoundImages:
    """Images that are not decoded yet, by split; the split "all" is not divided yet.

    labels: for each image an index into `class_names`; 0 for all where there are masks, or nothing at all, to learn from.
    masks: for each image the one that says which class each of its pixels has, in segmentation.
    boxes: for each image (M, 5), class, left, top, right and bottom of its objects in pixels, in detection.
    left_out: how many files or rows are left out for each reason.
    notes: what else people should know about these images, a sentence each.
    """

    images: dict[str, list[ImageSource]]
    labels: dict[str, list[int]]
    class_names: list[str]
    masks: dict[str, list[ImageSource]] | None = None
    boxes: dict[str, list[np.ndarray]] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def have_classes(self) -> bool:
        """Whether each image has one class, by which a split can be stratified."""
        return self.masks is None and self.boxes is None

    @property
    def whole(self) -> str:
        """The split from which missing splits are taken."""
        return "all" if "all" in self.images else "train"

    def without(self, classes: set[int]) -> "FoundImages":
        """Without the images of some classes, which are counted as left out."""
        kept = {
            split: [number for number, label in enumerate(own) if label not in classes] for split, own in self.labels.items()
        }
        labels = [label for label in range(len(self.class_names)) if label not in classes]
        number_of = {label: number for number, label in enumerate(labels)}
        count = sum(len(own) - len(kept[split]) for split, own in self.labels.items())
        return replace(
            self,
            images={split: [self.images[split][number] for number in own] for split, own in kept.items()},
            labels={split: [number_of[self.labels[split][number]] for number in own] for split, own in kept.items()},
            class_names=[self.class_names[label] for label in labels],
            left_out=self.left_out | {"in a class with too few images": count},
        )


def by_split(names: Iterable[str], where: str) -> dict[str, str]:
    """The name of each split: train, validation, test, among names such as training_set, val2017 and holdout.

    where: begins the message of an error.

    Raises:
        DataError: two names stand for the same split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split in found:
            raise DataError(f"{where} must have one {split} split, got {found[split]} and {name}; rename or merge them")
        if split is not None:
            found[split] = name
    return found
