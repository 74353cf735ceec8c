"""Images for fine-tuning, read from where they lie: looked through once, split, and cropped as they are loaded."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import TrainerCallback

from distill.data import check_unreadable, split_images
from distill.finetune_settings import ImageSettings
from distill.images import DataError, FoundImages, ImageSource
from distill.transforms import IGNORED, RandomCrop
from edge.image import UnreadableImageError

READING_THREADS = 8


@dataclass(frozen=True)
class Example:
    """An image that is still to be loaded, with its class and, in segmentation, its mask.

    reduce_labels: 0 in the mask means nothing, and the classes count from 1.
    """

    source: ImageSource
    label: int
    mask: ImageSource | None = None
    reduce_labels: bool = False

    def load_mask(self) -> Image.Image | None:
        """The mask in 8-bit levels, if there is one; what is to be left out of learning and judging is `IGNORED`."""
        if self.mask is None:
            return None
        mask = self.mask.load_mask()
        return Image.fromarray(np.asarray(mask) - np.uint8(1)) if self.reduce_labels else mask  # 0 becomes 255


class TrainingImages(Dataset):
    """Random crops of the images, each image `repeats` times an epoch."""

    def __init__(self, examples: list[Example], crop: RandomCrop, repeats: int = 1):
        self.examples, self.crop, self.repeats = examples, crop, repeats
        self.epoch = 0

    def begin_epoch(self, epoch: int) -> None:
        """Not `set_epoch`, which accelerate would call, with the number of epochs since the training was resumed."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.repeats * len(self.examples)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return to_sample(self.examples[number % len(self.examples)], self.crop, self.epoch, number)


class EvaluationImages(Dataset):
    """The images as the model's processor gives them, before the normalisation; masks at the same size."""

    def __init__(self, examples: list[Example], processor):
        self.examples, self.processor = examples, processor

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        example = self.examples[number]
        pixels = self.processor(example.source.load(), do_rescale=False, do_normalize=False)["pixel_values"][0]
        pixels, mask = torch.as_tensor(np.asarray(pixels)), example.load_mask()
        if mask is not None:
            mask = mask.resize((pixels.shape[2], pixels.shape[1]), Image.Resampling.NEAREST)
        return {"pixels": pixels, "targets": _targets(example.label, mask)}


class BeginEpoch(TrainerCallback):
    """Tells the training images which epoch it is, before the workers of the epoch start."""

    def __init__(self, images: TrainingImages):
        self.images = images

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.images.begin_epoch(int(state.epoch))


def to_sample(example: Example, crop: RandomCrop, epoch: int, number: int) -> dict[str, torch.Tensor]:
    """A random crop of an example: "pixels", uint8 (3, H, W), and "targets", () or (H, W)."""
    image, mask = crop(example.source.load(), epoch, number, example.load_mask())
    return {"pixels": to_tensor(image), "targets": _targets(example.label, mask)}


def to_tensor(image: Image.Image) -> torch.Tensor:
    """A PIL image in RGB as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _targets(label: int, mask: Image.Image | None) -> torch.Tensor:
    """A class (), or the classes of pixels (H, W)."""
    return torch.tensor(label) if mask is None else torch.from_numpy(np.array(mask)).long()


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Rows to uint8 "pixels" (B, 3, H, W) and "targets" (B,) or (B, H, W); and, of a stream, "position" (B, 4)."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def prepare_splits(found: FoundImages, settings: ImageSettings, record: Path) -> dict[str, list[Example]]:
    """Readable images by split; the split and what was skipped are written to `record`, which a resumed run must match.

    Raises:
        DataError: too many images cannot be read, or the images are not those of the run that is resumed.
    """
    splits = {
        split: (source, indices)
        for split, indices, source in split_images(found, settings.validation_share, settings.test_share, settings.split_seed)
    }
    numbers = {split: list(map(int, indices)) for split, (_, indices) in splits.items()}
    if record.is_file():
        known = json.loads(record.read_text())
        if known["split"] != numbers or known["class_names"] != found.class_names:
            raise DataError(
                f"the images or their split are not those that {record} tells of; give another --output_dir, or that run's "
                "--dataset, --validation_share, --test_share and --split_seed"
            )
        skipped = known["skipped"]
    else:
        skipped = _unreadable(found, settings)
        content = {"dataset": settings.dataset, "class_names": found.class_names, "skipped": skipped, "split": numbers}
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(content, ensure_ascii=False) + "\n")
    unreadable = {entry["name"] for entry in skipped}
    return {
        split: [
            example
            for example in (_example(found, source, index, settings) for index in indices)
            if example.source.name not in unreadable
        ]
        for split, (source, indices) in splits.items()
    }


def _example(found: FoundImages, split: str, number: int, settings: ImageSettings) -> Example:
    mask = None if found.masks is None else found.masks[split][number]
    return Example(found.images[split][number], found.labels[split][number], mask, settings.reduce_labels)


def _unreadable(found: FoundImages, settings: ImageSettings) -> list[dict[str, str]]:
    """Load every image and mask once, and give the names of images that cannot be used and why.

    Raises:
        DataError: there are too many of them.
    """
    examples = [
        _example(found, split, number, settings) for split, images in found.images.items() for number in range(len(images))
    ]

    def error_of(example: Example) -> str | None:
        try:
            image, mask = example.source.load(), example.load_mask()
        except UnreadableImageError as error:
            return str(error)
        return None if mask is None else _mask_error(example, image, mask, len(found.class_names))

    with ThreadPoolExecutor(READING_THREADS) as pool:
        errors = list(tqdm(pool.map(error_of, examples), total=len(examples), desc="looking through", mininterval=1.0))
    skipped = [{"name": example.source.name, "error": error} for example, error in zip(examples, errors) if error]
    for entry in skipped:
        tqdm.write(f"skipped: {entry['error']}")
    check_unreadable([entry["error"] for entry in skipped], len(examples), settings.max_unreadable_share)
    return skipped


def _mask_error(example: Example, image: Image.Image, mask: Image.Image, num_classes: int) -> str | None:
    """What is wrong with a mask that can be read."""
    if mask.size != image.size:
        return f"{example.mask.name} is {mask.width} x {mask.height}, its image {image.width} x {image.height} pixels"
    unknown = sorted(set(np.unique(np.asarray(mask)).tolist()) - {IGNORED} - set(range(num_classes)))
    if unknown:
        found = ", ".join(str(number + example.reduce_labels) for number in unknown[:5])
        hint = "see --class_names and --reduce_labels"
        return f"{example.mask.name} has pixels of class {found}, there are {num_classes} classes; {hint}"
    return None
