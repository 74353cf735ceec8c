"""Colours of classes in pictures of class maps."""

import colorsys

import numpy as np

GOLDEN_RATIO = 0.618034
BACKGROUND, UNKNOWN = (26, 26, 26), (128, 128, 128)


def palette_of(num_classes: int) -> list[tuple[int, int, int]]:
    """A colour (red, green, blue) from 0 to 255 for each class: dark for the first, often the background, and hues."""
    hues = [colorsys.hsv_to_rgb(number * GOLDEN_RATIO % 1, 0.65, 0.95) for number in range(1, num_classes)]
    return [BACKGROUND, *(tuple(round(255 * level) for level in colour) for colour in hues)][:num_classes]


def coloured(class_map: np.ndarray, palette: list[tuple[int, int, int]]) -> np.ndarray:
    """Classes (H, W) as colours (H, W, 3) from 0 to 255; grey where the number is that of no class."""
    colours = np.full((max(len(palette), int(class_map.max(initial=0)) + 1), 3), UNKNOWN, np.uint8)
    colours[: len(palette)] = palette
    return colours[class_map]
