"""Training images as a stream: shards of a data set that is never on disk as a whole, split over processes and workers."""

import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from distill.command_line import require
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
from distill.trainer import TaskTrainer
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

    positions: for each worker the pass, the rows seen in it and the number of the last image, where it is to go on.
    first: the worker whose batch comes next; the others follow in turn.
    """

    def __init__(self, stream: Stream, settings: ImageSettings, crop: RandomCrop, process_index: int, num_processes: int):
        self.rows = split_dataset_by_node(
            stream.rows.shuffle(seed=crop.seed, buffer_size=settings.shuffle_buffer), process_index, num_processes
        )
        self.columns, self.settings, self.crop = stream.columns, settings, crop
        self.process_index, self.num_processes = process_index, num_processes
        self.positions: dict[int, list[int]] = {}
        self.first = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Samples with their "position": worker, pass, rows seen in it, number."""
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        readers = workers * self.num_processes
        epoch, skipped, number = self.positions.get(own, (0, 0, workers * self.process_index + own))
        errors: list[str] = []
        while True:
            self.rows.set_epoch(epoch)
            seen = skipped
            for row in itertools.islice(self.rows, skipped, None):
                seen, number = seen + 1, number + readers  # no two images share a number
                try:
                    sample = to_sample(self._example(row, number), self.crop, epoch, number)
                except UnreadableImageError as error:
                    errors.append(str(error))
                    tqdm.write(f"skipped: {error}")
                    check_unreadable(errors, max(seen, FEWEST_JUDGED), self.settings.max_unreadable_share)
                else:
                    yield sample | {"position": torch.tensor([own, epoch, seen, number])}
            epoch, skipped = epoch + 1, 0

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


class StreamLoader(DataLoader):
    """A loader that begins with the batch of worker `dataset.first`, where PyTorch always begins with worker 0."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        batches, first = super().__iter__(), self.dataset.first
        while True:
            in_turn = list(itertools.islice(batches, max(self.num_workers, 1)))
            yield from in_turn[first:] + in_turn[:first]


class StreamTrainer(TaskTrainer):
    """Trains on `StreamedImages`, and notes in each checkpoint how far every reader of the stream has come."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.args.ignore_data_skip = True  # the Trainer would load, cut and drop everything that was seen

    def get_train_dataloader(self) -> DataLoader:
        """Not prepared by accelerate, which would divide what is divided already."""
        return StreamLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self._num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            drop_last=True,
            generator=torch.Generator(),  # of its own, so that a resumed training draws no number more than another
        )

    def training_step(self, model, inputs, *args, **kwargs):
        worker, *position = inputs.pop("position")[-1].tolist()
        self.train_dataset.positions[worker] = position
        self.train_dataset.first = (worker + 1) % max(self._num_workers, 1)
        return super().training_step(model, inputs, *args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        record = {"readers": self._readers, "positions": self.train_dataset.positions, "first": self.train_dataset.first}
        (Path(output_dir) / f"stream_{self.args.process_index}.json").write_text(json.dumps(record) + "\n")

    def _load_rng_state(self, checkpoint: str) -> None:
        super()._load_rng_state(checkpoint)
        path = Path(checkpoint) / f"stream_{self.args.process_index}.json"
        record = json.loads(path.read_text()) if path.is_file() else {"readers": None}
        require(
            record["readers"] == self._readers,
            "resume",
            f"go on with as many processes and --dataloader_num_workers as {checkpoint} was written by, {record['readers']}",
            self._readers,
        )
        self.train_dataset.positions = {int(worker): position for worker, position in record["positions"].items()}
        self.train_dataset.first = record["first"]

    @property
    def _num_workers(self) -> int:
        return min(self.args.dataloader_num_workers, self.train_dataset.rows.num_shards)

    @property
    def _readers(self) -> list[int]:
        return [self.args.world_size, self._num_workers]
