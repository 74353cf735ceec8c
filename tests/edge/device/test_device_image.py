"""The size of an image before its crop is the model's; large ones are decoded no further than they need be."""

import numpy as np
import pytest
from PIL import Image

from edge.device import image as device
from edge.device.image import load_image
from swin_hf import image_processing_swin_hf as model


@pytest.mark.parametrize("crop_size", [(224, 224), (32, 48), (48, 32)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_size_before_the_crop_is_that_of_the_image_processor(crop_size, crop_pct):
    for height in (1, 37, 224, 301, 1000):
        for width in (1, 36, 224, 511):
            expected = model.resized_to_crop(height, width, crop_size, crop_pct)
            assert device.resized_to_crop(height, width, crop_size, crop_pct) == expected


def test_height_comes_first():
    assert device.resized_to_crop(100, 200, (50, 50), 1.0) == (50, 100)


def test_large_jpegs_are_decoded_at_a_part_of_their_size_if_that_is_enough(tmp_path):
    picture = Image.effect_noise((1600, 1200), 60).resize((1600, 1200)).convert("RGB")
    for name in ("a.jpg", "a.png"):
        picture.save(tmp_path / name)
    assert load_image(tmp_path / "a.jpg").size == (1600, 1200)
    assert load_image(tmp_path / "a.jpg", at_least=300).size == (400, 300)  # a quarter: an eighth would have 150
    assert load_image(tmp_path / "a.jpg", at_least=1201).size == (1600, 1200)
    assert load_image(tmp_path / "a.png", at_least=300).size == (1600, 1200)
    small = np.asarray(load_image(tmp_path / "a.jpg", at_least=300).resize((40, 30)), float)
    assert np.abs(small - np.asarray(load_image(tmp_path / "a.jpg").resize((40, 30)), float)).mean() < 1
