"""Copies of images: they stay in one split, and those of held-out images are not trained on."""

import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from distill.data.finding import find_images
from distill.data.sources import DataError, FoundImages
from distill.data.splits import ImageSettings, prepare_splits, split_images
from distill.data.streaming import StreamedImages, first_examples, open_stream
from distill.data.targets import CLASSES
from distill.data.transforms import RandomCrop, TransformSettings


def write(root: Path, folder: str, numbers: range) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng((number, len(folder.split("/")[-1]))).integers(0, 256, (6, 4, 3), np.uint8)
        Image.fromarray(pixels).save(root / folder / f"{number}.png")


def prepare(root: Path, work_dir: Path, known: bool = False, **changes) -> dict[str, list[bytes]]:
    """The pixels of the images in each split."""
    settings = ImageSettings(dataset=str(root), **({"validation_share": 0.2, "test_share": 0.2} | changes))
    examples = prepare_splits(find_images(settings.dataset, CLASSES), settings, work_dir / "data.json", known)
    return {split: [example.source.load().tobytes() for example in own] for split, own in examples.items()}


def test_copies_of_given_test_images_leave_the_training(tmp_path, capsys):
    root = tmp_path / "data"
    for kind in ("cat", "horse"):
        write(root, f"train/{kind}", range(10))
        write(root, f"val/{kind}", range(10, 14))
        write(root, f"test/{kind}", range(20, 24))
    Image.open(root / "test" / "cat" / "20.png").save(root / "train" / "cat" / "other.bmp")  # the same pixels in other bytes
    shutil.copy(root / "test" / "horse" / "21.png", root / "train" / "horse" / "copy.png")
    shutil.copy(root / "test" / "horse" / "22.png", root / "val" / "horse" / "copy.png")
    shutil.copy(root / "val" / "cat" / "11.png", root / "train" / "cat" / "copy.png")
    shutil.copy(root / "train" / "cat" / "3.png", root / "train" / "cat" / "again.png")
    shutil.copy(root / "train" / "cat" / "4.png", root / "train" / "horse" / "odd.png")
    pixels = prepare(root, tmp_path)
    assert {split: len(own) for split, own in pixels.items()} == {"train": 22, "validation": 8, "test": 8}
    assert not set(pixels["train"]) & (set(pixels["test"]) | set(pixels["validation"]))
    assert not set(pixels["validation"]) & set(pixels["test"])
    printed = capsys.readouterr().out
    assert "note: left out as copies of held-out images (the same pixels): 3 of 25 train images: " in printed
    assert "note: left out as copies of held-out images (the same pixels): 1 of 9 validation images: " in printed
    assert "note: copies of other images in the same split: 2 (2 in train)" in printed
    assert "note: images with copies in another class: 1, such as " in printed and "odd.png" in printed
    record = json.loads((tmp_path / "data.json").read_text())
    left_out = {split: [Path(name).name for name in names] for split, names in record["copies_left_out"].items()}
    assert left_out == {"train": ["other.bmp", "copy.png", "copy.png"], "validation": ["copy.png"]}
    assert len(record["copies"]) == 6 and len(record["notes"]) == 4
    assert prepare(root, tmp_path, known=True) == pixels  # from the record, without reading


def test_copies_stay_together_when_a_folder_is_split(tmp_path):
    root = tmp_path / "data"
    for kind in ("cat", "horse"):
        write(root, kind, range(20))
        for number in range(0, 20, 2):
            for copy in range(number % 3 + 1):
                shutil.copy(root / kind / f"{number}.png", root / kind / f"{number}-{copy}.png")
    for seed in range(5):
        pixels = prepare(root, tmp_path / str(seed), split_seed=seed)
        train, validation, test = (set(pixels[split]) for split in ("train", "validation", "test"))
        assert not (train & validation or train & test or validation & test)
        assert len(train) == 24 and len(validation) == len(test) == 8 and len(train | validation | test) == 40
        assert sum(map(len, pixels.values())) == len(list(root.rglob("*.png")))
        record = json.loads((tmp_path / str(seed) / "data.json").read_text())
        assert record["copies_left_out"] == {} and len(record["copies"]) == 20


def test_a_split_without_copies_is_what_it_was(image_folder):
    found = find_images(str(image_folder), CLASSES)
    assert split_images(found, 0.1, 0.2, 0, []) == split_images(found, 0.1, 0.2, 0)


def test_classes_that_are_copies_alone_are_named(tmp_path):
    root = tmp_path / "data"
    write(root, "cat", range(12))
    write(root, "horse", range(1))
    for number in range(11):
        shutil.copy(root / "horse" / "0.png", root / "horse" / f"copy{number}.png")
    with pytest.raises(DataError, match=r"must be at least 4 different images of each class .* fewer: horse \(1\)"):
        prepare(root, tmp_path)
    for split in ("val", "test"):
        write(root, f"{split}/cat", range(20, 24) if split == "val" else range(30, 34))
        (root / split / "horse").mkdir()
        shutil.copy(root / "horse" / "0.png", root / split / "horse")
    for kind in ("cat", "horse"):
        (root / "train").mkdir(exist_ok=True)
        (root / kind).rename(root / "train" / kind)
    with pytest.raises(DataError, match="has no training images left of 1 classes: horse"):
        prepare(root, tmp_path)
    shutil.rmtree(root / "val")
    shutil.copytree(root / "test", root / "val")
    with pytest.raises(DataError, match="there are no validation images that can be used .* are cut from its training images"):
        prepare(root, tmp_path)


def test_groups_are_divided_as_one_image():
    labels = {"train": [number % 2 for number in range(30)], "test": [0, 1] * 2}
    images = {split: [None] * len(own) for split, own in labels.items()}
    copies = [[("train", 0), ("test", 1)], [("train", 2), ("train", 4), ("train", 5)]]
    found = FoundImages(images=images, labels=labels, class_names=["a", "b"])
    parts = {split: indices for split, indices, _ in split_images(found, 0.2, 0.1, 0, copies)}
    assert sorted(parts["train"] + parts["validation"]) == list(range(30)) and parts["test"] == [0, 1, 2, 3]
    assert 0 in parts["train"]  # is left out afterwards
    assert {2, 4, 5} <= set(parts["train"]) or {2, 4, 5} <= set(parts["validation"])
    few = FoundImages(
        images={"all": [None] * 9}, labels={"all": [0] * 9}, class_names=["left", "right"], masks={"all": [None] * 9}
    )
    with pytest.raises(DataError, match="must be at least 4 different images that are no copies .* got fewer: 1"):
        split_images(few, 0.1, 0.1, 0, [[("all", number) for number in range(9)]])


def test_a_stream_leaves_out_copies_of_held_out_images(parquet_folder, capsys):
    """Two of the images to train on become copies of held-out ones, in another file format."""
    file = parquet_folder / "train-00001-of-00004.parquet"
    rows = datasets.Dataset.from_parquet(str(file)).cast_column("image", datasets.Image(decode=False)).to_list()
    for row, level in zip(rows, (103, 106)):
        content = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(content, format="BMP")
        row["image"]["bytes"] = content.getvalue()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "mid", "light"])})
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(file))
    settings = ImageSettings(dataset=str(parquet_folder), streaming=True, shuffle_buffer=6)
    stream = open_stream(CLASSES, settings, parquet_folder.parent / "work")
    crop = RandomCrop(TransformSettings(crop_min_area=1.0, crop_max_aspect=1.0), 16, seed=0)
    images = iter(StreamedImages(stream, settings, crop, 0, 1))
    levels = [int(next(images)["pixels"][0, 0, 0]) for _ in range(44)]
    assert sorted(levels) == sorted([level for level in range(24) if level not in (6, 7)] * 2)
    assert capsys.readouterr().out.count("is a copy of a held-out image") == 2  # in the first pass
    assert len(first_examples(stream, 30)) == 22
