"""Finding the images behind `--dataset`: a folder, a table, a data set or an embedded one."""

from pathlib import Path

import datasets
from PIL import Image
from sklearn.datasets import load_digits

from distill.data.digit_scenes import DigitScenes, digit_image, encode
from distill.data.sources import IMAGE_NAMES, MASK_NAMES, SPLIT_NAMES, SPLITS, DataError, FoundImages
from distill.data.targets import Targets

FEWEST_IMAGES = 4


def find_images(dataset: str, targets: Targets, class_names: Path | None = None) -> FoundImages:
    """Find the images behind `--dataset`, with their targets, without decoding them.

    targets: what the images have to come with.
    class_names: a text file with the name of each class in a line of its own, if there are masks and the data does not know.

    Raises:
        DataError: there is no such data set, its images lack classes or masks, or there are too few of them.
    """
    place = _open(dataset)
    in_folder = isinstance(place, Path)
    found = targets.in_folder(place, class_names) if in_folder else targets.in_rows(place, dataset, class_names)
    targets.check(found, dataset)
    number = len(found.images[found.whole])
    if number < FEWEST_IMAGES:
        raise DataError(
            f"--dataset {dataset} has {number} images for training, validation and test; it needs at least {FEWEST_IMAGES}"
        )
    return found


def _open(dataset: str) -> Path | dict[str, datasets.Dataset]:
    """A folder of files, or the rows of each split."""
    path = Path(dataset)
    if dataset == "digits":
        return {"all": _digits()}
    if dataset == "digit-scenes":
        builder = DigitScenes()
        builder.download_and_prepare()
        return dict(builder.as_dataset())
    if path.is_file() and path.suffix in (".csv", ".parquet"):
        return _open_table(path)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _by_split(datasets.load_from_disk(str(path)))
    if path.is_dir() and any(path.rglob("*.parquet")):
        return _by_split(datasets.load_dataset(str(path)))
    if path.is_dir():
        return path
    if dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or path.exists():
        raise DataError(
            f"--dataset {dataset} is neither a folder nor a .csv or .parquet table; give digits, digit-scenes, a folder of "
            "images, a table, or a Hub id"
        )
    try:
        return _by_split(datasets.load_dataset(dataset))
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"--dataset {dataset} is neither digits, nor a local folder, nor a data set of the Hub: {error}"
        ) from error


def _by_split(loaded: datasets.Dataset | datasets.DatasetDict) -> dict[str, datasets.Dataset]:
    splits = loaded if isinstance(loaded, dict) else {"all": loaded}
    splits = {SPLIT_NAMES.get(split, split): rows for split, rows in splits.items()}
    if "train" not in splits:
        splits = {"all": next(iter(splits.values()))}
    return {split: rows for split, rows in splits.items() if split in (*SPLITS, "all")}


def _open_table(path: Path) -> dict[str, datasets.Dataset]:
    """A table of images, or of paths relative to its folder; a column "split" may name the split of each row."""
    try:
        rows = datasets.Dataset.from_csv(str(path)) if path.suffix == ".csv" else datasets.Dataset.from_parquet(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"--dataset {path} is not a table that can be read: {error.__cause__ or error}") from error
    for column, feature in rows.features.items():
        if column in (*IMAGE_NAMES, *MASK_NAMES) and getattr(feature, "dtype", None) in ("string", "large_string"):
            if None in rows[column]:
                raise DataError(f'column "{column}" of {path} is empty in row {list(rows[column]).index(None)}; fill it')
            rows = rows.add_column(f"{column}.path", [str(path.parent / name) for name in rows[column]])
            rows = rows.remove_columns(column).rename_column(f"{column}.path", column)
            rows = rows.cast_column(column, datasets.Image(decode=False))
    if "split" not in rows.column_names:
        return {"all": rows}
    unknown = sorted(set(map(str, rows["split"])) - set(SPLIT_NAMES))
    if unknown or "train" not in {SPLIT_NAMES[name] for name in rows["split"]}:
        raise DataError(f'column "split" of {path} must hold {", ".join(SPLITS)}, including train, got {", ".join(unknown)}')
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(rows["split"]):
        numbers.setdefault(SPLIT_NAMES[name], []).append(number)
    return {split: rows.select(own) for split, own in numbers.items()}


def _digits() -> datasets.Dataset:
    """The handwritten digits of scikit-learn (UCI ML, 8 x 8 grey levels of 0 to 16), enlarged to 32 x 32."""
    digits = load_digits()
    images = [encode(digit_image(levels).resize((32, 32), Image.Resampling.BICUBIC)) for levels in digits.images]
    names = datasets.ClassLabel(names=[str(name) for name in digits.target_names])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    return datasets.Dataset.from_dict({"image": images, "label": digits.target}, features=features)
