"""The bounds of a recipe at their limits, by hand; the names of methods."""

from dataclasses import replace

import numpy as np
import pytest

from edge.device.parity import Parity
from edge.export.bounds import Accuracy, count_right, missed_accuracy, missed_bound
from edge.export.prepare import methods_of
from edge.lower.recipes import RECIPES

RECIPE = replace(RECIPES["int8"], min_sqnr_db=20.0, min_agreement=0.9, max_accuracy_drop=0.02)


@pytest.mark.parametrize(
    ("sqnr_db", "agreement", "missed"),
    [
        (20.0, 0.9, ""),
        (19.9, 1.0, "must keep 20 dB and 90% agreement with the model on 40 images, got 19.9 dB and 100.0%"),
        (50.0, 0.89, "must keep 20 dB and 90% agreement with the model on 40 images, got 50.0 dB and 89.0%"),
        (20.0, None, ""),  # feature maps have no top class
        (float("nan"), 1.0, "must keep 20 dB and 90% agreement with the model on 40 images, got nan dB and 100.0%"),
    ],
)
def test_parity_misses_a_bound_only_below_it(sqnr_db, agreement, missed):
    parity = Parity(num_images=40, max_difference=0.1, sqnr_db=sqnr_db, agreement=agreement, kl=0.0)
    assert missed_bound(RECIPE, parity) == missed


@pytest.mark.parametrize(
    ("num_images", "lost", "is_missed"),
    [
        (200, 4, False),  # 2 %
        (200, 5, True),
        (50, 1, False),
        (50, 2, True),
        (60, 1, False),  # one image is allowed, whatever its share
        (49, 40, False),  # too few images to tell
        (200, -5, False),  # better than the model
    ],
)
def test_accuracy_may_drop_by_the_share_of_the_recipe_or_an_image(num_images, lost, is_missed):
    right = num_images - 9
    accuracy = Accuracy(num_images=num_images, model=right / num_images, program=(right - lost) / num_images)
    assert bool(missed_accuracy(RECIPE, accuracy)) == is_missed


def test_right_images_are_counted_by_hand():
    classes = np.array([0, 1, 1, 0])
    expected, logits = np.eye(2)[[0, 1, 1, 1]], np.eye(2)[[0, 0, 1, 1]]
    accuracy = count_right(expected, logits, classes)
    assert accuracy.figures == {"num_images": 4, "model": 0.75, "program": 0.5}


def test_methods_are_named_by_what_differs_from_the_first():
    methods = methods_of(((16, 16), (24, 20)), (1, 4))
    assert methods == {
        "forward": {"batch_size": 1, "height": 16, "width": 16},
        "forward_batch4": {"batch_size": 4, "height": 16, "width": 16},
        "forward_24x20": {"batch_size": 1, "height": 24, "width": 20},
        "forward_24x20_batch4": {"batch_size": 4, "height": 24, "width": 20},
    }
