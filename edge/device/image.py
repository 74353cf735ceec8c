"""From an image file to the input of a program, with NumPy and Pillow alone.

`swin_hf.SwinHfImageProcessorPil` does the same for the model. This module repeats it because a device that runs a program has
no transformers; a test checks that the two agree.
"""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import ExplainedError

# Pillow knows these formats by name only; EPS it hands to Ghostscript, which runs programs.
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
ORIENTATION = 0x0112  # EXIF


class UnreadableImageError(ExplainedError):
    """A file is not an image that can be decoded; the message names it."""


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the files that Pillow decodes here, in lower case; HEIF with `pillow-heif`, AVIF also with its plugin."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_avif  # noqa: F401  registers itself
    formats = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in formats if name in Image.OPEN and name not in NOT_DECODED)


@contextmanager
def opened(file: str | Path | io.BytesIO, name: str = "") -> Iterator[Image.Image]:
    """An image file, not decoded yet; what goes wrong with it inside the block is an `UnreadableImageError`.

    name: of the image in messages, by default the path.

    Raises:
        UnreadableImageError: it is missing, not a regular file, not an image, or damaged.
    """
    image_suffixes()  # registers the plugins
    name = name or str(file)
    if isinstance(file, str | Path) and not Path(file).is_file():
        path = Path(file)
        what = f"a folder; give the images in it: {path / '*'}" if path.is_dir() else "not a regular file"
        raise UnreadableImageError(f"{name} is {what}" if os.path.lexists(path) else f"{name} does not exist")
    try:
        with Image.open(file) as image:
            yield image
    except UnreadableImageError:
        raise
    # Pillow's decoders raise all kinds of errors on damaged files: OSError, SyntaxError, RuntimeError, struct.error, ..
    except Exception as error:
        raise UnreadableImageError(f"{name} cannot be read: {str(error) or type(error).__name__}") from error


def load_image(file: str | Path | io.BytesIO, name: str = "", at_least: int | None = None) -> Image.Image:
    """Read an image as people see it: 8-bit RGB, upright.

    The EXIF rotation is applied, palettes and CMYK are converted, transparent images are put on a white background, 16-bit
    levels are divided by 257, and deeper or float levels are rescaled from their minimum and maximum to 0 and 255.

    name: of the image in messages, by default the path.
    at_least: sides in pixels that are enough. JPEG is then decoded at an eighth, a quarter or half of its size if no side gets
        smaller than that, which takes a fraction of the time; its pixels differ a little from those of all of it.

    Raises:
        UnreadableImageError: it is missing, not a regular file, not an image, or damaged.
    """
    with opened(file, name) as image:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def load_mask(file: str | Path | io.BytesIO, name: str = "") -> Image.Image:
    """The numbers of classes as 8-bit levels, upright if the file says how; the colours of a palette are ignored.

    name: of the mask in messages, by default the path.

    Raises:
        UnreadableImageError: it cannot be decoded, or holds colours or numbers above 255; the message names it.
    """
    name = name or str(file)
    with opened(file, name) as mask:
        levels = np.asarray(ImageOps.exif_transpose(mask))
    if levels.ndim != 2 or levels.dtype.kind not in "bui" or levels.min(initial=0) < 0 or levels.max(initial=0) > 255:
        raise UnreadableImageError(f"{name} must be a mask with a number from 0 to 255 in each pixel, not colours")
    return Image.fromarray(levels.astype(np.uint8))


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
