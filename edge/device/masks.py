"""Images with masks, from the folders `images` and `masks`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .image import UnreadableImageError, load_image, load_mask
from .labelled import ImageReader, LabelledImage, SplitError
from .listing import list_files, no_images
from .names import IMAGE_NAMES, MASK_NAMES, as_utf8, plain, split_of

IGNORED = 255  # in a mask: the pixel counts for nothing


@dataclass(frozen=True)
class MaskedImage:
    """An upright RGB image, and the class (H, W) of each of its pixels; None without a mask. name: in messages."""

    image: Image.Image
    mask: np.ndarray | None
    name: str


MaskedReader = Callable[[], MaskedImage]


def open_masked(folder: str | Path, splits: tuple[str, ...]) -> list[MaskedReader]:
    """A reader for each image under a folder, which raises an `UnreadableImageError` if image or mask cannot be decoded.

    A mask has the name of its image, in a folder `masks` (or `annotations`) beside that of the `images`.

    splits: which of the folders train, validation and test to take, if there are any, in order of preference.

    Raises:
        FileNotFoundError: the folder does not exist or holds no images.
        SplitError: it has folders of other splits only.
    """
    listing = list_files(folder)
    masks = {_key(path, MASK_NAMES): path for path in listing.images if _named(path, MASK_NAMES) is not None}
    images = [path for path in listing.images if _named(path, MASK_NAMES) is None]
    found = {split for path in images if (split := _split(path))}
    if found:
        chosen = next((split for split in splits if split in found), None)
        if chosen is None:
            raise SplitError(f"{folder} must have a folder {' or '.join(splits)}, got {', '.join(sorted(found))}")
        images = [path for path in images if _split(path) == chosen]
    if not images:
        raise FileNotFoundError(no_images(folder, listing))
    return [partial(_read, listing.root, path, masks.get(_key(path, IMAGE_NAMES))) for path in images]


def open_beside_masks(folder: str | Path, splits: tuple[str, ...]) -> list[ImageReader]:
    """A reader for each image that `open_masked` finds, for the image alone.

    Raises:
        As `open_masked`.
    """

    def alone(read: MaskedReader) -> LabelledImage:
        found = read()
        return LabelledImage(found.image, None, found.name)

    return [partial(alone, read) for read in open_masked(folder, splits)]


def _read(root: Path, path: Path, mask_path: Path | None) -> MaskedImage:
    image, name = load_image(root / path), as_utf8(path)
    if mask_path is None:
        return MaskedImage(image, None, name)
    mask = load_mask(root / mask_path)
    if mask.size != image.size:
        raise UnreadableImageError(
            f"{as_utf8(mask_path)} must have the size of its image, {image.width} x {image.height}, got "
            f"{mask.width} x {mask.height}"
        )
    return MaskedImage(image, np.asarray(mask), name)


def _split(path: Path) -> str | None:
    return next((split for part in path.parts[:-1] if (split := split_of(part))), None)


def _named(path: Path, names: tuple[str, ...]) -> int | None:
    """Which of the folders around a file has one of the names."""
    return next((number for number, part in enumerate(path.parts[:-1]) if part.lower() in names), None)


def _key(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """What an image and its mask have in common: the path without that folder and without the suffix."""
    number = _named(path, names)
    parts = path.with_suffix("").parts
    return tuple(plain(part) for part in (parts if number is None else parts[:number] + parts[number + 1 :]))
