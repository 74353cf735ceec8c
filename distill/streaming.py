"""Training images as a stream: shards of a data set that is never on disk as a whole, split over processes and workers."""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from sklearn.model_selection import train_test_split
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from distill.data import check_unreadable
from distill.finetune_data import Example, to_sample
from distill.finetune_settings import ImageSettings
from distill.images import (
    SPLIT_FOLDERS,
    DataError,
    FoundImages,
    ImageSource,
    found_in_rows,
    image_column,
    label_column,
    mask_column,
)
from distill.transforms import RandomCrop
from edge.image import UnreadableImageError

FEWEST_JUDGED = 1000  # images, before the share of unreadable ones is looked at


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Rows to train on as they come, and the images that are held out, which are files here.

    columns: names of the columns with the image, its class, and its mask; None for what the task does not look at.
    """

    rows: datasets.IterableDataset
    columns: tuple[str, str | None, str | None]
    held_out: FoundImages


def open_stream(task: str, settings: ImageSettings) -> Stream:
    """Open `--dataset` for streaming; its validation and test images are fetched.

    Raises:
        DataError: it is not a data set that can be streamed, or has no held-out images or no columns for the task.
    """
    dataset, path = settings.dataset, Path(settings.dataset)
    if (path.exists() and not any(path.rglob("*.parquet"))) or dataset in ("digits", "digit-scenes"):
        raise DataError(
            f"--streaming is for a Hub id or a folder of parquet files; the images of {dataset} are read as they are needed "
            "anyway: leave out --streaming"
        )
    try:
        streams = {
            SPLIT_FOLDERS.get(name, name): rows for name, rows in datasets.load_dataset(dataset, streaming=True).items()
        }
        held_out = {
            split: datasets.load_dataset(dataset, split=name)
            for name, split in SPLIT_FOLDERS.items()
            if split != "train" and split in streams and name in datasets.get_dataset_split_names(dataset)
        }
    except (OSError, ValueError) as error:
        raise DataError(f"--dataset {dataset} cannot be streamed: {error}") from error
    if "train" not in streams or not held_out:
        raise DataError(f"--streaming needs a train and a validation or test split, --dataset {dataset} has {list(streams)}")
    rows = streams["train"] if streams["train"].features else streams["train"]._resolve_features()
    image = image_column(rows.features, dataset)
    label = label_column(rows.features, dataset) if task == "image-classification" else None
    mask = mask_column(rows.features, dataset) if task == "semantic-segmentation" else None
    if label is not None and not isinstance(rows.features[label], datasets.ClassLabel):
        raise DataError(
            f"--streaming needs a ClassLabel column, whose classes are known before they come, got {rows.features}"
        )
    for column in filter(None, (image, mask)):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    found = found_in_rows(held_out, dataset, task, Path(settings.class_names) if settings.class_names else None)
    return Stream(rows=rows, columns=(image, label, mask), held_out=_in_two_parts(found, settings.split_seed))


def _in_two_parts(found: FoundImages, seed: int) -> FoundImages:
    """Validation and test images; where only one of them is given, halves of it, stratified by class."""
    if len(found.images) == 2:
        return found
    (split,) = found.images
    numbers = range(len(found.images[split]))
    validation, test = train_test_split(numbers, test_size=0.5, stratify=found.labels[split], random_state=seed)

    def parts(values: dict[str, list]) -> dict[str, list]:
        chosen = {"validation": sorted(validation), "test": sorted(test)}
        return {name: [values[split][number] for number in own] for name, own in chosen.items()}

    masks = None if found.masks is None else parts(found.masks)
    return FoundImages(images=parts(found.images), labels=parts(found.labels), class_names=found.class_names, masks=masks)


class StreamedImages(IterableDataset):
    """Random crops of the images of a stream, pass after pass without end.

    Each process and each of its workers reads shards of its own, in an order that the seed fixes; within them, images are
    mixed in a buffer. There must be as many shards as readers for that to spare reading.
    """

    def __init__(self, stream: Stream, settings: ImageSettings, crop: RandomCrop, process_index: int, num_processes: int):
        self.rows = split_dataset_by_node(
            stream.rows.shuffle(seed=crop.seed, buffer_size=settings.shuffle_buffer), process_index, num_processes
        )
        self.columns, self.settings, self.crop = stream.columns, settings, crop
        self.process_index, self.num_processes = process_index, num_processes

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        readers, number = workers * self.num_processes, workers * self.process_index + own  # no two images share a number
        seen, errors = 0, []
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            seen_before = seen
            for row in self.rows:
                seen, number = seen + 1, number + readers
                try:
                    yield to_sample(self._example(row, number), self.crop, epoch, number)
                except UnreadableImageError as error:
                    errors.append(str(error))
                    tqdm.write(f"skipped: {error}")
                    check_unreadable(errors, max(seen, FEWEST_JUDGED), self.settings.max_unreadable_share)
            if seen == seen_before:  # fewer shards than workers
                return

    def _example(self, row: dict, number: int) -> Example:
        image, label, mask = self.columns

        def source(column: str) -> ImageSource:
            name = row[column]["path"] or f"image {number} of the stream"
            return ImageSource(name, partial(io.BytesIO, row[column]["bytes"]))

        return Example(
            source(image),
            0 if label is None else row[label],
            None if mask is None else source(mask),
            self.settings.reduce_labels,
        )
