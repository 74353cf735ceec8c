"""Verification on a device: labels of a folder, and the bundled self-test."""

import json
import shutil

import numpy as np
import pytest

from edge.device.artefact import ArtefactError, sha256_of
from edge.device.labelled import SplitError
from edge.device.runner import Runner
from edge.device.verify import VerificationError, self_test, verify
from edge.lower.self_test import bundle


def test_accuracy_is_counted_over_images_whose_label_is_known(artefact, image_folder):
    (image_folder / "red" / "note.png").write_text("no image")
    (image_folder / "yellow").mkdir()
    (image_folder / "green" / "0.png").rename(image_folder / "yellow" / "red_0.png")
    (image_folder / "green" / "1.png").rename(image_folder / "yellow" / "1.png")
    runner, right = Runner(artefact), 0
    for path in image_folder.rglob("*.png"):
        label = "red" if path.name == "red_0.png" else path.parent.name
        if path.name != "note.png":
            right += runner.manifest.labels[runner.logits(runner.pixel_values(path)).argmax()] == label
    assert verify(artefact, image_folder) == {
        "num_images": 48,
        "num_unreadable": 1,
        "num_labelled": 47,
        "accuracy": pytest.approx(right / 47),
        "unlabelled": "1 of 48 images lie in no folder named after a label and are not called <label>_<n>: yellow/1.png; the "
        "labels are blue, green, red",
    }


@pytest.mark.parametrize("around", ["", "archive/data"])
@pytest.mark.parametrize(("name", "other"), [("test", "val"), ("Holdout", "Train"), ("dev", "training_set")])
def test_held_out_images_are_taken_where_there_are_splits(artefact, image_folder, tmp_path, name, other, around):
    expected = verify(artefact, image_folder)
    root = tmp_path / "all" / around
    root.mkdir(parents=True)
    image_folder.rename(root / name)
    shutil.copytree(root / name, root / "train")
    (root / "train").rename(root / other)
    assert verify(artefact, tmp_path / "all") == expected
    shutil.rmtree(root / name)
    if other != "val":
        with pytest.raises(SplitError, match=f"must have a folder test or validation, got {other}; name one: "):
            verify(artefact, tmp_path / "all")


def test_a_class_may_be_named_like_a_split(artefact, image_folder):
    for name in ("test", "train"):
        shutil.copytree(image_folder / "red", image_folder / name)
    figures = verify(artefact, image_folder)
    assert (figures["num_images"], figures["num_labelled"]) == (80, 48)
    assert figures["unlabelled"].startswith("32 of 80 images lie in no folder named after a label")


def test_folders_without_known_labels_are_refused(artefact, image_folder, tmp_path):
    (image_folder / "red").rename(tmp_path / "yellow")
    with pytest.raises(VerificationError, match="dataset must hold images in class folders or .*, got none in .*yellow"):
        verify(artefact, tmp_path / "yellow")
    with pytest.raises(FileNotFoundError, match="no is not a folder"):
        verify(artefact, tmp_path / "no")


def test_self_test_passes_here_and_notices_other_outputs(artefact):
    num_images, tolerance = self_test(artefact)
    assert num_images == 3 and tolerance > 0
    runner = Runner(artefact)
    pixels = np.full(runner.shape("forward"), 0.5, np.float32)
    other = bundle(artefact / "model.pte", [pixels], [[y + 10 * tolerance for y in runner.outputs(pixels)]])
    (artefact / "self_test.bpte").write_bytes(other)
    content = json.loads((artefact / "edge.json").read_text())
    content["sha256"]["self_test.bpte"] = sha256_of(other)
    content["self_test"]["num_images"] = 1
    (artefact / "edge.json").write_text(json.dumps(content))
    with pytest.raises(VerificationError, match="differ from those of the machine that exported it"):
        self_test(artefact)
    (artefact / "self_test.bpte").unlink()
    with pytest.raises(ArtefactError, match=r"has no self_test\.bpte"):
        self_test(artefact)
