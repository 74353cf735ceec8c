"""The size of an image before its crop is the model's."""

import pytest

from edge.device import image as device
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
