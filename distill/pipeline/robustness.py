"""Light corruptions of test images: noise, blur, brightness and JPEG at the mildest severity of ImageNet-C.

Hendrycks and Dietterich 2019, arXiv:1903.12261. Images are RGB in [0, 1] before and after.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from kornia.enhance import adjust_brightness
from kornia.filters import gaussian_blur2d
from PIL import Image

from distill.data.examples import Example, to_tensor

NOISE, BRIGHTER, JPEG_QUALITY = 0.08, 0.1, 25
BLUR = 1 / 224  # standard deviation as a share of the side, that of ImageNet-C at its size
LEAST_BLUR = 0.5  # pixels
MAX_IMAGES = 500


def add_noise(pixels: torch.Tensor, seed: int) -> torch.Tensor:
    """Gaussian noise of a standard deviation of 0.08."""
    noise = np.random.default_rng(seed).normal(scale=NOISE, size=tuple(pixels.shape))
    return pixels + torch.from_numpy(noise).float()


def blur(pixels: torch.Tensor, seed: int) -> torch.Tensor:
    """A Gaussian blur of 1 pixel at 224 pixels, in proportion at other sizes, and of 0.5 pixels at least."""
    sigma = max(BLUR * min(pixels.shape[1:]), LEAST_BLUR)
    side = 2 * int(np.ceil(3 * sigma)) + 1
    return gaussian_blur2d(pixels[None], (side, side), (sigma, sigma))[0]


def brighten(pixels: torch.Tensor, seed: int) -> torch.Tensor:
    """Every value of red, green and blue 0.1 higher; ImageNet-C raises the V of HSV."""
    return adjust_brightness(pixels, BRIGHTER)


def compress(pixels: torch.Tensor, seed: int) -> torch.Tensor:
    """JPEG of quality 25."""
    file = io.BytesIO()
    _as_image(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return to_tensor(Image.open(file).convert("RGB")).float() / 255


CORRUPTIONS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "noise": add_noise,
    "blur": blur,
    "brighter": brighten,
    "JPEG": compress,
}


@dataclass(frozen=True)
class Corrupted:
    """An image source whose images come out corrupted. number: of the image, which seeds its noise."""

    source: Example
    kind: str
    number: int

    def load(self) -> Image.Image:
        pixels = to_tensor(self.source.source.load()).float() / 255
        return _as_image(CORRUPTIONS[self.kind](pixels, self.number))


def corrupted(examples: list[Example], kind: str) -> list[Example]:
    """The same images, corrupted in one way of `CORRUPTIONS`."""
    return [Example(Corrupted(example, kind, number), example.label) for number, example in enumerate(examples)]


def spread_evenly(total: int, count: int = MAX_IMAGES) -> list[int]:
    """The numbers of `count` images of a total, or of all if there are fewer, spread evenly."""
    return [number * total // count for number in range(count)] if total > count else list(range(total))


def _as_image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
