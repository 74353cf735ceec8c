"""From an image file to the input of a program, with NumPy and Pillow alone.

`swin_hf.SwinHfImageProcessorPil` does the same for the model. This module repeats it because a device that runs a program has
no transformers; a test checks that the two agree.
"""

import math
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import ExplainedError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class UnreadableImageError(ExplainedError):
    """A file is not an image that can be decoded; the message names it."""


def load_image(path: str | Path) -> Image.Image:
    """Read an image as people see it: 8-bit RGB, upright.

    The EXIF rotation is applied, palettes and CMYK are converted, transparent images are put on a white background, 16-bit
    levels are divided by 257, and deeper or float levels are rescaled from their minimum and maximum to 0 and 255.

    Raises:
        UnreadableImageError: the file is missing, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"{path} is not an image that can be read: {error}") from error
    return to_rgb(upright)


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit RGB image from one of any mode."""
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image).astype(np.float64)
        if image.mode.startswith("I;16") or (image.mode == "I" and levels.min() >= 0 and levels.max() <= 65535):
            levels = levels / 257
        else:
            span = levels.max() - levels.min()
            levels = (levels - levels.min()) * (255 / span if span else 0)
        image = Image.fromarray(np.round(levels).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_pixel_values(
    image: Image.Image, height: int, width: int, resample: int, dtype: str = "float32", crop_pct: float | None = None
) -> np.ndarray:
    """Resize an 8-bit image of C channels, RGB or grey, and lay it out as a program wants it.

    dtype: "float32" for (1, C, height, width) in [0, 1], "uint8" for (1, height, width, C) in [0, 255].
    crop_pct: None resizes to height x width without keeping the aspect ratio; otherwise the ratio is kept, and a centre crop
        is taken whose size is this share of the resized image's shorter side.
    """
    new_height, new_width = (height, width)
    if crop_pct is not None:
        new_height, new_width = resized_to_crop(image.height, image.width, (height, width), crop_pct)
    if (image.height, image.width) != (new_height, new_width):
        image = image.resize((new_width, new_height), resample=resample)
    if crop_pct is not None:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = np.array(image).reshape(1, height, width, -1)
    if dtype == "uint8":
        return np.ascontiguousarray(pixels)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def resized_to_crop(height: int, width: int, crop_size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """Size (height, width) of an image of height x width resized so that a crop is `crop_pct` of its shorter side.

    crop_size: (height, width) of the crop.
    """
    target_height, target_width = (math.floor(side / crop_pct) for side in crop_size)
    if height * target_width <= width * target_height:
        return target_height, int(target_height * width / height)
    return int(target_width * height / width), target_width


def random_pixel_values(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Noise instead of an image, to time a program with."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, shape, np.uint8) if dtype == "uint8" else rng.random(shape, np.float32)


def image_files(folder: str | Path) -> list[Path]:
    """All files under a folder whose names end like those of images, sorted.

    Raises:
        FileNotFoundError: the folder does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give a folder of images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no images ({' '.join(IMAGE_SUFFIXES)}); give a folder of images")
    return paths


def label_of(path: Path, root: Path, labels: list[str]) -> str | None:
    """The label from an image's class folder or its name `<label>_<n>`; None if that is not one of `labels`."""
    folder = path.relative_to(root).parts[0]
    if folder in labels:
        return folder
    name = re.sub(r"_\d+$", "", path.stem)
    return name if name in labels else None
