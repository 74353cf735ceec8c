"""Class maps: from the outputs of a program to classes of an image's own pixels, their shares, and a picture with a legend."""

# K classes, H W image in pixels, h w logits

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .palette import coloured
from .printable import printable

OPACITY = 0.55  # of the colours over the picture
LEGEND_CLASSES = 20  # at most, the largest ones
SMALLEST_SHOWN = 0.001  # share of the image


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The classes of an image's pixels.

    class_map: (H, W) numbers of classes. labels, palette: names and colours (red, green, blue) of the classes.
    """

    class_map: np.ndarray
    labels: list[str]
    palette: list[tuple[int, int, int]]

    def shares(self) -> dict[str, float]:
        """The share of the pixels of each class that occurs, the largest first."""
        counts = np.bincount(self.class_map.ravel(), minlength=len(self.labels)) / self.class_map.size
        return {self.labels[number]: float(counts[number]) for number in np.argsort(-counts, kind="stable") if counts[number]}

    def as_mask(self) -> Image.Image:
        """The numbers of the classes as a PNG can hold them, shown in the colours of the palette."""
        mask = Image.fromarray(self.class_map.astype(np.uint8), mode="P")
        mask.putpalette([level for colour in self.palette for level in colour])
        return mask

    def drawn_over(self, image: Image.Image) -> Image.Image:
        """The colours of the classes over the image, with a legend of names and shares beside it."""
        colours = Image.fromarray(coloured(self.class_map, self.palette))
        over = Image.blend(image.convert("RGB"), colours, OPACITY)
        return beside(over, self._legend(max(image.height // 24, 12)))

    def _legend(self, text_height: int) -> Image.Image:
        shown = [(label, share) for label, share in self.shares().items() if share >= SMALLEST_SHOWN][:LEGEND_CLASSES]
        lines, font = [f"{printable(label)}  {share:.1%}" for label, share in shown], font_of(text_height)
        row, width = text_height * 3 // 2, max(int(font.getlength(line)) for line in lines) + 3 * text_height
        legend = Image.new("RGB", (width, row * len(lines) + text_height), "white")
        draw = ImageDraw.Draw(legend)
        for number, ((label, _), line) in enumerate(zip(shown, lines)):
            left, top = text_height // 2, number * row + text_height // 2
            box = (left, top, left + text_height, top + text_height)
            draw.rectangle(box, fill=tuple(self.palette[self.labels.index(label)]), outline="grey")
            draw.text((2 * text_height, top), line, fill="black", font=font)
        return legend


def font_of(height: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, of this height in pixels where Pillow has FreeType."""
    try:
        return ImageFont.load_default(height)
    except (ImportError, OSError):
        return ImageFont.load_default()


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures in one, on white."""
    joined = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    joined.paste(left, (0, 0))
    joined.paste(right, (left.width, 0))
    return joined


def class_map_of(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """The class of each pixel (height, width) from logits (K, h, w), by bilinear interpolation as PyTorch has it."""
    rows, columns = interpolation(height, logits.shape[1]), interpolation(width, logits.shape[2])
    return (rows @ logits.astype(np.float32) @ columns.T).argmax(axis=0)


def class_map_at(class_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """A class map (h, w) at another size, each pixel with the class of the nearest one."""
    rows = ((np.arange(height) + 0.5) * class_map.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * class_map.shape[1] / width).astype(int)
    return class_map[rows[:, None], columns]


@cache
def interpolation(length: int, given: int) -> np.ndarray:
    """Weights (length, given) of linear interpolation between pixels' centres (`align_corners=False`)."""
    places = np.clip((np.arange(length) + 0.5) * given / length - 0.5, 0, given - 1)
    lower = np.minimum(places.astype(int), max(given - 2, 0))
    upper, share = np.minimum(lower + 1, given - 1), places - lower
    weights = np.zeros((length, given), np.float32)
    np.add.at(weights, (np.arange(length), lower), 1 - share)
    np.add.at(weights, (np.arange(length), upper), share)
    return weights


def class_ious(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union (Jaccard 1912) of each class from a confusion matrix (K, K); NaN if it does not occur."""
    intersection = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """The mean over the classes that occur in masks or predictions; 0 if there are none."""
    ious = class_ious(confusion)
    return float(np.nanmean(ious)) if not np.isnan(ious).all() else 0.0


def mask_scores(confusion: np.ndarray) -> dict[str, float]:
    """How well predictions fit masks, from a confusion matrix (K, K): mean IoU, and the share of right pixels."""
    return {"mean_iou": mean_iou(confusion), "pixel_accuracy": float(confusion.trace() / max(confusion.sum(), 1))}


def confusion_of(predicted: np.ndarray, truth: np.ndarray, num_classes: int, ignored: int) -> np.ndarray:
    """Counts (K, K) of pixels, true classes in rows."""
    known = truth != ignored
    cells = truth[known].astype(np.int64) * num_classes + predicted[known]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
