"""The images of a run, resized once and stored: all stages read the same ones, even if their source changes."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import datasets
import torch
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from tqdm import tqdm

from distill.compress.teachers import Classifier
from distill.data.examples import Example, to_tensor
from distill.data.reading import READING_THREADS
from distill.data.sources import SPLITS, DataError, FoundImages
from distill.data.splits import ImageSettings, prepare_splits
from distill.data.streaming import Stream, first_examples
from edge.device.names import file_stem
from swin_hf import SwinHfImageProcessorPil
from swin_hf.output_folders import write_whole

Item, Result = TypeVar("Item"), TypeVar("Result")

NUM_SAMPLES = 20
NUM_CALIBRATION_IMAGES = 128
NUM_STREAMED_IMAGES = 1024  # stored for pruning and calibration


def store_images(
    found: FoundImages,
    settings: ImageSettings,
    image_size: int,
    work_dir: Path,
    stream: Stream | None = None,
    labeller: Classifier | None = None,
) -> None:
    """Fill a folder with the three splits, 20 test images as samples, and training images for calibration.

    stream: of the training images, if there is one; its first images are stored.
    labeller: finds the classes of the images, if they have none.

    Raises:
        DataError: too many images cannot be read, or a class has no readable images left in a split.
    """
    examples = prepare_splits(found, settings, work_dir / "data.json", known=False)
    if stream is not None:
        examples["train"] = first_examples(stream, NUM_STREAMED_IMAGES)
        if not examples["train"]:
            raise DataError(f"--dataset {settings.dataset} streams no training image that can be read")
    class_names = found.class_names if labeller is None else labeller.class_names
    splits = {
        split: _resized(split, examples[split], class_names, image_size, work_dir, labeller)
        for split in SPLITS
        if split in examples
    }
    for split, dataset in splits.items():
        empty = set(range(len(class_names))) - set(dataset["label"])
        if empty and split != "validation" and stream is None and labeller is None:
            names = ", ".join(class_names[label] for label in sorted(empty))
            raise DataError(f"there are no {split} images of class {names}; add images or change the shares")
    datasets.DatasetDict(splits).save_to_disk(work_dir)
    for split in splits:
        (work_dir / f"resized-{split}.arrow").unlink()
    _write_examples(splits["train"], class_names, NUM_CALIBRATION_IMAGES, work_dir / "calibration")
    _write_examples(splits["test"], class_names, NUM_SAMPLES, work_dir / "samples")
    facts = json.loads((work_dir / "data.json").read_text(encoding="utf-8"))
    if labeller is not None:
        facts |= {"class_names": class_names, "labels": "teacher"}
        write_whole(work_dir / "data.json", json.dumps(facts, ensure_ascii=False) + "\n")
        present = {label for dataset in splits.values() for label in dataset["label"]}
        print(f"      the images have no classes: the teacher finds {len(present)} of its {len(class_names)} in them")
    counts = ", ".join(f"{len(dataset)} {split}" for split, dataset in splits.items())
    print(f"      {len(class_names)} classes; images: {counts}; unreadable and skipped: {len(facts['skipped'])}")


def _resized(
    split: str, examples: list[Example], names: list[str], image_size: int, work_dir: Path, labeller: Classifier | None
) -> datasets.Dataset:
    """The images of one split, resized without a crop as our image processor does.

    Training images are decoded at a part of their size where that is twice what is kept; the others in whole, as on a device.
    """
    processor = SwinHfImageProcessorPil(size={"height": image_size, "width": image_size})
    at_least = 2 * image_size if split == "train" else None

    def resize(example: Example) -> Image.Image:
        pixels = processor(example.source.load(at_least), do_rescale=False, do_normalize=False)["pixel_values"][0]
        return Image.fromarray(pixels.transpose(1, 2, 0))

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    path = work_dir / f"resized-{split}.arrow"
    with ArrowWriter(path=str(path), features=features) as writer:  # one image at a time, however many there are
        images = in_order(resize, examples)
        for example, image in tqdm(zip(examples, images), f"      {split} images", len(examples), mininterval=1.0):
            row = {"image": image, "label": example.label if labeller is None else _class_of(image, labeller)}
            writer.write(features.encode_example(row))
        writer.finalize()
    return datasets.Dataset.from_file(str(path))


def in_order(function: Callable[[Item], Result], items: list[Item]) -> Iterator[Result]:
    """Results of a function in the order of its inputs, by several threads, which run a few items ahead and no more."""
    with ThreadPoolExecutor(READING_THREADS) as pool:
        ahead: deque[Future] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) == 4 * READING_THREADS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BaseException:  # Ctrl-C, or an image that cannot be read any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@torch.no_grad()
def _class_of(image: Image.Image, labeller: Classifier) -> int:
    return int(labeller(to_tensor(image)[None].float() / 255).argmax())


def _write_examples(dataset: datasets.Dataset, class_names: list[str], count: int, folder: Path) -> None:
    """Write up to `count` images as `<label>_<n>.png`, taking the classes in turn so that all are present.

    No two classes share a name, not even where the file system takes capitals for small letters.
    """
    folder.mkdir(exist_ok=True)
    labels, by_class = list(dataset["label"]), [[] for _ in class_names]
    for index, label in enumerate(labels):
        by_class[label].append(index)
    turns = (indices[turn] for turn in range(count) for indices in by_class if turn < len(indices))
    numbers = Counter()
    for index in list(turns)[:count]:
        name = file_stem(class_names[labels[index]])
        dataset[index]["image"].save(folder / f"{name}_{numbers[name.casefold()]}.png")
        numbers[name.casefold()] += 1
