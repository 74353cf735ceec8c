"""The images of a run, resized once and stored: all stages read the same ones, even if their source changes."""

import json
from collections import Counter
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from tqdm import tqdm

from distill.data.examples import Example
from distill.data.sources import SPLITS, DataError, FoundImages
from distill.data.splits import ImageSettings, prepare_splits
from distill.data.streaming import Stream, first_examples
from edge.device.names import file_stem
from swin_hf import SwinHfImageProcessorPil

NUM_SAMPLES = 20
NUM_CALIBRATION_IMAGES = 128
NUM_STREAMED_IMAGES = 1024  # stored for pruning and calibration


def store_images(
    found: FoundImages, settings: ImageSettings, image_size: int, work_dir: Path, stream: Stream | None = None
) -> None:
    """Fill a folder with the three splits, 20 test images as samples, and training images for calibration.

    stream: of the training images, if there is one; its first images are stored.

    Raises:
        DataError: too many images cannot be read, or a class has no readable images left in a split.
    """
    examples = prepare_splits(found, settings, work_dir / "data.json", known=False)
    if stream is not None:
        examples["train"] = first_examples(stream, NUM_STREAMED_IMAGES)
        if not examples["train"]:
            raise DataError(f"--dataset {settings.dataset} streams no training image that can be read")
    splits = {
        split: _resized(split, examples[split], found.class_names, image_size, work_dir)
        for split in SPLITS
        if split in examples
    }
    for split, dataset in splits.items():
        empty = set(range(len(found.class_names))) - set(dataset["label"])
        if empty and split != "validation" and stream is None:
            names = ", ".join(found.class_names[label] for label in sorted(empty))
            raise DataError(f"there are no {split} images of class {names}; add images or change the shares")
    datasets.DatasetDict(splits).save_to_disk(work_dir)
    for split in splits:
        (work_dir / f"resized-{split}.arrow").unlink()
    _write_examples(splits["train"], found.class_names, NUM_CALIBRATION_IMAGES, work_dir / "calibration")
    _write_examples(splits["test"], found.class_names, NUM_SAMPLES, work_dir / "samples")
    skipped = json.loads((work_dir / "data.json").read_text(encoding="utf-8"))["skipped"]
    counts = ", ".join(f"{len(dataset)} {split}" for split, dataset in splits.items())
    print(f"      {len(found.class_names)} classes; images: {counts}; unreadable and skipped: {len(skipped)}")


def _resized(split: str, examples: list[Example], names: list[str], image_size: int, work_dir: Path) -> datasets.Dataset:
    """The images of one split, resized without a crop as our image processor does."""
    processor = SwinHfImageProcessorPil(size={"height": image_size, "width": image_size})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    path = work_dir / f"resized-{split}.arrow"
    with ArrowWriter(path=str(path), features=features) as writer:  # one image at a time, however many there are
        for example in tqdm(examples, desc=f"      {split} images", mininterval=1.0):
            pixels = processor(example.source.load(), do_rescale=False, do_normalize=False)["pixel_values"][0]
            row = {"image": Image.fromarray(pixels.transpose(1, 2, 0)), "label": example.label}
            writer.write(features.encode_example(row))
        writer.finalize()
    return datasets.Dataset.from_file(str(path))


def _write_examples(dataset: datasets.Dataset, class_names: list[str], count: int, folder: Path) -> None:
    """Write up to `count` images as `<label>_<n>.png`, taking the classes in turn so that all are present.

    No two classes share a name, not even where the file system takes capitals for small letters.
    """
    folder.mkdir(exist_ok=True)
    labels = dataset["label"]
    by_class = [[index for index in range(len(labels)) if labels[index] == label] for label in range(len(class_names))]
    turns = (indices[turn] for turn in range(count) for indices in by_class if turn < len(indices))
    numbers = Counter()
    for index in list(turns)[:count]:
        name = file_stem(class_names[labels[index]])
        dataset[index]["image"].save(folder / f"{name}_{numbers[name.casefold()]}.png")
        numbers[name.casefold()] += 1
