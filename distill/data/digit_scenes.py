"""Digit scenes: real handwritten digits in photographs, with class, box and mask, made from scikit-learn's data sets."""

import io

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

SIDE = 64
SCENES = {"train": 6000, "validation": 1000, "test": 2000}
DIGITS = {"train": 1078, "validation": 270, "test": 449}  # each digit appears in one split only
MASK_LEVEL = 0.4  # a pixel belongs to a digit if ink covers more than this share of it


class DigitScenes(datasets.GeneratorBasedBuilder):
    """9,000 scenes of 64 x 64 pixels, each with one of scikit-learn's 1,797 handwritten digits (UCI ML).

    The digit is 30 to 57 pixels high, rotated by up to 25 degrees, in a colour at least 0.3 brighter or darker than what it
    covers, and up to a fifth transparent. It lies on a random crop of one of scikit-learn's two photographs and on up to two
    smaller fragments of other digits. The splits share no digit, and a fixed seed makes the scenes reproducible.

    Columns: `image`; `label`, the digit; `box`, left, top, right and bottom of the digit in pixels, the last two exclusive;
    `mask`, 0 for the background and 1 + label for the pixels of the digit.
    """

    VERSION = datasets.Version("1.0.0")
    MASK_CLASSES = ["background", *"0123456789"]

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=type(self).__doc__,
            features=datasets.Features(
                {
                    "image": datasets.Image(),
                    "label": datasets.ClassLabel(names=list("0123456789")),
                    "box": datasets.List(datasets.Value("int32"), length=4),
                    "mask": datasets.Image(),
                }
            ),
        )

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        numbers = split_digits()
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"numbers": numbers[split], "count": count, "seed": seed})
            for seed, (split, count) in enumerate(SCENES.items())
        ]

    def _generate_examples(self, numbers: list[int], count: int, seed: int):
        painter = ScenePainter(numbers)
        for scene in range(count):
            yield scene, painter.paint(np.random.default_rng((seed, scene)))


def split_digits() -> dict[str, list[int]]:
    """Numbers of the digits that each split may use, stratified by class.

    They are those of the configuration `digits`, so that a model trained on these digits can be trained on the scenes.
    """
    labels = load_digits().target
    rest, test = train_test_split(range(len(labels)), test_size=DIGITS["test"], stratify=labels, random_state=0)
    of_rest = labels[rest]
    train, validation = train_test_split(rest, test_size=DIGITS["validation"], stratify=of_rest, random_state=0)
    return {"train": train, "validation": validation, "test": test}


class ScenePainter:
    """Paints scenes with a subset of the digits."""

    def __init__(self, numbers: list[int]):
        digits = load_digits()
        self.glyphs = [digit_image(digits.images[number]) for number in numbers]
        self.labels = [int(digits.target[number]) for number in numbers]
        self.photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]

    def paint(self, random: np.random.Generator) -> dict[str, object]:
        """One row of the data set."""
        scene = self._background(random)
        for _ in range(random.integers(0, 3)):
            ink = self._ink(int(random.integers(len(self.glyphs))), random.integers(10, 22), random.uniform(-90, 90))
            self._lay(scene, ink[:, : ink.shape[1] * 2 // 3], random, random.uniform(0.5, 1), random.random(3))
        number = int(random.integers(len(self.glyphs)))
        ink = self._ink(number, random.integers(30, 58), random.uniform(-25, 25))
        covered = self._lay(scene, ink, random, random.uniform(0.8, 1))
        rows, columns = np.nonzero(covered > MASK_LEVEL)
        label = self.labels[number]
        return {
            "image": encode(Image.fromarray(np.round(scene * 255).astype(np.uint8))),
            "label": label,
            "box": [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
            "mask": encode(Image.fromarray(np.where(covered > MASK_LEVEL, label + 1, 0).astype(np.uint8))),
        }

    def _background(self, random: np.random.Generator) -> np.ndarray:
        """A square of a photograph as float32 (SIDE, SIDE, 3) in [0, 1]."""
        photograph = self.photographs[random.integers(len(self.photographs))]
        side = int(random.integers(SIDE, 257))
        left, top = random.integers(photograph.width - side), random.integers(photograph.height - side)
        crop = photograph.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        return np.asarray(crop, dtype=np.float32) / 255

    def _ink(self, number: int, side: int, degrees: float) -> np.ndarray:
        """A digit as the share of each pixel that ink covers, float32 (h, w)."""
        glyph = self.glyphs[number].resize((int(side), int(side)), Image.Resampling.BICUBIC)
        return np.asarray(glyph.rotate(degrees, Image.Resampling.BICUBIC, expand=True), dtype=np.float32) / 255

    def _lay(
        self,
        scene: np.ndarray,
        ink: np.ndarray,
        random: np.random.Generator,
        opacity: float,
        colour: np.ndarray | None = None,
    ) -> np.ndarray:
        """Lay ink on the scene at a random place, up to an eighth of it outside; returns its coverage (SIDE, SIDE).

        opacity: not included in the returned coverage.
        colour: of the ink, (3,) in [0, 1]; by default one that contrasts with what it covers.
        """
        height, width = ink.shape
        top = int(random.integers(-(height // 8), max(SIDE - height + height // 8, -(height // 8)) + 1))
        left = int(random.integers(-(width // 8), max(SIDE - width + width // 8, -(width // 8)) + 1))
        rows, columns = slice(max(top, 0), min(top + height, SIDE)), slice(max(left, 0), min(left + width, SIDE))
        covered = np.zeros((SIDE, SIDE), dtype=np.float32)
        covered[rows, columns] = ink[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        if colour is None:
            brightness = scene[rows, columns].mean()
            colour = random.random(3)
            while abs(colour.mean() - brightness) < 0.3:
                colour = random.random(3)
        share = covered[..., None] * opacity
        scene[:] = scene * (1 - share) + colour.astype(np.float32) * share
        return covered


def digit_image(levels: np.ndarray) -> Image.Image:
    """One of scikit-learn's digits as an image: grey levels (8, 8) of 0 to 16 become 0 to 255."""
    return Image.fromarray(np.round(levels * (255 / 16)).astype(np.uint8))


def encode(image: Image.Image) -> dict[str, bytes | None]:
    """An image as a PNG in a `datasets` row."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    return {"bytes": content.getvalue(), "path": None}
