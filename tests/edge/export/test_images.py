"""Images of an export: where they come from, and which are refused."""

import numpy as np
import pytest
from PIL import Image

from edge.export.calibration import neighbour_correlation
from edge.export.export import ExportSettings, export
from edge.export.images import CalibrationError, load_images


def test_splits_are_taken_for_what_they_are_for(image_folder, tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "red"])})
    file = str(image_folder / "red" / "0.png")
    parts = {
        name: datasets.Dataset.from_dict({"image": [file] * count, "label": [1] * count}, features=features)
        for name, count in (("train", 5), ("test", 3))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert len(load_images(tmp_path / "saved", ["blue", "red"])) == 5
    assert len(load_images(tmp_path / "saved", ["blue", "red"], splits=("test", "validation"))) == 3
    with pytest.raises(CalibrationError, match="must have a split validation, got train, test; name one: .*SPLIT"):
        load_images(tmp_path / "saved", [], splits=("validation",))


def test_images_that_cannot_be_read_are_named(image_folder):
    (image_folder / "red" / "note.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"left out 1 of 49 images in .*note\.png cannot be read"):
        assert len(load_images(image_folder, [])) == 48


def test_noise_and_plain_images_are_refused(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    for name, make in {
        "noise": lambda: rng.integers(0, 256, (20, 20, 3), np.uint8),
        "plain": lambda: np.full((20, 20, 3), rng.integers(0, 256), np.uint8),
    }.items():
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.fromarray(make()).save(tmp_path / name / f"{number}.png")
    for name, message in (("noise", "these are noise"), ("plain", "of one colour|different ones")):
        with pytest.raises(CalibrationError, match=message):
            export(checkpoint, tmp_path / "edge", ExportSettings(recipe="int8", dataset=tmp_path / name))


def test_neighbours_of_photographs_correlate():
    from sklearn.datasets import load_sample_images

    for photograph in load_sample_images().images:
        assert neighbour_correlation(Image.fromarray(photograph)) > 0.8


def test_images_come_from_saved_data_sets_and_lists(image_folder, tmp_path):
    import datasets

    files = sorted(str(path) for path in image_folder.rglob("*.png"))[::16]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "green", "red"])})
    saved = datasets.Dataset.from_dict({"image": files, "label": [0, 1, 2]}, features=features)
    saved.save_to_disk(tmp_path / "saved")
    images = load_images(tmp_path / "saved", ["blue", "green", "red"])
    assert [image.label for image in images] == ["blue", "green", "red"]
    assert images[0].image.size == (24, 20)
    assert load_images([Image.new("L", (4, 4))], [])[0].image.mode == "RGB"
