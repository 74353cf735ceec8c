"""Images and their targets as rows for training and evaluation, decoded and cropped when they are needed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, get_worker_info
from transformers import TrainerCallback

from distill.data.boxes import NO_BOX, as_centres, clipped, cropped
from distill.data.sources import ON_THEIR_SIDE, TURNED, ImageSource
from distill.data.transforms import IGNORED, RandomCrop
from edge.device.image import UnreadableImageError

UNKNOWN = -1  # the label of a training image whose class is not known, of which a student learns from its teacher alone
T = TypeVar("T")
KEPT_BYTES = 2**29  # of the decoded images of each split, in each process


@dataclass(frozen=True)
class Example:
    """An image that is not loaded yet, with its class and, in segmentation, its mask.

    reduce_labels: 0 in the mask means nothing, and the classes count from 1.
    boxes: (M, 5), class, left, top, right and bottom in pixels, in detection.
    """

    source: ImageSource
    label: int
    mask: ImageSource | None = None
    reduce_labels: bool = False
    boxes: np.ndarray | None = None

    def load_mask(self) -> Image.Image | None:
        """The mask in 8-bit levels, if there is one; pixels that are ignored in training and evaluation are `IGNORED`.

        If the image is stored on its side, with a note (EXIF) how to turn it, and the mask has the size of the stored image,
        it is turned like the image.
        """
        if self.mask is None:
            return None
        mask = self.mask.load_mask()
        orientation, size = self.source.stored()
        on_its_side = orientation in ON_THEIR_SIDE and size[0] != size[1] and mask.size == size
        if on_its_side and self.mask.stored()[0] not in TURNED:
            mask = mask.transpose(ON_THEIR_SIDE[orientation])
        return Image.fromarray(np.asarray(mask) - np.uint8(1)) if self.reduce_labels else mask  # 0 becomes 255

    @property
    def may_be_turned(self) -> bool:
        """Whether the image is turned by a note in its file (EXIF), and sizes do not tell whether the mask needs it too."""
        if self.mask is None or self.mask.stored()[0] in TURNED:
            return False
        orientation, size = self.source.stored()
        return orientation in TURNED and (orientation not in ON_THEIR_SIDE or size[0] == size[1])


class Kept(Generic[T]):
    """What was loaded, by number, kept in memory as far as `limit` bytes allow.

    Workers of a loader keep nothing: they end with the epoch.
    """

    def __init__(self, load: Callable[[int], T], bytes_of: Callable[[T], int], limit: int = KEPT_BYTES):
        self.load, self.bytes_of, self.left = load, bytes_of, limit
        self.kept: dict[int, T] = {}

    def __getitem__(self, number: int) -> T:
        if number in self.kept:
            return self.kept[number]
        loaded = self.load(number)
        size = self.bytes_of(loaded)
        if size <= self.left and get_worker_info() is None:
            self.kept[number] = loaded
            self.left -= size
        return loaded


class TrainingImages(Dataset):
    """Random crops of the images, each image `repeats` times per epoch. Small data sets are decoded once."""

    def __init__(self, examples: list[Example], crop: RandomCrop, repeats: int = 1):
        self.examples, self.crop, self.repeats = examples, crop, repeats
        self.decoded = Kept(self._decode, lambda pair: 4 * pair[0].width * pair[0].height)  # as Pillow stores RGB
        self.epoch = 0

    def _decode(self, number: int) -> tuple[Image.Image, Image.Image | None]:
        return self.examples[number].source.load(), self.examples[number].load_mask()

    def begin_epoch(self, epoch: int) -> None:
        """Not called `set_epoch`: accelerate would call that with the number of epochs since the training was resumed."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.repeats * len(self.examples)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor | np.ndarray]:
        own = number % len(self.examples)
        example = self.examples[own]
        return to_sample(*self.decoded[own], example.label, self.crop, self.epoch, number, example.boxes)


class EvaluationImages(Dataset):
    """Images after the model's processor but before normalisation, grey ones as RGB; masks at the same size.

    Of small data sets they are made once.
    """

    def __init__(self, examples: list[Example], processor):
        self.examples, self.processor = examples, processor
        self.rows = Kept(self._row, lambda row: sum(tensor.nbytes for tensor in row.values()))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return self.rows[number]

    def _row(self, number: int) -> dict[str, torch.Tensor]:
        example = self.examples[number]
        image = example.source.load()
        pixels = self.processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        pixels, mask = torch.as_tensor(np.asarray(pixels)), example.load_mask()
        pixels = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels
        if mask is not None:
            mask = mask.resize((pixels.shape[2], pixels.shape[1]), Image.Resampling.NEAREST)
        boxes = None if example.boxes is None else as_centres(clipped(example.boxes, image.size), image.size)
        return {"pixels": pixels, "targets": _targets(example.label, mask, boxes)}


class BeginEpoch(TrainerCallback):
    """Tells the training images which epoch it is, before the workers of that epoch start."""

    def __init__(self, images: TrainingImages):
        self.images = images

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.images.begin_epoch(int(state.epoch))


def to_sample(
    image: Image.Image,
    mask: Image.Image | None,
    label: int,
    crop: RandomCrop,
    epoch: int,
    number: int,
    boxes: np.ndarray | None = None,
) -> dict[str, torch.Tensor | np.ndarray]:
    """A random crop: "pixels", uint8 (3, H, W); "targets", (), (H, W) or (M, 5); "crop", what it was drawn from."""
    if boxes is not None:
        window = crop.window(image.size, epoch, number)
        boxes = as_centres(cropped(boxes, window.box, window.size, window.mirrored), window.size)
    image, mask = crop(image, epoch, number, mask)
    return {"pixels": to_tensor(image), "targets": _targets(label, mask, boxes), "crop": np.array([epoch, number])}


def to_tensor(image: Image.Image) -> torch.Tensor:
    """A PIL image in RGB as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _targets(label: int, mask: Image.Image | None, boxes: np.ndarray | None = None) -> torch.Tensor:
    """A class (), or the class of each pixel (H, W), or boxes (M, 5), each a class and a place in shares of the image."""
    if boxes is not None:
        return torch.from_numpy(boxes)
    return torch.tensor(label) if mask is None else torch.from_numpy(np.array(mask)).long()


def collate(rows: list[dict]) -> dict[str, torch.Tensor | np.ndarray]:
    """Rows to uint8 "pixels" (B, 3, H, W) and "targets" (B,) or (B, H, W).

    Of training images also "crop" (B, 2), an array, which stays on the CPU; for a stream also "position" (B, 4).
    """
    stack = {torch.Tensor: torch.stack, np.ndarray: np.stack}
    return {name: stack[type(value)]([row[name] for row in rows]) for name, value in rows[0].items()}


def collate_boxes(rows: list[dict]) -> dict[str, torch.Tensor | np.ndarray]:
    """As `collate`, with targets (B, M, 5), filled up with boxes of the class -1."""
    most = max(len(row["targets"]) for row in rows)
    filled = torch.full((len(rows), most, 5), float(NO_BOX))
    for own, row in zip(filled, rows):
        own[: len(row["targets"])] = row["targets"]
    return collate([row | {"targets": targets} for row, targets in zip(rows, filled)])


def check_mask(example: Example, image: Image.Image, mask: Image.Image, num_classes: int) -> set[int]:
    """The classes in a mask.

    Raises:
        UnreadableImageError: its size differs from its image's, or it has numbers that are no class.
    """
    if mask.size != image.size:
        sizes = f"{mask.width} x {mask.height}, its image {image.width} x {image.height} pixels"
        raise UnreadableImageError(f"{example.mask.name} is {sizes}")
    present = set(np.unique(np.asarray(mask)).tolist()) - {IGNORED}
    unknown = sorted(present - set(range(num_classes)))
    if unknown:
        numbers = ", ".join(str(number + example.reduce_labels) for number in unknown[:5])
        raise UnreadableImageError(
            f"{example.mask.name} has pixels of class {numbers}, there are {num_classes} classes; see --class_names and "
            "--reduce_labels"
        )
    return present
