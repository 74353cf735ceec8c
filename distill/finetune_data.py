"""Images for fine-tuning, read from where they lie: found, looked through once, split, and cropped as they are loaded."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from distill.data import DataError, ImageSource, LabelledImages, check_unreadable, split_images
from distill.finetune_settings import ImageSettings
from distill.transforms import RandomCrop
from edge.image import UnreadableImageError

READING_THREADS = 8


@dataclass(frozen=True)
class Example:
    """An image that is still to be loaded, and its class."""

    source: ImageSource
    label: int


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

    def __getitem__(self, number: int) -> dict[str, torch.Tensor | int]:
        example = self.examples[number % len(self.examples)]
        return {"pixels": to_tensor(self.crop(example.source.load(), self.epoch, number)), "targets": example.label}


class EvaluationImages(Dataset):
    """The images as the model's processor gives them, before the normalisation."""

    def __init__(self, examples: list[Example], processor):
        self.examples, self.processor = examples, processor

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor | int]:
        example = self.examples[number]
        pixels = self.processor(example.source.load(), do_rescale=False, do_normalize=False)["pixel_values"][0]
        return {"pixels": torch.as_tensor(np.asarray(pixels)), "targets": example.label}


def to_tensor(image) -> torch.Tensor:
    """A PIL image in RGB as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Rows to uint8 "pixels" (B, 3, H, W) and "targets" (B,)."""
    return {"pixels": torch.stack([row["pixels"] for row in rows]), "targets": torch.tensor([row["targets"] for row in rows])}


def prepare_splits(found: LabelledImages, settings: ImageSettings, record: Path) -> dict[str, list[Example]]:
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
            Example(found.images[source][index], found.labels[source][index])
            for index in indices
            if found.images[source][index].name not in unreadable
        ]
        for split, (source, indices) in splits.items()
    }


def _unreadable(found: LabelledImages, settings: ImageSettings) -> list[dict[str, str]]:
    """Load every image once, and give the names and errors of those that cannot be."""
    sources = [source for images in found.images.values() for source in images]

    def error_of(source: ImageSource) -> str | None:
        try:
            source.load()
        except UnreadableImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(READING_THREADS) as pool:
        errors = list(tqdm(pool.map(error_of, sources), total=len(sources), desc="looking through", mininterval=1.0))
    skipped = [{"name": source.name, "error": error} for source, error in zip(sources, errors) if error]
    for entry in skipped:
        tqdm.write(f"skipped: {entry['error']}")
    check_unreadable([entry["error"] for entry in skipped], len(sources), settings.max_unreadable_share)
    return skipped
