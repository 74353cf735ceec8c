"""Temperatures: by hand, in the config, and in the probabilities of the image processor."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROCESSOR
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from edge.device.temperature import fit_temperature
from swin_hf import SwinHfConfig


def test_temperature_by_hand():
    # Three of four are right at odds of e**4 to 1: log(3) / 4 of that confidence is what they deserve.
    logits = np.tile([[4.0, 0.0]], (100, 1))
    labels = np.array([0, 0, 0, 1] * 25)
    assert fit_temperature(logits, labels) == pytest.approx(4 / np.log(3), rel=1e-3)
    assert fit_temperature(logits[:20], labels[:20]) == 1.0


def test_temperature_has_the_highest_likelihood():
    random = np.random.default_rng(0)
    logits, labels = 3 * random.normal(size=(300, 5)), random.integers(0, 5, 300)
    labels[:200] = logits[:200].argmax(1)

    def loss(temperature: float) -> float:
        return -log_softmax(logits / temperature, axis=1)[np.arange(300), labels].mean()

    assert fit_temperature(logits, labels) == pytest.approx(minimize_scalar(loss, bounds=(0.25, 8)).x, rel=1e-3)


def test_probabilities_of_the_processor_use_the_temperature():
    logits = torch.tensor([[2.0, 0.0]])
    config = SwinHfConfig(num_labels=2, calibration_temperature=2.0)
    best = PROCESSOR.post_process_image_classification(SimpleNamespace(logits=logits), config)[0][0]
    assert best["score"] == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-6)
