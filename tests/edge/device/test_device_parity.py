"""Parity by hand."""

import numpy as np
import pytest

from edge.device.parity import compare
from edge.device.runner import softmax


def test_parity_by_hand():
    reference = np.array([[1.0, -1.0], [3.0, -3.0]])
    parity = compare(reference + np.array([[0.1, -0.1], [0.3, -0.3]]), reference)
    assert parity.sqnr_db == pytest.approx(20.0)  # the error is a tenth of the signal
    assert parity.max_difference == pytest.approx(0.3)
    assert parity.agreement == 1.0
    assert compare(reference + 3, reference).sqnr_db > 180  # a constant for all classes changes nothing
    one_lost = np.array([[1.0, -1.0], [0.0, 0.0]])  # its energy is nine tenths of all, however exact the other image is
    assert compare(one_lost, reference).sqnr_db == pytest.approx(10 * np.log10(10 / 9))
    np.testing.assert_allclose(softmax(np.array([0.0, np.log(3)])), [0.25, 0.75])
