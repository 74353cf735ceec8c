"""Tables of images: what their cells say is what is learned."""

import json
import unicodedata
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from distill.data.finding import find_images
from distill.data.sources import DataError
from distill.data.splits import ImageSettings, prepare_splits
from distill.data.targets import CLASSES


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def write(path: Path, labels: list, images: list[str] | None = None, separator: str = ",") -> str:
    images = images or [f"{number}.png" for number in range(len(labels))]
    if path.suffix == ".csv":
        lines = [separator.join(("image", "label")), *(separator.join(row) for row in zip(images, labels))]
    else:
        lines = [json.dumps({"image": image, "label": label}) for image, label in zip(images, labels)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


NAMES = ("None", "NA", "nan", "NaN", "null", "NULL", "01", "1", "1.0", "1e5", "100000.0", "True", "true", "-0", "0x1", "inf")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("name", NAMES)
def test_labels_are_text(folder, suffix, name):
    found = find_images(write(folder / f"table{suffix}", [name, "cat"] * 6), CLASSES)
    assert found.class_names == sorted([name, "cat"]) and found.labels["all"][0] == found.class_names.index(name)
    assert len(found.images["all"]) == 12


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_space_and_spelling_make_no_other_class(folder, suffix):
    forms = [" cat", "cat ", "cat", unicodedata.normalize("NFD", "café"), unicodedata.normalize("NFC", "café"), "\tcafé "]
    found = find_images(write(folder / f"table{suffix}", forms * 2), CLASSES)
    assert found.class_names == ["café", "cat"] and found.labels["all"] == [1, 1, 1, 0, 0, 0] * 2


def test_numbers_of_json_are_classes_as_they_are_written(folder):
    labels = ("1", "1.0", "true")
    lines = [f'{{"image": "{number}.png", "label": {labels[number % 3]}}}' for number in range(12)]
    (folder / "table.jsonl").write_text("\n".join(lines))
    assert find_images(str(folder / "table.jsonl"), CLASSES).class_names == ["1", "1.0", "true"]
    assert find_images(write(folder / "numbers.jsonl", [10, 9, 100] * 4), CLASSES).class_names == ["9", "10", "100"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("empty", ["", "  "])
def test_only_empty_cells_are_missing(folder, suffix, empty):
    with pytest.raises(DataError, match='column "label" is empty in row 1 of the all rows'):
        find_images(write(folder / f"table{suffix}", ["cat", empty] * 6), CLASSES)
    with pytest.raises(DataError, match='column "image" of .* is empty in row 0'):
        find_images(write(folder / f"other{suffix}", ["cat", "dog"], [empty, "1.png"]), CLASSES)


def test_empty_values_of_json_and_parquet(folder):
    with pytest.raises(DataError, match='column "label" is empty in row 1'):
        find_images(write(folder / "table.jsonl", ["cat", None] * 6), CLASSES)
    rows = {"image": [f"{n}.png" for n in range(12)], "label": [1.0, float("nan"), 2.0] * 4}
    datasets.Dataset.from_dict(rows).to_parquet(str(folder / "table.parquet"))
    with pytest.raises(DataError, match='column "label" is empty in row 1'):
        find_images(str(folder / "table.parquet"), CLASSES)


def test_habits_of_spreadsheets(folder):
    """A byte order mark, spaces after commas, quotes, empty lines and lines that end early."""
    rows = [f'{number}.png, {"cat" if number % 2 else "dog"},"a, b"' for number in range(11)]
    text = "\r\n".join(["\ufeffimage, label, note", *rows, "", "11.png, cat"])
    (folder / "table.csv").write_text(text, encoding="utf-8", newline="")
    found = find_images(str(folder / "table.csv"), CLASSES)
    assert found.class_names == ["cat", "dog"] and len(found.images["all"]) == 12
    assert found.images["all"][11].load().size == (4, 4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"image,label\n1.png,cat,dog\n", "line 2 has 3 cells, there are 2 columns"),
        ("b.csv", b"image,image\n1.png,2.png\n", "columns must have different names"),
        ("c.csv", "image,label\n1.png,caf\xe9\n".encode("latin-1"), "can't decode byte"),
        ("e.jsonl", b'{"image": "1.png", "label": "cat"}\n{"image": \n', "line 2: Expecting value"),
        ("f.jsonl", b'{"image": "1.png", "label": NaN}\n', "NaN is not JSON; write null"),
        ("g.jsonl", b'["1.png", "cat"]\n', "line 1 must be a JSON object"),
        ("h.jsonl", b"[" * 100_000, "is not a table that can be read"),
    ],
)
def test_tables_that_are_not_tables_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_images(str(tmp_path / name), CLASSES)


def test_splits_by_any_of_their_names(folder):
    rows = [f"{n}.png,{'cat' if n % 2 else 'dog'},{' Training' if n < 10 else 'holdout'}" for n in range(12)]
    (folder / "table.csv").write_text("\n".join(["image,label,split", *rows]))
    found = find_images(str(folder / "table.csv"), CLASSES)
    assert {split: len(images) for split, images in found.images.items()} == {"train": 10, "test": 2}
    (folder / "table.csv").write_text("\n".join(["image,label,split", *rows[:-1], "11.png,cat,"]))
    with pytest.raises(DataError, match='column "split" of .* must hold train, validation, test, one in each row'):
        find_images(str(folder / "table.csv"), CLASSES)


def test_hidden_missing_and_other_files_in_a_table(folder):
    (folder / ".cache").mkdir()
    (folder / "0.png").rename(folder / ".cache" / "0.png")
    (folder / "images.png").mkdir()
    names = [".cache/0.png", "images.png", "missing.png", "../" + folder.name + "/3.png", "./4.png", str(folder / "5.png")]
    path = write(folder / "table.csv", ["cat", "dog"] * 6, names + [f"{number}.png" for number in range(6, 12)])
    found = find_images(path, CLASSES)
    assert found.left_out == {"hidden": 1} and len(found.images["all"]) == 11
    own = ImageSettings(dataset=path, max_unreadable_share=0.3, validation_share=0.2, test_share=0.2)
    prepare_splits(found, own, folder / "work" / "data.json", known=False)
    errors = [entry["error"] for entry in json.loads((folder / "work" / "data.json").read_text())["skipped"]]
    assert "images.png is a folder; give the images in it" in errors[0] and "missing.png does not exist" in errors[1]
    assert len(errors) == 2


def test_names_of_files_in_either_form_of_unicode(folder):
    for number, (stored, named) in enumerate((("NFC", "NFD"), ("NFD", "NFC"))):
        (folder / f"{number}.png").rename(folder / unicodedata.normalize(stored, f"café{number}.png"))
        names = [unicodedata.normalize(named, f"café{number}.png"), *(f"{n}.png" for n in range(4, 12))]
        found = find_images(write(folder / "table.csv", ["cat", "dog", *["cat", "dog"] * 4][: len(names)], names), CLASSES)
        assert found.images["all"][0].load().size == (4, 4)


def test_a_folder_with_a_table_is_pointed_to_it(folder):
    table = write(folder / "metadata.csv", ["cat", "dog"] * 6)
    with pytest.raises(DataError, match=r"holds no images in class folders \(left out 13 files: .* --dataset .*metadata\.csv"):
        find_images(str(folder), CLASSES)
    assert len(find_images(table, CLASSES).images["all"]) == 12


def test_other_splits_of_a_stored_data_set_are_named(folder):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = datasets.Dataset.from_dict({"image": [str(folder / f"{n}.png") for n in range(12)], "label": [0, 1] * 6}, features)
    datasets.DatasetDict({"train": rows, "dev": rows, "extra": rows}).save_to_disk(folder / "a")
    found = find_images(str(folder / "a"), CLASSES)
    assert list(found.images) == ["train", "validation"] and found.left_out == {"in split extra": 12}
    datasets.DatasetDict({"extra": rows, "test": rows}).save_to_disk(folder / "b")
    with pytest.raises(DataError, match="must have a train split, got extra, test"):
        find_images(str(folder / "b"), CLASSES)
    datasets.DatasetDict({"extra": rows}).save_to_disk(folder / "c")
    assert list(find_images(str(folder / "c"), CLASSES).images) == ["all"]
