"""Images of a training: checked once, split, and the split recorded."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sklearn.model_selection import train_test_split
from tqdm import tqdm

from distill.data.copies import copies_of_held_out, describe_copies
from distill.data.examples import Example
from distill.data.reading import Place, Reading, read_all
from distill.data.sources import SPLITS, DataError, FoundImages
from distill.data.targets import FEWEST_OF_A_CLASS
from distill.data.transforms import IGNORED
from distill.errors import require
from distill.public_names import public_name
from edge.device.listing import describe_left_out
from swin_hf.output_folders import write_whole


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Where the images come from. Validation and test images that the data set lacks are cut from the training images."""

    heading = "images"

    dataset: str = field(
        default="",
        metadata={
            "help": "digits, digit-scenes, a folder of class folders, of images and masks or with a COCO file, a .csv, .jsonl "
            "or .parquet table, a folder with parquet files, a saved `datasets`, or a Hub id."
        },
    )
    dataset_name: str = field(
        default="",
        metadata={"help": "What cards and reports call the data set. Default: its id, or the name of its folder."},
    )
    class_names: str = field(
        default="", metadata={"help": "Text file with one class per line, for masks; by default classes.txt in the folder."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Train on images as they arrive, without a copy on disk; needs --max_steps."}
    )
    shuffle_buffer: int = field(default=2000, metadata={"help": "Number of streamed images that are shuffled together."})
    reduce_labels: bool = field(default=False, metadata={"help": "Masks count classes from 1, and 0 is ignored (ADE20K)."})
    validation_share: float = field(default=0.1, metadata={"help": "Share of the images held out for validation."})
    test_share: float = field(default=0.1, metadata={"help": "Share of the images held out for the final test."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the split; independent of the training's seed."})
    drop_small_classes: bool = field(
        default=False, metadata={"help": "Leave out classes with fewer than 4 training images, instead of stopping."}
    )
    max_unreadable_share: float = field(
        default=0.05, metadata={"help": "Stop when more than this share of the images cannot be read."}
    )

    def __post_init__(self):
        printable = self.dataset_name.isprintable()
        require(printable, "dataset_name", "be printable text", self.dataset_name)
        missing = self.class_names and not Path(self.class_names).is_file()
        require(not missing, "class_names", "be a text file with one class per line", self.class_names)
        for name in ("validation_share", "test_share"):
            require(0 < getattr(self, name) < 0.5, name, "lie between 0 and 0.5", getattr(self, name))
        require(self.shuffle_buffer >= 1, "shuffle_buffer", "be positive", self.shuffle_buffer)
        require(0 <= self.max_unreadable_share < 1, "max_unreadable_share", "lie in [0, 1)", self.max_unreadable_share)

    def require_dataset(self) -> None:
        """Refuse to start without a data set.

        Raises:
            SettingsError: none was named.
        """
        kinds = "name a folder of images, a table, or a data set of the Hub"
        require(bool(self.dataset), "dataset", kinds, "nothing", "--config digits trains on the embedded digits")

    @property
    def public_name(self) -> str:
        """What cards and reports call the data set."""
        return self.dataset_name or public_name(self.dataset)


def prepare_splits(found: FoundImages, settings: ImageSettings, record: Path, known: bool) -> dict[str, list[Example]]:
    """Readable images by split; the split and what was left out are written to `record`.

    Copies of an image, which have the same pixels, end in one split. Where the data set brings copies of test images in its
    other splits, or of validation images among those for training, these copies are left out.

    known: the record already exists, from the run that is resumed or from another process, and must match.

    Raises:
        DataError: too many images cannot be used, a split or a class has none left, or the images differ from the record.
    """
    former = _read_record(record) if known and record.is_file() else None
    if former is None:
        reading = _look_through(found, settings)
        skipped = [{"split": split, "number": number, "error": error} for (split, number), error in reading.errors.items()]
        copies = [list(map(list, group)) for group in reading.copies]
    else:
        skipped, copies = former["skipped"], former["copies"]
    groups = [[(split, number) for split, number in group] for group in copies]
    shares = (settings.validation_share, settings.test_share)
    splits = {
        split: (source, list(map(int, indices)))
        for split, indices, source in split_images(found, *shares, settings.split_seed, groups)
    }
    leaked = copies_of_held_out(splits, groups)
    content = {
        "dataset": settings.dataset,
        "reduce_labels": settings.reduce_labels,
        "class_names": found.class_names,
        "split": {split: indices for split, (_, indices) in splits.items()},
    }
    if former is None:
        notes = [*found.notes, *reading.notes(), *describe_copies(found, splits, groups, leaked)]
        for note in notes:
            tqdm.write(f"note: {note}")
        names = {split: [found.images[source][number].name for source, number in own] for split, own in leaked.items()}
        more = {"skipped": skipped, "copies": copies, "copies_left_out": names, "left_out": found.left_out, "notes": notes}
        record.parent.mkdir(parents=True, exist_ok=True)
        write_whole(record, json.dumps(content | more, ensure_ascii=False) + "\n")
    elif content != {name: former.get(name) for name in content}:
        raise DataError(
            f"the images or their split are not those recorded in {record}; give another --output_dir, or that run's "
            "--dataset, --reduce_labels, --validation_share, --test_share and --split_seed"
        )
    unusable = {(entry["split"], entry["number"]) for entry in skipped} | {place for own in leaked.values() for place in own}
    examples = {
        split: [_example(found, (source, index), settings) for index in indices if (source, index) not in unusable]
        for split, (source, indices) in splits.items()
    }
    _check_what_is_left(examples, found, settings.dataset, record)
    return examples


def _read_record(record: Path) -> dict[str, Any]:
    """What an earlier run recorded of its images.

    Raises:
        DataError: the file is damaged.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return content | {
            "skipped": [{name: entry[name] for name in ("split", "number", "error")} for entry in content["skipped"]],
            "copies": [[(split, number) for split, number in group] for group in content["copies"]],
        }
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{record} is damaged ({error}), so that the split of the images is not known; start anew") from error


def split_images(
    found: FoundImages, validation_share: float, test_share: float, seed: int, copies: Sequence[Sequence[Place]] = ()
) -> list[tuple[str, list[int], str]]:
    """(split, indices, where the indices point) for the three splits: stratified by class and fixed by the seed.

    Splits that the data set has are kept; missing ones are taken from its training images, if it has any.

    copies: groups of images with the same pixels, of which one decides where the others go; if validation or test images are
        among them, those of the training images are not divided.

    Raises:
        DataError: a class has too few different images.
    """
    whole = found.whole
    if whole not in found.images:
        return [(split, list(range(len(images))), split) for split, images in found.images.items()]
    given = {split: list(range(len(found.labels[split]))) for split in ("validation", "test") if found.labels.get(split)}
    if "validation" in given and "test" not in given:
        # The only held-out split becomes the test, and validation is taken from the training images.
        result = [("test", given["validation"], "validation")]
        given = {"test": given["validation"]}
    else:
        result = [(split, indices, split) for split, indices in given.items()]
    leaked, followers = _divided_with_others(copies, whole)
    following = {number for own in followers.values() for number in own}
    remaining = sorted(set(range(len(found.labels[whole]))) - leaked - following)
    num_different = len(remaining)
    if copies and len(given) < 2:
        _check_different(found, remaining, 2 if given else FEWEST_OF_A_CLASS)

    def with_copies(numbers: list[int]) -> list[int]:
        return sorted([*numbers, *(copy for number in numbers for copy in followers.get(number, []))])

    for split, share in (("test", test_share), ("validation", validation_share)):
        if split in given:
            continue
        size = max(round(share * num_different), len(set(found.labels[whole])))
        labels = [found.labels[whole][index] for index in remaining]
        remaining, held_out = train_test_split(remaining, test_size=size, stratify=labels, random_state=seed)
        result.append((split, with_copies(held_out), whole))
    result.append(("train", sorted([*with_copies(remaining), *leaked]), whole))
    return sorted(result, key=lambda part: SPLITS.index(part[0]))


def _divided_with_others(copies: Sequence[Sequence[Place]], whole: str) -> tuple[set[int], dict[int, list[int]]]:
    """Of the images that are divided: those with copies in other splits, and the copies of an image by its number."""
    leaked, followers = set(), {}
    for group in copies:
        own = sorted(number for split, number in group if split == whole)
        if len(own) < len(group):
            leaked.update(own)
        else:
            followers[own[0]] = own[1:]
    return leaked, followers


def _check_different(found: FoundImages, numbers: list[int], at_least: int) -> None:
    counts = Counter(found.labels[found.whole][number] for number in numbers)
    classes = range(len(found.class_names)) if found.have_classes else [0]
    few = [label for label in classes if counts[label] < at_least]
    if few:
        of = "" if not found.have_classes or len(classes) == 1 else " of each class"
        names = ", ".join(f"{found.class_names[label]} ({counts[label]})" for label in few) if of else str(len(numbers))
        raise DataError(
            f"there must be at least {at_least} different images{of} that are no copies of held-out ones, so that every split "
            f"gets one, got fewer: {names}"
        )


def check_unreadable(errors: list[str], total: int, max_share: float) -> None:
    """Raise an error that names the first unreadable image if more than `max_share` of `total` images are unreadable."""
    if len(errors) > max_share * total:
        raise DataError(
            f"{len(errors)} of {total} images cannot be read, more than the allowed share of {max_share:.0%}; repair or "
            f"remove them, or raise --max_unreadable_share. The first: {errors[0]}"
        )


def _look_through(found: FoundImages, settings: ImageSettings) -> Reading:
    """Read every image and mask once, and say what is left out.

    Raises:
        DataError: too many images cannot be used, or the masks have only one class.
    """
    if found.left_out:
        tqdm.write(describe_left_out(found.left_out))
    places = [(split, number) for split, images in found.images.items() for number in range(len(images))]
    reading = read_all({place: _example(found, place, settings) for place in places}, len(found.class_names))
    errors = list(reading.errors.values())
    for error in errors:
        tqdm.write(f"skipped: {error}")
    check_unreadable(errors, len(places), settings.max_unreadable_share)
    if found.masks is not None and len(reading.mask_classes) < 2:
        names = ", ".join(found.class_names[number] for number in reading.mask_classes) or "none"
        raise DataError(
            f"the masks of --dataset {settings.dataset} have only one class ({names}); pixels must be class numbers, "
            f"0 to {len(found.class_names) - 1}, or {IGNORED} for pixels to ignore: write 1, not 255, for an object"
        )
    return reading


def _example(found: FoundImages, place: Place, settings: ImageSettings) -> Example:
    split, number = place
    mask = None if found.masks is None else found.masks[split][number]
    boxes = None if found.boxes is None else found.boxes[split][number]
    return Example(found.images[split][number], found.labels[split][number], mask, settings.reduce_labels, boxes)


def _check_what_is_left(examples: dict[str, list[Example]], found: FoundImages, dataset: str, record: Path) -> None:
    for split, own in examples.items():
        if not own:
            raise DataError(
                f"there are no {split} images that can be used in --dataset {dataset}; see {record} for those left out. "
                "Validation or test images that a data set does not bring are cut from its training images"
            )
    if found.have_classes and "train" in examples:
        trained = {example.label for example in examples["train"]}
        lacking = [name for label, name in enumerate(found.class_names) if label not in trained]
        if lacking:
            raise DataError(
                f"--dataset {dataset} has no training images left of {len(lacking)} classes: {', '.join(lacking[:10])}; see "
                f"{record} for those left out, and add others"
            )
