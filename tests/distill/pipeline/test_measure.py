"""Figures checked by hand: intervals of accuracies, and operations of a model."""

import numpy as np
import pytest
from conftest import PLAIN_PROCESSOR as PROCESSOR

from distill.compress.teachers import Classifier
from distill.data.splits import ImageSettings
from distill.pipeline.measure import count_macs
from distill.training.figures import accuracy_with_interval, evaluation_of
from edge.device.scores import wilson_interval


def test_wilson_interval_by_hand():
    # Wilson 1927 for 9 of 10: 0.5958 to 0.9821 at z = 1.96.
    assert wilson_interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    measured = accuracy_with_interval(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    assert (measured.correct, measured.n, measured.accuracy) == (3, 4, 0.75)


def test_macs_by_hand(make_model):
    model = make_model(depths=[1], num_heads=[2], image_size=16, patch_size=4)
    L, C, N, K = 16, 16, 16, 3  # one window holds all 16 tokens
    expected = L * 48 * C + 4 * L * C * C + 2 * L * N * C + 2 * L * C * 4 * C + C * K
    assert count_macs(Classifier(model, PROCESSOR), 16) == expected


def test_an_accuracy_has_its_interval_and_other_figures_have_none(tmp_path):
    of_folder, of_hub = ImageSettings(dataset=str(tmp_path)), ImageSettings(dataset="org/photos", dataset_name="Photos")
    assert evaluation_of("mean_iou", 0.5, 10, of_folder)["dataset"] == tmp_path.name  # not where it lies
    accuracy = evaluation_of("accuracy", 0.9, 10, of_hub, 0.5)
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    figure = {"metric": "mean_iou", "value": 0.5, "n": 10}
    assert evaluation_of("mean_iou", 0.5, 10, of_hub) == {"dataset": "Photos", "dataset_type": "org/photos", **figure}


@pytest.mark.parametrize(("correct", "doubtful"), [(0, True), (19, True), (28, True), (29, False), (60, False)])
def test_what_cannot_be_told_from_the_largest_class_is_doubted(correct, doubtful):
    # The largest class has 35 %; Wilson's intervals of 28 and 29 of 60 begin at 34.6 and 36.2 %.
    labels = np.array([0] * 18 + [1] * 21 + [2] * 21)
    predicted = np.where(np.arange(60) < correct, labels, labels + 1)
    measured = accuracy_with_interval(predicted, labels)
    assert measured.largest_class_share == pytest.approx(0.35)
    assert bool(measured.doubt) == doubtful
    if doubtful:
        assert "on 60 test images cannot be told from that of always naming the largest class, 35.0%" in measured.doubt
