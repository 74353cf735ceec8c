"""Images of a training: checked once, split, and the split recorded."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sklearn.model_selection import train_test_split
from tqdm import tqdm

from distill.data.examples import Example, check_mask
from distill.data.sources import SPLITS, DataError, FoundImages
from distill.data.transforms import IGNORED
from distill.errors import require
from edge.device.image import UnreadableImageError
from swin_hf.output_folders import write_whole

READING_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Where the images come from. Validation and test images that the data set lacks are cut from the training images."""

    heading = "images"

    dataset: str = field(
        default="digits",
        metadata={
            "help": "digits, digit-scenes, a folder of class folders or of images and masks, a .csv or .parquet table, a "
            "folder with parquet files, a saved `datasets`, or a Hub id."
        },
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
    max_unreadable_share: float = field(
        default=0.05, metadata={"help": "Stop when more than this share of the images cannot be read."}
    )

    def __post_init__(self):
        missing = self.class_names and not Path(self.class_names).is_file()
        require(not missing, "class_names", "be a text file with one class per line", self.class_names)
        for name in ("validation_share", "test_share"):
            require(0 < getattr(self, name) < 0.5, name, "lie between 0 and 0.5", getattr(self, name))
        require(self.shuffle_buffer >= 1, "shuffle_buffer", "be positive", self.shuffle_buffer)
        require(0 <= self.max_unreadable_share < 1, "max_unreadable_share", "lie in [0, 1)", self.max_unreadable_share)


def prepare_splits(found: FoundImages, settings: ImageSettings, record: Path, known: bool) -> dict[str, list[Example]]:
    """Readable images by split; the split and what was skipped are written to `record`.

    known: the record already exists, from the run that is resumed or from another process, and must match.

    Raises:
        DataError: too many images cannot be used, a split has none left, or the images differ from the record.
    """
    splits = {
        split: (source, indices)
        for split, indices, source in split_images(found, settings.validation_share, settings.test_share, settings.split_seed)
    }
    content = {
        "dataset": settings.dataset,
        "reduce_labels": settings.reduce_labels,
        "class_names": found.class_names,
        "split": {split: list(map(int, indices)) for split, (_, indices) in splits.items()},
    }
    if known and record.is_file():
        former = json.loads(record.read_text())
        if content != {name: former.get(name) for name in content}:
            raise DataError(
                f"the images or their split are not those recorded in {record}; give another --output_dir, or that run's "
                "--dataset, --reduce_labels, --validation_share, --test_share and --split_seed"
            )
        skipped = former["skipped"]
    else:
        skipped = _unusable(found, settings)
        record.parent.mkdir(parents=True, exist_ok=True)
        write_whole(record, json.dumps(content | {"skipped": skipped}, ensure_ascii=False) + "\n")
    unusable = {(entry["split"], entry["number"]) for entry in skipped}
    examples = {
        split: [_example(found, source, index, settings) for index in indices if (source, index) not in unusable]
        for split, (source, indices) in splits.items()
    }
    for split, own in examples.items():
        if not own:
            raise DataError(f"there are no {split} images that can be used in --dataset {settings.dataset}; see {record}")
    return examples


def split_images(
    found: FoundImages, validation_share: float, test_share: float, seed: int
) -> list[tuple[str, list[int], str]]:
    """(split, indices, where the indices point) for the three splits: stratified by class and fixed by the seed.

    Splits that the data set has are kept; missing ones are taken from its training images, if it has any.
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
    remaining = list(range(len(found.labels[whole])))
    for split, share in (("test", test_share), ("validation", validation_share)):
        if split in given:
            continue
        size = max(round(share * len(found.labels[whole])), len(set(found.labels[whole])))
        labels = [found.labels[whole][index] for index in remaining]
        remaining, held_out = train_test_split(remaining, test_size=size, stratify=labels, random_state=seed)
        result.append((split, sorted(held_out), whole))
    result.append(("train", sorted(remaining), whole))
    return sorted(result, key=lambda part: SPLITS.index(part[0]))


def check_unreadable(errors: list[str], total: int, max_share: float) -> None:
    """Raise an error that names the first unreadable image if more than `max_share` of `total` images are unreadable."""
    if len(errors) > max_share * total:
        raise DataError(
            f"{len(errors)} of {total} images cannot be read, more than the allowed share of {max_share:.0%}; repair or "
            f"remove them, or raise --max_unreadable_share. The first: {errors[0]}"
        )


def _example(found: FoundImages, split: str, number: int, settings: ImageSettings) -> Example:
    mask = None if found.masks is None else found.masks[split][number]
    return Example(found.images[split][number], found.labels[split][number], mask, settings.reduce_labels)


def _unusable(found: FoundImages, settings: ImageSettings) -> list[dict[str, str | int]]:
    """Load every image and mask once; returns those that cannot be used, with the reason.

    Raises:
        DataError: there are too many of them, or the masks have only one class.
    """
    places = [(split, number) for split, images in found.images.items() for number in range(len(images))]
    classes: set[int] = set()

    def error_of(place: tuple[str, int]) -> str | None:
        example = _example(found, *place, settings)
        try:
            image, mask = example.source.load(), example.load_mask()
            if mask is not None:
                classes.update(check_mask(example, image, mask, len(found.class_names)))
        except UnreadableImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(READING_THREADS) as pool:
        errors = list(tqdm(pool.map(error_of, places), total=len(places), desc="checking images", mininterval=1.0))
    skipped = []
    for (split, number), error in zip(places, errors):
        if error:
            tqdm.write(f"skipped: {error}")
            skipped.append({"split": split, "number": number, "error": error})
    check_unreadable([entry["error"] for entry in skipped], len(places), settings.max_unreadable_share)
    if found.masks is not None and len(classes) < 2:
        names = ", ".join(found.class_names[number] for number in classes) or "none"
        raise DataError(
            f"the masks of --dataset {settings.dataset} have only one class ({names}); pixels must be class numbers, "
            f"0 to {len(found.class_names) - 1}, or {IGNORED} for pixels to ignore: write 1, not 255, for an object"
        )
    return skipped
