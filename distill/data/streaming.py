"""Training images as a stream: shards of a data set that is never stored as a whole, split over processes and workers."""

import hashlib
import io
import itertools
import tempfile
from collections import Counter
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

from distill.data.examples import Example, check_mask, to_sample
from distill.data.finding import holds_parquet
from distill.data.reading import KnownImages
from distill.data.rows import image_column
from distill.data.sources import DataError, FoundImages, ImageSource, by_split
from distill.data.splits import ImageSettings, check_unreadable
from distill.data.targets import Targets
from distill.data.transforms import RandomCrop
from edge.device.image import UnreadableImageError
from edge.device.listing import list_files
from swin_hf.output_folders import changes, check_free, check_holds_only, new_folder, read_record, write_record

HELD_OUT = "held_out.json"  # in the folder of fetched rows: its files
FEWEST_JUDGED = 1000  # images, before the share of unreadable ones is checked


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Rows to train on as they arrive, and held-out images, which are stored here.

    columns: names of the columns with the image, its class, and its mask; None for what the task does not look at.
    """

    rows: datasets.IterableDataset
    columns: tuple[str, str | None, str | None]
    held_out: FoundImages


def open_stream(targets: Targets, settings: ImageSettings, folder: Path) -> Stream:
    """Open `--dataset` for streaming.

    folder: where its validation and test rows are stored; they are downloaded if they are not there yet.

    Raises:
        DataError: it is not a data set that can be streamed, or has no held-out images or no columns for the task.
    """
    dataset, path = settings.dataset, Path(settings.dataset)
    if (path.exists() and not (path.is_dir() and holds_parquet(list_files(path)))) or dataset in ("digits", "digit-scenes"):
        raise DataError(
            f"--streaming is for a Hub id or a folder of parquet files; the images of {dataset} are read as they are needed "
            "anyway: leave out --streaming"
        )
    try:
        loaded = datasets.load_dataset(dataset, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"--dataset {dataset} cannot be streamed: {error}") from error
    streams = {split: loaded[name] for split, name in by_split(loaded, f"--dataset {dataset}").items()}
    if "train" not in streams or not {"validation", "test"} & set(streams):
        raise DataError(f"--streaming needs a train and a validation or test split, --dataset {dataset} has {list(loaded)}")
    rows = streams["train"] if streams["train"].features else streams["train"]._resolve_features()
    image = image_column(rows.features, dataset)
    label, mask = targets.columns(rows.features, dataset)
    if label is not None and not isinstance(rows.features[label], datasets.ClassLabel):
        raise DataError(f"--streaming needs a ClassLabel column, whose classes are known in advance; got {rows.features}")
    columns = [column for column in (image, label, mask) if column]
    kept = folder / f"held_out-{hashlib.sha256(f'{dataset} {columns}'.encode()).hexdigest()[:8]}"
    record = read_record(kept, HELD_OUT)
    if record is None or changes(kept, record):
        _fetch({name: undecoded(streams[name], columns) for name in ("validation", "test") if name in streams}, kept)
    held_out = datasets.load_from_disk(str(kept))
    found = targets.in_rows(dict(held_out), dataset, Path(settings.class_names) if settings.class_names else None)
    return Stream(
        rows=undecoded(rows, columns), columns=(image, label, mask), held_out=_in_two_parts(found, settings.split_seed)
    )


def _fetch(streams: dict[str, datasets.IterableDataset], folder: Path) -> None:
    """Write all rows of some streams to a folder, which appears only when it is complete.

    Raises:
        OutputError: there is a folder of this name with other files.
    """
    with new_folder(folder, _check_replaceable) as partial_folder, tempfile.TemporaryDirectory(dir=folder.parent) as cache:
        fetched = {
            split: datasets.Dataset.from_generator(partial(iter, rows), rows.features, cache)
            for split, rows in streams.items()
        }
        datasets.DatasetDict(fetched).save_to_disk(partial_folder)
        write_record(partial_folder, HELD_OUT, {})


def _check_replaceable(folder: Path) -> None:
    record = read_record(folder, HELD_OUT)
    if record is None:
        check_free(folder, "the folder of held-out images")
    else:
        check_holds_only(folder, {HELD_OUT, *record["files"]}, "held-out images", "the folder of held-out images")


def undecoded(rows: datasets.IterableDataset, columns: list[str]) -> datasets.IterableDataset:
    """Some columns of a stream, with images as encoded bytes."""
    rows = rows.select_columns(columns)
    for column in columns:
        if isinstance(rows.features[column], datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _in_two_parts(found: FoundImages, seed: int) -> FoundImages:
    """Validation and test images; if there is only one of the two splits, its halves, stratified by class."""
    if len(found.images) == 2:
        return found
    if not found.images:
        raise DataError("--streaming needs held-out images with classes; the data hides those of its test split")
    (split,) = found.images
    numbers, labels = range(len(found.images[split])), found.labels[split]
    stratified = labels if min(Counter(labels).values()) > 1 else None  # a class with a single image cannot be divided
    validation, test = train_test_split(numbers, test_size=0.5, stratify=stratified, random_state=seed)

    def parts(values: dict[str, list]) -> dict[str, list]:
        chosen = {"validation": sorted(validation), "test": sorted(test)}
        return {name: [values[split][number] for number in own] for name, own in chosen.items()}

    masks = None if found.masks is None else parts(found.masks)
    return FoundImages(images=parts(found.images), labels=parts(found.labels), class_names=found.class_names, masks=masks)


class StreamedImages(IterableDataset):
    """Random crops of the images of a stream, in endless passes.

    Each worker of each process reads its own shards, in an order determined by the seed and the pass; the images are
    shuffled in a buffer. With fewer shards than processes, every process reads all shards. Images with the pixels of held-out
    ones are left out.

    positions: for each worker the pass, the rows read in it and the number of its last image, from which it resumes.
    first: the worker that supplies the next batch; the others follow in turn.
    """

    def __init__(self, stream: Stream, settings: ImageSettings, crop: RandomCrop, process_index: int, num_processes: int):
        self.stream, self.settings, self.crop = stream, settings, crop
        self.process_index, self.num_processes = process_index, num_processes
        self.positions: dict[int, list[int]] = {}
        self.first = 0
        self.held_out = held_out_images(stream)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Samples with their "position": worker, pass, rows read in it, number."""
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        readers = workers * self.num_processes
        epoch, skipped, number = self.positions.get(own, (0, 0, workers * self.process_index + own))
        while True:
            seen, errors, num_used = skipped, [], 0
            for row in itertools.islice(self.rows_of(epoch), skipped, None):
                seen, number = seen + 1, number + readers  # no two images share a number
                try:
                    sample = self._sample(row, epoch, number)
                except UnreadableImageError as error:
                    errors.append(str(error))
                    tqdm.write(f"skipped: {error}")
                    if seen - skipped >= FEWEST_JUDGED:
                        check_unreadable(errors, seen - skipped, self.settings.max_unreadable_share)
                    continue
                if sample is not None:
                    num_used += 1
                    yield sample | {"position": torch.tensor([own, epoch, seen, number])}
            check_unreadable(errors, seen - skipped, self.settings.max_unreadable_share)
            if seen and not (skipped or num_used):
                raise DataError(f"--dataset {self.settings.dataset} streams copies of its held-out images alone")
            epoch, skipped = epoch + 1, 0

    def rows_of(self, epoch: int) -> datasets.IterableDataset:
        """This process's rows in the order of one pass."""
        rows = self.stream.rows.shuffle(seed=self.crop.seed + epoch, buffer_size=self.settings.shuffle_buffer)
        strategy = "shards" if rows.num_shards >= self.num_processes else "examples"
        return split_dataset_by_node(rows, self.process_index, self.num_processes, strategy=strategy)

    @property
    def max_workers(self) -> int:
        """The largest number of workers that all have a shard to read."""
        return max(self.stream.rows.num_shards // self.num_processes, 1)

    def _sample(self, row: dict, epoch: int, number: int) -> dict[str, torch.Tensor] | None:
        """A sample, or None for a copy of a held-out image."""
        example = example_of(row, self.stream, number, self.settings.reduce_labels)
        picture, classes = example.source.load(), example.load_mask()
        if picture in self.held_out:
            if epoch == 0:
                tqdm.write(f"left out: {example.source.name} is a copy of a held-out image (the same pixels)")
            return None
        if classes is not None:
            check_mask(example, picture, classes, len(self.stream.held_out.class_names))
        return to_sample(picture, classes, example.label, self.crop, epoch, number)


def held_out_images(stream: Stream) -> KnownImages:
    return KnownImages.of([source for sources in stream.held_out.images.values() for source in sources])


def example_of(row: dict, stream: Stream, number: int, reduce_labels: bool = False) -> Example:
    """The image in the `number`th row of a stream.

    Raises:
        UnreadableImageError: the row has no image.
    """
    image, label, mask = stream.columns

    def source(column: str) -> ImageSource:
        cell = row[column] or {"path": None, "bytes": None}
        name = cell["path"] or f"{column} {number} of the stream"
        if cell["bytes"] is None:
            raise UnreadableImageError(f"{name} cannot be read: it is empty")
        return ImageSource(name, partial(io.BytesIO, cell["bytes"]))

    return Example(source(image), 0 if label is None else row[label], None if mask is None else source(mask), reduce_labels)


def first_examples(stream: Stream, count: int) -> list[Example]:
    """The first readable images of a stream that are no copies of held-out ones."""
    examples, held_out = [], held_out_images(stream)
    for number, row in enumerate(stream.rows):
        if len(examples) == count:
            break
        try:
            example = example_of(row, stream, number)
            picture = example.source.load()
        except UnreadableImageError:
            continue
        if picture not in held_out:
            examples.append(example)
    return examples
