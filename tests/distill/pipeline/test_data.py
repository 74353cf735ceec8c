"""Finding, cleaning and splitting images."""

import datasets
import pytest
from PIL import Image

from distill.data.finding import find_images
from distill.data.sources import DataError
from distill.data.splits import ImageSettings
from distill.data.targets import CLASSES
from distill.pipeline.storing import store_images
from edge.device.labelled import open_folder


def prepare(source, tmp_path, **changes) -> datasets.DatasetDict:
    work_dir = tmp_path / "data"
    work_dir.mkdir()
    shares = {"validation_share": 0.15, "test_share": 0.25}
    settings = ImageSettings(**({"dataset": str(source)} | shares | changes))
    store_images(find_images(settings.dataset, CLASSES), settings, 16, work_dir)
    return datasets.load_from_disk(str(work_dir))


def pixels(split) -> list[bytes]:
    return [image.tobytes() for image in split["image"]]


def test_folder_is_split_by_class_without_overlap(image_folder, tmp_path):
    data = prepare(image_folder, tmp_path, test_share=0.25, validation_share=0.125)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 30, "validation": 6, "test": 12}
    assert [data["test"]["label"].count(label) for label in range(3)] == [4, 4, 4]
    assert data["train"].features["label"].names == ["blue", "green", "red"]
    everything = [image for split in data.values() for image in pixels(split)]
    assert len(set(everything)) == 48
    assert data["train"][0]["image"].size == (16, 16)


def test_split_is_fixed_by_the_seed(image_folder, tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    first, again = prepare(image_folder, tmp_path / "a", split_seed=0), prepare(image_folder, tmp_path / "b", split_seed=0)
    other = prepare(image_folder, tmp_path / "c", split_seed=1)
    assert pixels(first["test"]) == pixels(again["test"])
    assert pixels(first["test"]) != pixels(other["test"])


def test_samples_are_test_images_of_every_class(image_folder, tmp_path):
    data = prepare(image_folder, tmp_path)
    samples = sorted((tmp_path / "data" / "samples").iterdir())
    assert {path.name.rsplit("_", 1)[0] for path in samples} == {"blue", "green", "red"}
    assert (tmp_path / "data" / "samples" / "red_0.png") in samples
    assert len(samples) == min(20, len(data["test"]))
    held_out = set(pixels(data["test"]))
    assert all(Image.open(path).tobytes() in held_out for path in samples)
    training = set(pixels(data["train"]))
    assert all(Image.open(path).tobytes() in training for path in (tmp_path / "data" / "calibration").iterdir())


def test_samples_of_classes_with_odd_names_are_told_apart(image_folder, tmp_path):
    """Names that are alike in the file system, that it refuses, and that are longer than it takes."""
    names = ["a/b", "a-b", "a%2Fb", "..", "x" * 300, "Red", "red", "nul\0"]
    files = sorted(image_folder.rglob("*.png"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": list(map(str, files)), "label": [number % len(names) for number in range(len(files))]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    data = prepare(tmp_path / "saved", tmp_path)
    pixels_of = {name: set() for name in names}
    for row in data["test"]:
        pixels_of[names[row["label"]]].add(row["image"].tobytes())
    samples = [read() for read in open_folder(tmp_path / "data" / "samples", names, ())]
    assert len(samples) == len(data["test"]) and {sample.label for sample in samples} == set(names)
    assert all(sample.image.tobytes() in pixels_of[sample.label] for sample in samples)
    assert len({path.name.casefold() for path in (tmp_path / "data" / "samples").iterdir()}) == len(samples)


def test_digits_are_all_there():
    found = find_images("digits", CLASSES)
    assert len(found.images["all"]) == 1797
    assert found.class_names == list("0123456789")


def test_given_splits_are_kept(image_folder, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "split" / split).mkdir(parents=True)
    for folder in image_folder.iterdir():
        for split, numbers in (("train", range(10)), ("val", range(10, 16))):
            target = tmp_path / "split" / split / folder.name
            target.mkdir()
            for number in numbers:
                (folder / f"{number}.png").rename(target / f"{number}.png")
    data = prepare(tmp_path / "split", tmp_path, validation_share=0.2)
    # The only held-out split becomes the test; validation is taken from the training images.
    assert {split: len(rows) for split, rows in data.items()} == {"train": 24, "validation": 6, "test": 18}


def test_parquet_data_set_of_the_hub_layout_is_read(image_folder, tmp_path):
    files = sorted(image_folder.rglob("*.png"))
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["blue", "green", "red"])})
    columns = {"picture": [Image.open(file) for file in files], "kind": [file.parent.name for file in files]}
    (tmp_path / "repo").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "repo" / "train.parquet")
    data = prepare(tmp_path / "repo", tmp_path)
    assert sum(len(rows) for rows in data.values()) == 48


def test_unreadable_images_are_named_and_counted(image_folder, tmp_path, capsys):
    (image_folder / "red" / "broken.jpg").write_text("no image")
    data = prepare(image_folder, tmp_path)
    assert sum(len(rows) for rows in data.values()) == 48
    captured = capsys.readouterr()
    assert "broken.jpg cannot be read" in captured.out + captured.err
    assert "unreadable and skipped: 1" in captured.out


def test_too_many_unreadable_images_are_an_error(image_folder, tmp_path):
    for number in range(10):
        (image_folder / "red" / f"{number}.png").write_text("no image")
    with pytest.raises(DataError, match=r"10 of 48 images cannot be read, more than the allowed share of 5%.*png"):
        prepare(image_folder, tmp_path)


def test_one_class_and_tiny_classes_are_errors(image_folder):
    settings = ImageSettings(dataset=str(image_folder))
    for image in list((image_folder / "red").iterdir())[3:]:
        image.unlink()
    with pytest.raises(DataError, match=r"too few training images of 1 of 3 classes: red \(3\); every class needs at least 4"):
        find_images(settings.dataset, CLASSES)
    for name in ("red", "green"):
        for image in (image_folder / name).iterdir():
            image.unlink()
    with pytest.raises(DataError, match=r"has one class only \(blue\)"):
        find_images(settings.dataset, CLASSES)


def test_missing_and_empty_folders_are_errors(tmp_path):
    with pytest.raises(DataError, match="is neither a folder nor a .csv, .jsonl or .parquet table"):
        find_images(str(tmp_path / "nowhere"), CLASSES)
    with pytest.raises(DataError, match="holds no images in class folders"):
        find_images(str(tmp_path), CLASSES)


def test_unknown_hub_id_is_explained():
    with pytest.raises(DataError, match="neither digits, nor a local folder, nor a data set of the Hub"):
        find_images("nobody/nothing", CLASSES)
