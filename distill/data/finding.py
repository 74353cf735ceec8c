"""Finding the images behind `--dataset`: a folder, a table, a data set or an embedded one."""

from dataclasses import replace
from pathlib import Path

import datasets
from PIL import Image
from sklearn.datasets import load_digits

from distill.data.digit_scenes import DigitScenes, digit_image, encode
from distill.data.rows import Rows
from distill.data.sources import DataError, FoundImages, NoClassesError, by_split
from distill.data.tables import is_table, open_table, paths_in_table
from distill.data.targets import CLASSES, Targets, small_classes
from edge.device.listing import Listing, describe_left_out, list_files
from edge.device.names import did_you_mean, is_hidden

EMBEDDED = ("digits", "digit-scenes")
FEWEST_IMAGES = 4
SAVED = ("dataset_dict.json", "state.json")  # one of them is in a folder written by `save_to_disk`
STORED = (".parquet", ".arrow", ".json")  # what rows are read from


def find_images(
    dataset: str, targets: Targets, class_names: Path | None = None, drop_small_classes: bool = False
) -> FoundImages:
    """Find the images behind `--dataset`, with their targets, without decoding them.

    targets: what the images have to come with.
    class_names: a text file with the name of each class in a line of its own, if there are masks and the data does not know.
    drop_small_classes: leave out classes with too few images, instead of raising an error.

    Raises:
        DataError: there is no such data set, its images lack classes or masks, or there are too few of them.
    """
    place, left_out = _open(dataset)
    if isinstance(place, Listing):
        found = targets.in_folder(place, class_names)
    else:
        found = targets.in_rows(place, dataset, class_names)
    found = replace(found, left_out=found.left_out | left_out)
    _check_number(found, dataset)
    if drop_small_classes and targets.have_classes and found.have_classes:
        found = found.without(set(small_classes(found)))
    targets.check(found, dataset)
    return found


def _check_number(found: FoundImages, dataset: str) -> None:
    number = len(found.images.get(found.whole, []))
    if number < FEWEST_IMAGES:
        left_out = f" ({describe_left_out(found.left_out)})" if found.left_out else ""
        raise DataError(
            f"--dataset {dataset} has {number} images for training, validation and test{left_out}; it needs at least "
            f"{FEWEST_IMAGES}"
        )


def _open(dataset: str) -> tuple[Listing | Rows, dict[str, int]]:
    """A folder of files, or the rows of each split; and how many files or rows are left out for what."""
    path = Path(dataset)
    if dataset == "digits":
        return {"all": _digits()}, {}
    if dataset == "digit-scenes":
        builder = DigitScenes()
        builder.download_and_prepare()
        return dict(builder.as_dataset()), {}
    if is_table(path):
        return open_table(path)
    if any((path / name).is_file() for name in SAVED):
        return _by_split(datasets.load_from_disk(str(path)), dataset)
    if path.is_dir():
        listing = list_files(path)
        if not holds_parquet(listing):
            return listing, {}
        rows, left_out = _by_split(datasets.load_dataset(str(path)), dataset)
        beside = {"beside parquet files": len(listing.images)} if listing.images else {}
        return rows, left_out | beside
    if dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or path.exists():
        raise DataError(
            f"--dataset {dataset} is neither a folder nor a .csv, .jsonl or .parquet table; give digits, digit-scenes, a "
            "folder of images, a table, or a Hub id"
        )
    if "/" not in dataset and (hint := did_you_mean(dataset, [*EMBEDDED, *(own.name for own in Path().iterdir())])):
        raise DataError(f"--dataset {dataset} is neither {', nor '.join(EMBEDDED)}, nor a local folder{hint}")
    try:
        return _by_split(datasets.load_dataset(dataset), dataset)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"--dataset {dataset} is neither digits, nor a local folder, nor a data set of the Hub: {error}"
        ) from error


def has_no_classes(dataset: str) -> bool:
    """Whether `--dataset` is a folder of images that are not in folders of classes."""
    path = Path(dataset)
    if not path.is_dir() or any((path / name).is_file() for name in SAVED):
        return False
    listing = list_files(path)
    if holds_parquet(listing):
        return False
    try:
        CLASSES.in_folder(listing, None)
    except NoClassesError:
        return True
    except DataError:  # said when the images are needed
        return False
    return False


def files_behind(dataset: str, targets: Targets = CLASSES) -> list[Path]:
    """The files that are read for the images of `--dataset` and their targets; none if it is embedded or on the Hub."""
    path = Path(dataset)
    if is_table(path):
        return [path, *paths_in_table(path)]
    if not path.is_dir():
        return []
    listing = list_files(path)
    stored = [file for file in listing.left_out if file.suffix.lower() in STORED and not file.name.startswith("cache-")]
    if any((path / name).is_file() for name in SAVED) or holds_parquet(listing):
        return [path / file for file in stored if not any(is_hidden(part) for part in file.parts)]
    try:
        found = targets.in_folder(listing, None)
    except DataError:  # said when the images are needed
        return [path / image for image in listing.images]
    return [source.open() for images in found.images.values() for source in images]


def holds_parquet(listing: Listing) -> bool:
    """Whether a folder is read as a data set of parquet files; hidden ones do not count."""
    return any(reason.lower() == "suffix .parquet" for reason in listing.left_out.values())


def _by_split(loaded: datasets.Dataset | datasets.DatasetDict, dataset: str) -> tuple[Rows, dict[str, int]]:
    """The rows of train, validation and test, or of the only split as "all"."""
    if not isinstance(loaded, dict):
        return {"all": loaded}, {}
    names = by_split(loaded, f"--dataset {dataset}")
    if "train" not in names and len(loaded) == 1:
        return {"all": next(iter(loaded.values()))}, {}
    if "train" not in names:
        raise DataError(f"--dataset {dataset} must have a train split, got {', '.join(loaded)}")
    left_out = {f"in split {name}": len(rows) for name, rows in loaded.items() if name not in names.values()}
    return {split: loaded[name] for split, name in names.items()}, left_out


def _digits() -> datasets.Dataset:
    """The handwritten digits of scikit-learn (UCI ML, 8 x 8 grey levels of 0 to 16), enlarged to 32 x 32."""
    digits = load_digits()
    images = [encode(digit_image(levels).resize((32, 32), Image.Resampling.BICUBIC)) for levels in digits.images]
    names = datasets.ClassLabel(names=[str(name) for name in digits.target_names])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    return datasets.Dataset.from_dict({"image": images, "label": digits.target}, features=features)
