"""The images of a run: digits, a folder of class folders or a Hub data set, cleaned, split and resized once."""

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from distill.settings import DataSettings
from edge.image import IMAGE_SUFFIXES, UnreadableImageError, load_image
from swin_hf import SwinHfImageProcessorPil

NUM_SAMPLES = 20
NUM_CALIBRATION_IMAGES = 128
SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


class DataError(ValueError):
    """The images cannot be used; the message says what is wrong with them and what to do."""


@dataclass(frozen=True)
class LabelledImages:
    """Undecoded images and their classes, by split; the split "all" is still to be divided.

    images: for each split, sources that `edge.image.load_image` reads, with a name for messages.
    labels: for each split, indices into `class_names`.
    """

    images: dict[str, list["ImageSource"]]
    labels: dict[str, list[int]]
    class_names: list[str]


@dataclass(frozen=True)
class ImageSource:
    """An image with a name for messages; `open` gives its file, or its encoded bytes where it has none of its own."""

    name: str
    open: Callable[[], Path | io.BytesIO]

    def load(self) -> Image.Image:
        """The image in RGB.

        Raises:
            UnreadableImageError: it cannot be decoded; the message names it.
        """
        try:
            return load_image(self.open())
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{self.name} cannot be read: {error.__cause__}") from error


def image_processor(settings: DataSettings) -> SwinHfImageProcessorPil:
    """The processor of every model of a run: an exact resize, [0, 1] and normalisation around 0.5.

    It is the Pillow one also where torchvision is installed, since a device repeats Pillow's arithmetic.
    """
    size = {"height": settings.image_size, "width": settings.image_size}
    return SwinHfImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def prepare_data(found: LabelledImages, settings: DataSettings, work_dir: Path) -> None:
    """Fill `work_dir` with the three splits, 20 test images to try and training images to calibrate on.

    Raises:
        DataError: too many images cannot be read, or a class has no readable ones left in a split.
    """
    skipped: list[str] = []
    splits = {}
    for split, indices, source in split_images(found, settings.validation_share, settings.test_share, settings.seed):
        chosen = [(found.images[source][index], found.labels[source][index]) for index in indices]
        splits[split] = _resize_all(split, chosen, found.class_names, settings, skipped, work_dir)
    total = sum(map(len, found.images.values()))
    check_unreadable(skipped, total, settings.max_unreadable_share)
    for split, dataset in splits.items():
        empty = set(range(len(found.class_names))) - set(dataset["label"])
        if empty and split != "validation":
            names = ", ".join(found.class_names[label] for label in sorted(empty))
            raise DataError(f"the {split} images hold none of class {names}; add images or change the shares")

    datasets.DatasetDict(splits).save_to_disk(work_dir)
    for split in splits:
        (work_dir / f"resized-{split}.arrow").unlink()
    _write_examples(splits["train"], found.class_names, NUM_CALIBRATION_IMAGES, work_dir / "calibration")
    _write_examples(splits["test"], found.class_names, NUM_SAMPLES, work_dir / "samples")
    summary = {
        "dataset": settings.dataset,
        "class_names": found.class_names,
        "images": {split: len(dataset) for split, dataset in splits.items()},
        "skipped": skipped,
    }
    (work_dir / "data.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    counts = ", ".join(f"{len(dataset)} {split}" for split, dataset in splits.items())
    print(f"      {len(found.class_names)} classes; images: {counts}; unreadable and skipped: {len(skipped)}")


def check_unreadable(errors: list[str], total: int, max_share: float) -> None:
    """Raise the error that names the first unreadable image if more than `max_share` of `total` are."""
    if len(errors) > max_share * total:
        raise DataError(
            f"{len(errors)} of {total} images cannot be read, more than the allowed share of {max_share:.0%}; repair or "
            f"remove them, or raise --max_unreadable_share. The first: {errors[0]}"
        )


def find_labelled_images(dataset: str) -> LabelledImages:
    """Find the images and classes behind `--dataset` without decoding them.

    Raises:
        DataError: there is no such data set, it has no images or labels, one class only, or a class with hardly any images.
    """
    found = _find(dataset)
    _check_classes(found, dataset)
    return found


def _find(dataset: str) -> LabelledImages:
    path = Path(dataset)
    if dataset == "digits":
        return _from_digits()
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _from_datasets(datasets.load_from_disk(str(path)), dataset)
    if path.is_dir() and any(path.rglob("*.parquet")):
        return _from_datasets(datasets.load_dataset(str(path)), dataset)
    if path.is_dir():
        return _from_folder(path)
    if dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or path.exists():
        raise DataError(f"--dataset {dataset} is not a folder; give digits, a folder of class folders, or a Hub id")
    try:
        loaded = datasets.load_dataset(dataset)
    except (OSError, ValueError) as error:
        raise DataError(
            f"--dataset {dataset} is neither digits, nor a folder here, nor a data set that the Hub gives: {error}"
        ) from error
    return _from_datasets(loaded, dataset)


def _from_digits() -> LabelledImages:
    """The handwritten digits of scikit-learn (UCI ML, 8 x 8 grey levels of 0 to 16), enlarged to 32 x 32."""
    digits = load_digits()
    sources = []
    for number, levels in enumerate(digits.images):
        image = Image.fromarray(np.round(levels * (255 / 16)).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        content = io.BytesIO()
        image.save(content, format="PNG")
        sources.append(ImageSource(f"digit {number}", partial(io.BytesIO, content.getvalue())))
    return LabelledImages({"all": sources}, {"all": digits.target.tolist()}, [str(name) for name in digits.target_names])


def _from_folder(folder: Path) -> LabelledImages:
    """Class folders, or train / validation / test folders of class folders."""
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    roots = {SPLIT_FOLDERS[path.name.lower()]: path for path in subfolders if path.name.lower() in SPLIT_FOLDERS}
    if not subfolders or len(roots) != len(subfolders) or "train" not in roots:
        roots = {"all": folder}
    class_folders = {
        split: sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        for split, root in roots.items()
    }
    class_names = sorted({path.name for paths in class_folders.values() for path in paths})
    images, labels = {}, {}
    for split, paths in class_folders.items():
        files = [file for path in paths for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES]
        root = roots[split]
        images[split] = [ImageSource(str(file), partial(Path, file)) for file in files]
        labels[split] = [class_names.index(file.relative_to(root).parts[0]) for file in files]
    if not any(images.values()):
        raise DataError(
            f"--dataset {folder} holds no images in class folders; make one folder per class and put its images "
            f"({' '.join(IMAGE_SUFFIXES)}) into it"
        )
    return LabelledImages(images, labels, class_names)


def _from_datasets(loaded: datasets.Dataset | datasets.DatasetDict, name: str) -> LabelledImages:
    """A `datasets` object with one image column and one class label column."""
    splits = loaded if isinstance(loaded, dict) else {"all": loaded}
    if "train" not in splits:
        splits = {"all": next(iter(splits.values()))}
    features = next(iter(splits.values())).features
    image_column = next((key for key, feature in features.items() if isinstance(feature, datasets.Image)), None)
    label_column = next((key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)), None)
    if image_column is None or label_column is None:
        raise DataError(f"--dataset {name} must have an Image and a ClassLabel column, got {dict(features)}")
    images, labels = {}, {}
    for split, dataset in splits.items():
        split = SPLIT_FOLDERS.get(split, split)
        if split not in (*SPLITS, "all"):
            continue
        undecoded = dataset.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
        paths = undecoded.flatten()[f"{image_column}.path"]
        images[split] = [
            ImageSource(path or f"{name} {split} {number}", partial(_open_row, undecoded, image_column, number))
            for number, path in enumerate(paths)
        ]
        labels[split] = list(dataset[label_column])
    if "test" in labels and min(labels["test"]) < 0:  # Benchmarks hide the labels of their test images.
        del images["test"], labels["test"]
    return LabelledImages(images, labels, features[label_column].names)


def _open_row(undecoded: datasets.Dataset, column: str, number: int) -> Path | io.BytesIO:
    row = undecoded[number][column]
    return Path(row["path"]) if row["bytes"] is None else io.BytesIO(row["bytes"])


def _check_classes(found: LabelledImages, dataset: str) -> None:
    """Check that there are classes to tell apart and images of each to learn from."""
    counts = Counter(found.labels["all"] if "all" in found.labels else found.labels["train"])
    if len(counts) < 2:
        names = ", ".join(found.class_names[label] for label in counts)
        raise DataError(f"--dataset {dataset} has one class only ({names}); a classifier needs two or more")
    label, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < 4:
        raise DataError(
            f"class {found.class_names[label]} has {fewest} images; every class needs at least 4, so that training, "
            "validation and test get one each"
        )


def split_images(
    found: LabelledImages, validation_share: float, test_share: float, seed: int
) -> list[tuple[str, list[int], str]]:
    """(split, indices, where the indices point) for the three splits: stratified by class and fixed by the seed.

    Splits that the data set brings are kept; what is missing is cut from its training images.
    """
    whole = "all" if "all" in found.labels else "train"
    given = {split: list(range(len(found.labels[split]))) for split in ("validation", "test") if split in found.labels}
    if "validation" in given and "test" not in given:
        # One held-out part: it is the test, and validation is cut from the training images.
        result = [("test", given["validation"], "validation")]
        given = {"test": given["validation"]}
    else:
        result = [(split, indices, split) for split, indices in given.items()]
    remaining = list(range(len(found.labels[whole])))
    for split, share in (("test", test_share), ("validation", validation_share)):
        if split in given:
            continue
        size = max(round(share * len(found.labels[whole])), len(found.class_names))
        labels = [found.labels[whole][index] for index in remaining]
        remaining, held_out = train_test_split(remaining, test_size=size, stratify=labels, random_state=seed)
        result.append((split, sorted(held_out), whole))
    result.append(("train", sorted(remaining), whole))
    return sorted(result, key=lambda part: SPLITS.index(part[0]))


def _resize_all(
    split: str,
    labelled: list[tuple[ImageSource, int]],
    class_names: list[str],
    settings: DataSettings,
    skipped: list[str],
    work_dir: Path,
) -> datasets.Dataset:
    """Decode and resize the images of one split with the processor's arithmetic; unreadable ones go to `skipped`."""
    processor = image_processor(settings)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
    path = work_dir / f"resized-{split}.arrow"
    with ArrowWriter(path=str(path), features=features) as writer:  # one image at a time, whatever their number
        for source, label in tqdm(labelled, desc=f"      {split} images", mininterval=1.0):
            try:
                image = source.load()
            except UnreadableImageError as error:
                skipped.append(str(error))
                tqdm.write(f"      skipped: {error}")
                continue
            pixels = processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
            row = {"image": Image.fromarray(pixels.transpose(1, 2, 0)), "label": label}
            writer.write(features.encode_example(row))
        writer.finalize()
    return datasets.Dataset.from_file(str(path))


def _write_examples(dataset: datasets.Dataset, class_names: list[str], count: int, folder: Path) -> None:
    """Write up to `count` images as `<label>_<n>.png`, the classes in turn, so that all are there."""
    folder.mkdir(exist_ok=True)
    labels = dataset["label"]
    by_class = [[index for index in range(len(labels)) if labels[index] == label] for label in range(len(class_names))]
    turns = (indices[turn] for turn in range(count) for indices in by_class if turn < len(indices))
    numbers = Counter()
    for index in list(turns)[:count]:
        name = class_names[labels[index]].replace("/", "-")
        dataset[index]["image"].save(folder / f"{name}_{numbers[name]}.png")
        numbers[name] += 1
