"""Pictures of class maps over the image that they explain; `swin_hf.explain` draws them alike, which a test checks."""

from pathlib import Path

import numpy as np
from PIL import Image

from .errors import ExplainedError

FOR, AGAINST = (214, 39, 40), (31, 119, 180)  # colours of what speaks for a class, and against it
OPACITY = 0.75  # of the strongest place
SIDE = 256  # of a picture, in pixels: its shorter side at least


def heat(values: np.ndarray, image: Image.Image) -> Image.Image:
    """Values (h, w), enlarged and laid over an image: positive ones red, negative ones blue, the strongest most opaque."""
    enlarged = Image.fromarray(values.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    levels = np.asarray(enlarged) / max(float(np.abs(values).max()), 1e-12)
    colours = np.where(levels[..., None] > 0, np.array(FOR), np.array(AGAINST)).astype(np.float32)
    opacity = OPACITY * np.clip(np.abs(levels), 0, 1)[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    return Image.fromarray(((1 - opacity) * grey + opacity * colours).round().astype(np.uint8))


def enlarged(image: Image.Image) -> Image.Image:
    """An image that people can see, whose shorter side has 256 pixels or more."""
    factor = max(SIDE / min(image.size), 1)
    return image.resize(tuple(round(side * factor) for side in image.size), Image.Resampling.BICUBIC)


class FileInTheWayError(ExplainedError):
    """A picture would replace a file; the message names it."""


def new_files(images: list[Path], folder: Path, *endings: str) -> list[tuple[Path, ...]]:
    """New files for the pictures of each image: `NAME_ENDING.png`.

    Raises:
        FileInTheWayError: one exists already, or two images would share it.
    """
    names = [tuple(folder / f"{image.stem}_{ending}.png" for ending in endings) for image in images]
    if endings and len(set(names)) < len(names):
        raise FileInTheWayError("images must have different names, as their pictures get these; run them one by one")
    existing = [file for files in names for file in files if file.exists()]
    if existing:
        raise FileInTheWayError(f"{existing[0]} exists already; give another --output_dir")
    return names
