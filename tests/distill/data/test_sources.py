"""Sources of images: tables of paths, folders of masks, images without labels, and error messages."""

import csv
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from distill.data.finding import find_images
from distill.data.sources import DataError
from distill.data.splits import split_images
from distill.data.targets import CLASSES, MASKS, NOTHING
from edge.device.image import UnreadableImageError


def write_table(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_of_paths_are_read_from_their_own_folder(image_folder, suffix):
    files = sorted(image_folder.rglob("*.png"))
    rows = [{"file_name": str(file.relative_to(image_folder)), "class": file.parent.name} for file in files]
    found = find_images(write_table(image_folder / f"table{suffix}", rows), CLASSES)
    assert found.class_names == ["blue", "green", "red"]
    assert [found.class_names[label] for label in found.labels["all"]] == [file.parent.name for file in files]
    for source, file in zip(found.images["all"], files):
        assert source.load().tobytes() == Image.open(file).convert("RGB").tobytes()


def test_a_table_may_name_its_splits(image_folder):
    files = sorted(image_folder.rglob("*.png"))
    kinds = ["train", "train", "val", "test"]
    rows = [
        {"image": str(file.relative_to(image_folder)), "label": file.parent.name, "split": kinds[number % 4]}
        for number, file in enumerate(files)
    ]
    found = find_images(write_table(image_folder / "table.csv", rows), CLASSES)
    assert {split: len(images) for split, images in found.images.items()} == {"train": 24, "validation": 12, "test": 12}
    rows[0]["split"] = "practice"
    with pytest.raises(DataError, match='column "split" of .* must hold train, validation, test, .* got practice'):
        find_images(write_table(image_folder / "other.csv", rows), CLASSES)


def test_numbers_are_classes_too(image_folder):
    files = sorted(image_folder.rglob("*.png"))
    rows = [{"image": str(file.relative_to(image_folder)), "label": 10 * (number % 3)} for number, file in enumerate(files)]
    found = find_images(write_table(image_folder / "table.csv", rows), CLASSES)
    assert found.class_names == ["0", "10", "20"] and found.labels["all"][:4] == [0, 1, 2, 0]


def test_masks_are_paired_by_name(mask_folder):
    found = find_images(str(mask_folder), MASKS)
    assert found.class_names == ["left", "right"] and len(found.images["all"]) == 8
    for image, mask in zip(found.images["all"], found.masks["all"]):
        assert Path(image.name).stem == Path(mask.name).stem
        assert np.asarray(mask.load_mask())[:, [0, 23]].T.tolist() == [[0] * 20, [1] * 20]


@pytest.mark.parametrize("inside", [True, False], ids=["images/train", "train/images"])
def test_split_folders_of_masks(mask_folder, inside):
    for kind in ("images", "masks"):
        for number, file in enumerate(sorted((mask_folder / kind).iterdir())):
            split = "training" if number < 5 else "validation"
            target = mask_folder / kind / split if inside else mask_folder / split / kind
            target.mkdir(parents=True, exist_ok=True)
            file.rename(target / file.name)
        if not inside:
            (mask_folder / kind).rmdir()
    found = find_images(str(mask_folder), MASKS)
    assert {split: len(images) for split, images in found.masks.items()} == {"train": 5, "validation": 3}


def test_a_table_and_a_data_set_of_masks(mask_folder, tmp_path):
    rows = [{"image": f"images/{number}.jpg", "mask": f"masks/{number}.png"} for number in range(8)]
    names = mask_folder / "classes.txt"
    found = find_images(write_table(mask_folder / "table.csv", rows), MASKS, names)
    assert len(found.masks["all"]) == 8 and found.class_names == ["left", "right"]
    files = {key: [str(mask_folder / row[key]) for row in rows] for key in ("image", "mask")}
    saved = datasets.Dataset.from_dict(files).cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    saved.save_to_disk(tmp_path / "saved")
    again = find_images(str(tmp_path / "saved"), MASKS, names)
    assert np.array_equal(again.masks["all"][3].load_mask(), found.masks["all"][3].load_mask())


def test_a_mask_with_a_palette_gives_its_numbers(mask_folder):
    palette = Image.fromarray(np.eye(20, 24, dtype=np.uint8) * 7).convert("P")
    palette.putpalette([255, 0, 0] * 256)
    palette.putdata(list(np.eye(20, 24, dtype=np.uint8).ravel() * 7))
    palette.save(mask_folder / "masks" / "0.png")
    mask = find_images(str(mask_folder), MASKS).masks["all"][0].load_mask()
    assert np.array_equal(mask, np.eye(20, 24, dtype=np.uint8) * 7)


def test_what_is_wrong_with_masks_is_said(mask_folder):
    Image.new("RGB", (24, 20)).save(mask_folder / "masks" / "0.png")
    source = find_images(str(mask_folder), MASKS).masks["all"][0]
    with pytest.raises(UnreadableImageError, match="0.png must be a mask with a number from 0 to 255 in each pixel"):
        source.load_mask()
    (mask_folder / "masks" / "1.png").unlink()
    with pytest.raises(DataError, match="1 of 8 images have no mask of their name in .*masks: .*1.jpg"):
        find_images(str(mask_folder), MASKS)
    (mask_folder / "classes.txt").unlink()
    (mask_folder / "images" / "1.jpg").unlink()
    with pytest.raises(DataError, match="does not name its classes; give --class_names FILE"):
        find_images(str(mask_folder), MASKS)
    with pytest.raises(DataError, match="must have a folder images and a folder masks"):
        find_images(str(mask_folder / "images"), MASKS)


def test_split_folders_with_others_beside_them_are_refused(image_folder):
    for name in ("train", "test"):
        (image_folder / name).mkdir()
    with pytest.raises(DataError, match=r"has folders of splits \(test, train\) and others \(blue, green, red\); move"):
        find_images(str(image_folder), CLASSES)
    (image_folder / "test").rmdir()  # a single folder "train" may be a class of vehicles
    for file in (image_folder / "red").iterdir():
        (image_folder / "train" / file.name).write_bytes(file.read_bytes())
    assert find_images(str(image_folder), CLASSES).class_names == ["blue", "green", "red", "train"]


def test_a_held_out_split_without_images_is_cut_from_the_others(image_folder, tmp_path):
    (tmp_path / "all").mkdir()
    image_folder.rename(tmp_path / "all" / "train")
    (tmp_path / "all" / "test").mkdir()
    found = find_images(str(tmp_path / "all"), CLASSES)
    assert {split: len(own) for split, own, _ in split_images(found, 0.1, 0.2, 0)} == {
        "train": 33,
        "validation": 5,
        "test": 10,
    }


def test_empty_cells_are_named(image_folder):
    rows = [{"image": "a.png", "label": "x"}, {"image": "b.png", "label": None}]
    with pytest.raises(DataError, match='column "label" is empty in row 1 of the all rows'):
        find_images(write_table(image_folder / "table.csv", rows), CLASSES)
    rows = [{"image": None, "label": "x"}, {"image": "b.png", "label": "y"}]
    with pytest.raises(DataError, match='column "image" of .* is empty in row 0'):
        find_images(write_table(image_folder / "other.csv", rows), CLASSES)


def test_images_without_labels(image_folder, mask_folder):
    assert len(find_images(str(image_folder), NOTHING).images["all"]) == 48
    assert len(find_images(str(mask_folder / "images"), NOTHING).images["all"]) == 8
    with pytest.raises(DataError, match="has 0 images"):
        (mask_folder / "empty").mkdir()
        find_images(str(mask_folder / "empty"), NOTHING)


def test_tables_that_cannot_be_read_are_named(tmp_path, image_folder):
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="broken.parquet is not a table that can be read"):
        find_images(str(tmp_path / "broken.parquet"), CLASSES)
    table = write_table(tmp_path / "table.csv", [{"picture": "a.png", "label": "x"}])
    with pytest.raises(DataError, match="must have an Image column, or one with paths that is called image, images"):
        find_images(table, CLASSES)
    table = write_table(tmp_path / "other.csv", [{"image": "a.png", "kind": "x"}])
    with pytest.raises(DataError, match="must have an image column and a ClassLabel column, or one called label"):
        find_images(table, CLASSES)
