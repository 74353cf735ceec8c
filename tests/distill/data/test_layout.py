"""Folders that are splits, classes, or neither; classes by their names."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data.finding import find_images
from distill.data.sources import DataError
from distill.data.splits import ImageSettings, prepare_splits
from distill.data.targets import CLASSES, MASKS, NOTHING
from distill.pipeline.inputs import data_files
from edge.device.names import split_of


@pytest.fixture
def write(tmp_path):
    """Writes images with pixels of their own: `write("train/cat", 6)`; returns the folder of all."""
    root, rng = tmp_path / "data", np.random.default_rng(0)

    def images(folder: str, count: int = 5) -> Path:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).save(root / folder / f"{number}.png")
        return root

    return images


def sizes(root: Path, targets=CLASSES) -> tuple[list[str], dict[str, int]]:
    found = find_images(str(root), targets)
    return found.class_names, {split: len(images) for split, images in found.images.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "train") for name in ("train", "Training", "training_set", "train2017", "TRAIN_DATA", "trainval")],
        *[(name, "validation") for name in ("val", "valid", "Dev", "eval", "evaluation-set", "val2017", "development")],
        *[(name, "test") for name in ("test", "Testing", "test_set", "test1", "holdout", "hold-out", "held_out")],
        *[
            (name, None)
            for name in ("trains", "trainer", "eva", "evaluate", "device", "contest", "latest", "tested", "value", "")
        ],
    ],
)
def test_names_of_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    "names",
    [
        *[("train", other) for other in ("eval", "dev", "holdout", "VALID")],
        *[("training_set", "test_set"), ("train2017", "val2017"), ("Train", "Test"), ("a/b/train", "a/b/test")],
    ],
)
def test_splits_under_any_of_their_names(write, names):
    for name in names:
        for kind in ("cat", "dog"):
            root = write(f"{name}/{kind}")
    (root / "README.md").write_text("about")
    (root / "labels.csv").write_text("a,b")
    classes, counts = sizes(root)
    assert classes == ["cat", "dog"]
    assert counts == {"train": 10, split_of(names[1].split("/")[-1]): 10}
    assert sizes(root, NOTHING)[1] == counts


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("learn/cat", "learn/dog", "exam/cat", "exam/dog"), r"folders \(exam, learn\) that hold folders of one name \(cat\)"),
        (("a/cat", "a/dog", "b/dog", "b/cow"), r"folders \(a, b\) that hold folders of one name \(dog\)"),
        (("cat", "dog", "exam/cat", "exam/dog"), r"folders \(exam\) that hold folders of one name \(cat\), or of the name"),
        (("train/cat", "train/dog", "exam/cat"), r"has folders of splits \(train\) and others \(exam\)"),
        (("train/cat", "train/dog", "test/cat", "more/cat"), r"has folders of splits \(test, train\) and others \(more\)"),
        (("cat", "dog", "test"), r"has folders of splits \(test\) and others \(cat, dog\)"),
        (("cat/train", "cat/test", "dog/train"), "must not have folders of splits inside of others, got cat/test"),
        (("train/cat", "train/dog/val", "test/cat"), "must not have folders of splits inside of others, got train/dog/val"),
        (
            ("train/train/cat", "train/val/cat", "test/cat"),
            "must not have folders of splits inside of others|has folders of splits",
        ),
        (("train/cat", "val/cat", "dev/cat"), "must have one validation split, got dev and val"),
        (("train/cat", "Train/cat"), "must have one train split, got Train and train"),
        (("test/cat", "val/cat"), r"has folders of splits \(test, validation\) but none of them is train"),
    ],
)
def test_splits_that_cannot_be_told_are_refused(write, folders, message):
    for folder in folders:
        root = write(folder)
    with pytest.raises(DataError, match=message):
        find_images(str(root), CLASSES)


def test_layouts_that_are_not_splits(write):
    """A class of trains, folders inside of class folders, and Tiny ImageNet's folder of images in each class."""
    for folder in ("car", "train"):
        root = write(folder)
    assert sizes(root) == (["car", "train"], {"all": 10})
    shutil.rmtree(root)
    for folder in ("cat/indoor", "cat/outdoor", "dog/garden", "dog"):
        write(folder)
    assert sizes(root) == (["cat", "dog"], {"all": 20})
    shutil.rmtree(root)
    for folder in ("train/n01/images", "train/n02/images", "val/images"):
        write(folder)
    found = find_images(str(root), CLASSES)
    assert found.class_names == ["n01", "n02"] and found.left_out == {"outside class folders": 5}


def test_a_test_folder_without_classes_is_left_out_and_counted(write):
    for folder in ("train/cat", "train/dog", "test"):
        root = write(folder)
    found = find_images(str(root), CLASSES)
    assert {split: len(images) for split, images in found.images.items()} == {"train": 10, "test": 0}
    assert found.left_out == {"outside class folders": 5}


def test_split_folders_of_masks_may_differ_in_their_names(mask_folder):
    for kind, names in (("images", ("train2017", "val2017")), ("masks", ("Train", "Valid"))):
        for number, file in enumerate(sorted((mask_folder / kind).iterdir())):
            (mask_folder / kind / names[number > 4]).mkdir(exist_ok=True)
            file.rename(mask_folder / kind / names[number > 4] / file.name)
    found = find_images(str(mask_folder), MASKS)
    assert {split: len(masks) for split, masks in found.masks.items()} == {"train": 5, "validation": 3}
    (mask_folder / "images" / "val2017").rename(mask_folder / "images" / "exam")
    with pytest.raises(DataError, match=r"has folders of splits \(train2017\) and others \(exam\)"):
        find_images(str(mask_folder), MASKS)


def test_hidden_and_unpaired_masks_are_left_out_and_counted(mask_folder):
    for kind in ("images", "masks"):
        (mask_folder / kind / ".ipynb_checkpoints").mkdir()
        shutil.copy(
            mask_folder / kind / f"0.{'jpg' if kind == 'images' else 'png'}", mask_folder / kind / ".ipynb_checkpoints"
        )
    (mask_folder / "images" / "._0.jpg").write_bytes(b"a Mac was here")
    (mask_folder / "images" / "0.jpg").rename(mask_folder / "images" / unicodedata.normalize("NFC", "café.jpg"))
    (mask_folder / "masks" / "0.png").rename(mask_folder / "masks" / unicodedata.normalize("NFD", "café.png"))
    (mask_folder / "images" / "7.jpg").unlink()
    found = find_images(str(mask_folder), MASKS)
    assert len(found.images["all"]) == len(found.masks["all"]) == 7
    assert found.left_out == {"hidden": 3, "outside the folders of images and masks, or a mask without an image": 1}
    shutil.copy(mask_folder / "masks" / "1.png", mask_folder / "masks" / "1.tif")
    with pytest.raises(DataError, match=r"an image must have one mask, got .*1\.png and .*1\.tif"):
        find_images(str(mask_folder), MASKS)


def test_one_class_in_two_spellings_of_unicode(write):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for folder in (f"train/{composed}", "train/tea", f"test/{decomposed}", "test/tea"):
        root = write(folder)
    found = find_images(str(root), CLASSES)
    assert found.class_names == [composed, "tea"]
    assert found.labels == {"train": [0] * 5 + [1] * 5, "test": [0] * 5 + [1] * 5}


def test_classes_without_training_images_are_all_named_or_left_out_when_asked(write):
    for folder, count in (
        ("train/cat", 5),
        ("train/dog", 5),
        ("train/cow", 3),
        ("train/emu", 0),
        ("test/yak", 4),
        ("test/cat", 2),
    ):
        root = write(folder, count)
    with pytest.raises(DataError, match=r"3 of 5 classes: cow \(3\), emu \(0\), yak \(0\); .*--drop_small_classes true"):
        find_images(str(root), CLASSES)
    found = find_images(str(root), CLASSES, drop_small_classes=True)
    assert found.class_names == ["cat", "dog"] and found.left_out == {"in a class with too few images": 7}
    assert found.labels == {"train": [0] * 5 + [1] * 5, "test": [0] * 2}
    assert [source.name.split("/")[-2] for source in found.images["train"]] == ["cat"] * 5 + ["dog"] * 5


def test_names_that_are_not_utf8(write, tmp_path):
    """Of a file they are escaped in records, of a class they are refused."""
    for folder in ("cat", "dog"):
        root = write(folder, 8)
    for name in (b"\xff.png", b"\xfe.png", b"notes.\xff"):
        (root / "cat" / os.fsdecode(name)).write_bytes(b"no image")
    found = find_images(str(root), CLASSES)
    settings = ImageSettings(dataset=str(root), max_unreadable_share=0.2, validation_share=0.2, test_share=0.2)
    prepare_splits(found, settings, tmp_path / "data.json", known=False)
    record = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert [error["error"].split(" cannot")[0][-12:] for error in record["skipped"]] == ["t/\\udcfe.png", "t/\\udcff.png"]
    assert record["left_out"] == {"suffix .\\udcff": 1}
    assert "cat/\\udcff.png" in [name for name, *_ in data_files(str(root))]
    (root / "cat").rename(root / os.fsdecode(b"c\xe9"))
    with pytest.raises(DataError, match="must have a name in UTF-8 to be a class; rename it"):
        find_images(str(root), CLASSES)


def test_classes_that_differ_in_case_are_noted(write):
    for folder in ("Cat", "cat", "dog"):
        root = write(folder)
    assert find_images(str(root), CLASSES).notes == (
        "classes Cat and cat differ in case only; merge them if they are one class",
    )
