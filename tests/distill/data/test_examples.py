"""Images of small data sets are decoded once, whatever is done with them, and large ones as often as they are needed."""

import numpy as np
import pytest
import torch
from conftest import PROCESSOR
from PIL import Image
from torch.utils.data import DataLoader

from distill.data import examples
from distill.data.examples import EvaluationImages, Example, Kept, TrainingImages, collate
from distill.data.transforms import RandomCrop, TransformSettings


class Picture:
    """A source that counts how often it was read."""

    def __init__(self, seed: int):
        self.pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)
        self.times = 0

    def load(self) -> Image.Image:
        self.times += 1
        return Image.fromarray(self.pixels)


@pytest.fixture
def pictures():
    return [Picture(seed) for seed in range(3)]


def both_kinds(pictures: list[Picture]) -> list:
    own = [Example(picture, label) for label, picture in enumerate(pictures)]
    return [TrainingImages(own, RandomCrop(TransformSettings(), 16, 0), repeats=2), EvaluationImages(own, PROCESSOR)]


@pytest.mark.parametrize("kind", [0, 1])
def test_small_data_sets_are_decoded_once(kind, pictures):
    images, fresh = both_kinds(pictures)[kind], both_kinds([Picture(seed) for seed in range(3)])[kind]
    for epoch in range(3):
        for number in range(len(images)):
            if kind == 0:
                images.begin_epoch(epoch)
                fresh = both_kinds([Picture(seed) for seed in range(3)])[kind]
                fresh.begin_epoch(epoch)
            row, expected = images[number], fresh[number]
            assert torch.equal(row["pixels"], expected["pixels"]) and row["targets"] == expected["targets"]
    assert [picture.times for picture in pictures] == [1, 1, 1]


def test_no_more_is_kept_than_fits():
    loaded = []
    kept = Kept(lambda number: loaded.append(number) or "x" * number, len, limit=10)
    assert [len(kept[number]) for number in (6, 5, 4, 6, 5, 4)] == [6, 5, 4, 6, 5, 4]
    assert loaded == [6, 5, 4, 5]  # 6 and 4 fill it


def test_workers_keep_nothing(pictures, monkeypatch):
    monkeypatch.setattr(examples, "get_worker_info", lambda: "a worker")
    images = both_kinds(pictures)[0]
    list(DataLoader(images, batch_size=2, collate_fn=collate))
    assert not images.decoded.kept and [picture.times for picture in pictures] == [2, 2, 2]
