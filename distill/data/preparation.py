"""The images of a run: cleaned, split and resized once."""

import json
from collections import Counter
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from distill.data.sources import SPLITS, DataError, FoundImages, ImageSource
from distill.pipeline.settings import DataSettings
from edge.device.image import UnreadableImageError
from swin_hf import SwinHfImageProcessorPil

NUM_SAMPLES = 20
NUM_CALIBRATION_IMAGES = 128


def image_processor(settings: DataSettings) -> SwinHfImageProcessorPil:
    """The processor of every model of a run: an exact resize, [0, 1] and normalisation around 0.5.

    It is the Pillow one also where torchvision is installed, since a device repeats Pillow's arithmetic.
    """
    size = {"height": settings.image_size, "width": settings.image_size}
    return SwinHfImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def prepare_data(found: FoundImages, settings: DataSettings, work_dir: Path) -> None:
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


def split_images(
    found: FoundImages, validation_share: float, test_share: float, seed: int
) -> list[tuple[str, list[int], str]]:
    """(split, indices, where the indices point) for the three splits: stratified by class and fixed by the seed.

    Splits that the data set brings are kept; what is missing is cut from its training images, if it has any.
    """
    whole = found.whole
    if whole not in found.images:
        return [(split, list(range(len(images))), split) for split, images in found.images.items()]
    given = {split: list(range(len(found.labels[split]))) for split in ("validation", "test") if found.labels.get(split)}
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
        size = max(round(share * len(found.labels[whole])), len(set(found.labels[whole])))
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
