"""Digit scenes: splits without shared digits, masks and boxes that match each other and the image, reproducible scenes."""

import datasets
import numpy as np
import pytest
from sklearn.datasets import load_digits

from distill.data import digit_scenes
from distill.data.digit_scenes import DIGITS, DigitScenes, ScenePainter, split_digits
from distill.data.finding import find_images
from distill.data.splits import split_images
from distill.data.targets import CLASSES
from distill.training.settings import parse_finetune_settings


@pytest.fixture
def scenes(tmp_path, monkeypatch) -> datasets.DatasetDict:
    monkeypatch.setattr(digit_scenes, "SCENES", {"train": 40, "validation": 10, "test": 10})
    builder = DigitScenes(cache_dir=str(tmp_path))
    builder.download_and_prepare()
    return builder.as_dataset()


def test_splits_share_no_digit_and_have_all_classes():
    numbers, labels = split_digits(), load_digits().target
    assert {split: len(own) for split, own in numbers.items()} == DIGITS
    assert len(set().union(*numbers.values())) == len(labels)
    for own in numbers.values():
        assert np.bincount(labels[own]).min() >= 0.08 * len(own)


def test_splits_are_those_of_the_digits_configuration():
    settings = parse_finetune_settings(["--config", "digits", "--use_cpu", "true"]).images
    found = find_images("digits", CLASSES)
    split = split_images(found, settings.validation_share, settings.test_share, settings.split_seed)
    assert {name: sorted(own) for name, own in split_digits().items()} == {name: sorted(own) for name, own, _ in split}


def test_box_and_mask_fit_the_label_and_each_other(scenes):
    assert {split: len(rows) for split, rows in scenes.items()} == {"train": 40, "validation": 10, "test": 10}
    for row in scenes["train"]:
        mask = np.asarray(row["mask"])
        assert row["image"].size == (64, 64) and mask.shape == (64, 64)
        assert set(np.unique(mask)) == {0, row["label"] + 1}
        left, top, right, bottom = row["box"]
        outside = mask.copy()
        outside[top:bottom, left:right] = 0
        assert not outside.any()
        inside = mask[top:bottom, left:right] > 0
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        assert 12 <= bottom - top <= 64 and inside.sum() >= 60


def test_the_digit_stands_out_from_what_it_covers(scenes):
    """Its mean brightness differs from the rest of its box, by less than the 0.3 of its full colour."""
    differences = []
    for row in scenes["train"]:
        brightness, mask = np.asarray(row["image"], dtype=np.float64).mean(axis=2) / 255, np.asarray(row["mask"]) > 0
        left, top, right, bottom = row["box"]
        around = ~mask[top:bottom, left:right]
        differences.append(abs(brightness[mask].mean() - brightness[top:bottom, left:right][around].mean()))
    assert np.median(differences) > 0.15


def test_scenes_are_fixed_by_their_number():
    painter = ScenePainter(split_digits()["validation"])
    first, again, other = (painter.paint(np.random.default_rng((1, number))) for number in (0, 0, 1))
    assert first == again and first["image"] != other["image"]


def test_a_glyph_is_the_digit_of_scikit_learn():
    painter = ScenePainter([3])
    assert painter.labels == [int(load_digits().target[3])]
    assert np.array_equal(np.asarray(painter.glyphs[0]), np.round(load_digits().images[3] * 255 / 16))
