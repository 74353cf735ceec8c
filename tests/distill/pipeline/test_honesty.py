"""What a report says beside accuracies: values by hand for likelihoods, temperatures, corruptions and changed classes."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from distill.data.examples import Example
from distill.pipeline.honesty import (
    changes_of,
    judge_probabilities,
    table_of_changes,
    table_of_probabilities,
    table_of_robustness,
)
from distill.pipeline.report import robustness_of
from distill.pipeline.robustness import CORRUPTIONS, corrupted, spread_evenly
from edge.device.scores import calibration_error


class Source:
    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def load(self) -> Image.Image:
        return Image.fromarray(self.pixels)


@pytest.fixture
def photograph() -> np.ndarray:
    random = np.random.default_rng(0)
    return gaussian_filter(random.uniform(0, 255, (64, 48, 3)), (3, 3, 0)).round().astype(np.uint8)


def after(kind: str, pixels: np.ndarray, number: int = 0) -> np.ndarray:
    examples = [Example(Source(np.zeros_like(pixels)), 0)] * number + [Example(Source(pixels), 0)]
    return np.asarray(corrupted(examples, kind)[number].source.load()).astype(float)


def test_probabilities_by_hand():
    # Two classes, two images, probabilities 3/4 of the first class: the first is right, the second wrong.
    logits, labels = np.array([[math.log(3), 0.0], [math.log(3), 0.0]]), np.array([0, 1])
    own = judge_probabilities("model", (logits, labels), temperature=2.0)
    assert own.nll == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert own.calibration_error == pytest.approx(0.25)  # confident of 3/4, right in 1/2
    first = math.sqrt(3) / (1 + math.sqrt(3))
    assert own.nll_with_it == pytest.approx(-(math.log(first) + math.log(1 - first)) / 2)
    assert own.calibration_error_with_it == pytest.approx(first - 0.5)
    assert table_of_probabilities([own])[0] == {
        **{"step": "model", "NLL": "0.837", "ECE": "25.0%"},
        **{"temperature": "2.00", "NLL with it": "0.730", "ECE with it": "13.4%"},
    }


def test_calibration_error_is_that_of_its_definition():
    random = np.random.default_rng(1)
    probabilities, labels = random.dirichlet(np.ones(4), 300), random.integers(0, 4, 300)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for number in range(15):
        inside = (confidence >= number / 15) & ((confidence < (number + 1) / 15) | (number == 14))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-9)
    assert calibration_error(np.eye(4), np.arange(4)) == 0
    assert np.isnan(calibration_error(np.full((2, 2), np.nan), np.arange(2)))


def test_temperatures_are_fitted_on_the_validation_images():
    random = np.random.default_rng(2)
    logits, labels = 5 * random.normal(size=(200, 3)), random.integers(0, 3, 200)
    labels[:150] = logits[:150].argmax(1)
    best = minimize_scalar(
        lambda temperature: -log_softmax(logits / temperature, axis=1)[np.arange(200), labels].mean(), bounds=(0.3, 8)
    )
    own = judge_probabilities("model", (logits[:50], labels[:50]), (logits, labels))
    assert own.temperature == pytest.approx(best.x, rel=1e-2) and own.temperature > 1.5


def test_corruptions_by_hand(photograph):
    brighter = after("brighter", photograph)
    np.testing.assert_allclose(brighter, np.minimum(photograph + 25.5, 255), atol=1)
    noise = after("noise", np.full((64, 64, 3), 128, np.uint8)) - 128
    assert 18 < noise.std() < 23 and abs(noise.mean()) < 1  # 0.08 of 255 is 20.4
    assert not np.array_equal(after("noise", photograph), after("noise", photograph, number=1))
    assert np.array_equal(after("noise", photograph), after("noise", photograph))
    blurred = after("blur", photograph)
    np.testing.assert_allclose(blurred, gaussian_filter(photograph.astype(float), (0.5, 0.5, 0), mode="mirror"), atol=1.5)
    file = io.BytesIO()
    Image.fromarray(photograph).save(file, "JPEG", quality=25)
    assert np.array_equal(after("JPEG", photograph), np.asarray(Image.open(file).convert("RGB")))


def test_large_images_are_blurred_in_proportion():
    dot = np.zeros((448, 448, 3), np.uint8)
    dot[224, 224] = 255
    blurred = after("blur", dot)[224, 224, 0]
    assert blurred == pytest.approx(255 / (2 * math.pi * 2**2), abs=1)  # a standard deviation of 2 pixels


def test_robustness_is_the_accuracy_after_each_corruption(photograph):
    dark, bright = (np.full((16, 16, 3), level, np.uint8) for level in (120, 160))
    examples = [Example(Source(dark), 0), Example(Source(bright), 1)]

    def answer(images: list[Example]) -> np.ndarray:  # 1 above 140 in the mean
        means = np.array([np.asarray(image.source.load()).mean() for image in images])
        return np.stack([140 - means, means - 140], axis=1)

    found = robustness_of("model", answer(examples).argmax(axis=1), answer, examples)
    assert found.accuracies["as they are"] == 1 and found.accuracies["brighter"] == 0.5 and found.n == 2
    assert list(found.accuracies) == ["as they are", *CORRUPTIONS]
    assert table_of_robustness([found])[0]["brighter"] == "50.0%"


def test_many_images_are_spread_evenly():
    assert spread_evenly(1000, 4) == [0, 250, 500, 750]
    assert spread_evenly(3, 4) == [0, 1, 2]


def test_changes_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    top = {
        "teacher": np.array([0, 0, 0, 1, 1, 0, 1]),
        "student": np.array([0, 0, 1, 2, 1, 1, 0]),
        "same": np.array([0, 0, 1, 2, 1, 1, 0]),
    }
    first, second = changes_of(top, labels, ["a", "b", "c", "never seen"])
    assert (first.before, first.after, first.n) == ("teacher", "student", 7)
    assert (first.broken, first.mended, first.other) == (1, 1, 2)  # images 2; 5; 3 and 6
    assert (first.worst_class, first.worst_before, first.worst_after, first.worst_n) == ("a", 0.75, 0.5, 4)
    assert (second.broken, second.mended, second.other) == (0, 0, 0)
    rows = table_of_changes([first, second])
    assert rows[0]["class that fell most"] == "a: 75.0% to 50.0% of 4" and rows[1]["class that fell most"] == "none"


def test_corrupted_images_are_images():
    for kind in CORRUPTIONS:
        pixels = torch.randint(0, 255, (20, 31, 3), dtype=torch.uint8).numpy()
        assert after(kind, pixels).shape == (20, 31, 3)
