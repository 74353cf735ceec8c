"""Figures of the benchmark, checked by hand; nothing is timed."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import benchmark_students
from benchmark_edge import paired_difference
from benchmark_frontier import on_the_frontier
from benchmark_programs import weight_bytes
from benchmark_students import (
    BY_NAME,
    CHANGED,
    HYBRID,
    NUM_CLASSES,
    PURE,
    SIDE,
    STUDENTS,
    TUNED,
    mean_and_interval,
    settled_rates,
)

from edge.lower.recipes import RECIPES


def test_paired_difference_by_hand():
    # 100 images, 90 right in both, 4 lost, 1 won: (1 - 4) / 100; about (1 - 4) / 102 with variance (5 + 1 - 9 / 102) / 102^2.
    model = np.array([True] * 94 + [False] * 6)
    program = np.array([True] * 90 + [False] * 4 + [True] + [False] * 5)
    figures = paired_difference(model, program)
    assert (figures["lost"], figures["won"], figures["num_images"]) == (4, 1, 100)
    assert figures["difference"] == pytest.approx(-0.03)
    assert figures["low"] == pytest.approx(-3 / 102 - 1.96 * np.sqrt(6 - 9 / 102) / 102)
    assert figures["high"] == pytest.approx(-3 / 102 + 1.96 * np.sqrt(6 - 9 / 102) / 102)


def test_answers_that_are_all_alike_leave_an_interval():
    figures = paired_difference(np.ones(449, bool), np.ones(449, bool))
    assert figures["difference"] == 0 and figures["high"] == -figures["low"] == pytest.approx(1.96 / 451)


def test_weight_bytes_by_hand(make_model):
    # Width 4, one block of one head, MLP of 8, patches of 2 x 2 x 3, windows of 2 x 2, three classes.
    sizes = {
        "image_size": 4,
        "patch_size": 2,
        "embed_dim": 4,
        "depths": [1],
        "num_heads": [1],
        "window_size": 2,
        "mlp_ratio": 2.0,
    }
    model = make_model(**sizes)
    matrices = {"q, k, v, o": 4 * (4 * 4), "fc1": 8 * 4, "fc2": 4 * 8, "classifier": 3 * 4}
    rows = 4 * 4 + 8 + 4 + 3
    others = 4 * 12 + 4 + (4 + 4) + 4 * 4 + 8 + 4 + 2 * (4 + 4) + 9 + (4 + 4) + 3  # patches, norms, biases, positions
    numbers = sum(matrices.values()) + others
    assert weight_bytes(model, RECIPES["fp32"]) == 4 * numbers
    assert weight_bytes(model, RECIPES["fp16"]) == 2 * numbers
    assert weight_bytes(model, RECIPES["int8"]) == sum(matrices.values()) + 4 * rows + 4 * others


def test_frontier_keeps_what_nothing_else_beats():
    points = [(3.0, 80.0), (1.0, 70.0), (2.0, 69.0), (3.0, 81.0), (4.0, 81.0), (5.0, 90.0)]
    assert on_the_frontier(points) == [(1.0, 70.0), (3.0, 81.0), (5.0, 90.0)]


def test_interval_of_three_seeds_by_hand():
    # Mean 0.5, deviation 0.1; Student's t for 2 degrees of freedom and 97.5 % is 4.303.
    mean, (low, high) = mean_and_interval([0.4, 0.5, 0.6])
    assert mean == pytest.approx(0.5)
    assert [mean - low, high - mean] == pytest.approx([4.303 * 0.1 / np.sqrt(3)] * 2, rel=1e-3)
    assert mean_and_interval([0.4]) == (0.4, None)


@pytest.mark.parametrize("student", STUDENTS, ids=lambda student: student.name)
def test_students_classify(student):
    model = student.build().eval()
    assert model(pixel_values=torch.rand(2, 3, SIDE, SIDE)).logits.shape == (2, NUM_CLASSES)


def test_a_hybrid_has_no_more_parameters_than_the_pure_student_of_its_widths():
    sizes = {student.name: sum(part.numel() for part in student.build().parameters()) for student in STUDENTS}
    for widths in ("widths 24 to 96", "widths 32 to 128"):
        assert sizes[f"hybrid, {widths}"] <= sizes[f"pure Swin, {widths}"]
    assert len(BY_NAME) == len(STUDENTS)
    assert [tuned.size for tuned in TUNED.values()][:3] == ["widths 24 to 96", "widths 32 to 128", "widths 32 to 256"]


def test_a_kind_that_learns_nothing_in_short_trainings_is_tried_in_long_ones(monkeypatch):
    trained = []

    def train(trainings, done, arguments, report):
        for training in trainings:
            trained.append((BY_NAME[training.student].kind, training.learning_rate, training.epochs))
            is_slow = training.student.startswith(PURE)
            accuracy = 0.1 + training.learning_rate if is_slow and training.epochs == 2 else 0.8 - training.learning_rate
            done[training.key] = {"validation": accuracy}

    monkeypatch.setattr(benchmark_students, "train_all", train)
    rates = settled_rates(argparse.Namespace(tuning_epochs=2, epochs=6, learning_rates=[0.01, 0.02]), {}, {})
    assert rates == dict.fromkeys(TUNED, 0.01) | {CHANGED: rates[HYBRID]}
    assert len(trained) == 2 * len(TUNED) + 2 and [run for run in trained if run[2] == 6] == [(PURE, 0.01, 6), (PURE, 0.02, 6)]
