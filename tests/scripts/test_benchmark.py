"""Figures of the benchmark, checked by hand; nothing is timed."""

import argparse
import re
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import benchmark_distill
import benchmark_explain
import benchmark_folder
import benchmark_prune
import benchmark_steps
import benchmark_students
import benchmark_table
from benchmark import main
from benchmark_edge import paired_difference
from benchmark_frontier import plot_frontier
from benchmark_programs import weight_bytes
from benchmark_students import (
    BY_NAME,
    CHANGED,
    MIDDLE,
    NUM_CLASSES,
    SIDE,
    STUDENTS,
    described,
    plot_students,
    rates_to_try,
    settled_rates,
)
from benchmark_trainings import mean_and_interval
from benchmark_widths import NAMES, described_widths, excess_over_line

from distill.data.examples import UNKNOWN, Example
from distill.pipeline.other_runs import on_the_frontier
from distill.pruning.costs import Costs
from edge.compare.candidates import ProgramCost
from edge.device.errors import ExplainedError
from edge.lower.recipes import RECIPES
from swin_hf import SwinHfForImageClassification


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


def test_a_hybrid_has_no_more_parameters_than_a_pure_student():
    sizes = {student.name: sum(part.numel() for part in student.build().parameters()) for student in STUDENTS}
    assert sizes["hybrid, widths 16 to 64, depths 2-1-2"] <= sizes["pure Swin, widths 24 to 96"]
    assert sizes[MIDDLE] <= sizes["pure Swin, widths 32 to 128"]
    assert len(BY_NAME) == len(STUDENTS)


def test_neither_half_nor_twice_of_a_settled_learning_rate_is_better(monkeypatch):
    trained = []
    best = {student.name: 0.004 for student in STUDENTS} | {MIDDLE: 0.0005}

    def train(worker, trainings, done, arguments, report):
        trained.extend((training.student, training.learning_rate, training.seed) for training in trainings)
        for training in trainings:
            done[training.key] = {"validation": 0.8 - abs(np.log2(training.learning_rate / best[training.student]))}

    monkeypatch.setattr(benchmark_students, "run_all", train)
    rates = settled_rates(argparse.Namespace(seeds=[5, 6], epochs=6, students=list(BY_NAME)), {}, {})
    assert rates == best | {student.name: 0.0005 for student in STUDENTS if student.kind == CHANGED}
    of_middle = [rate for name, rate, seed in trained if name == MIDDLE]
    assert of_middle == [0.004, 0.002, 0.008, 0.001, 0.0005, 0.00025] and {seed for *_, seed in trained} == {5}
    assert [rate for name, rate, _ in trained if name == STUDENTS[0].name] == [0.001, 0.0005, 0.002, 0.004, 0.008]
    trained.clear()
    changed = next(student.name for student in STUDENTS if student.kind == CHANGED)
    assert settled_rates(argparse.Namespace(seeds=[5], epochs=6, students=[changed]), {}, {}) == {changed: 0.0005}
    assert {name for name, *_ in trained} == {MIDDLE}


def test_learning_rates_are_tried_as_long_as_they_gain_a_point():
    assert rates_to_try({}, 0.002) == [0.002]
    assert rates_to_try({0.002: 0.5}, 0.002) == [0.001, 0.004]
    assert rates_to_try({0.002: 0.5, 0.001: 0.4, 0.004: 0.505}, 0.002) == []
    assert rates_to_try({0.002: 0.5, 0.001: 0.4, 0.004: 0.52}, 0.002) == [0.008]
    assert rates_to_try({0.002: 0.5, 0.001: 0.53, 0.004: 0.52}, 0.002) == [0.0005]
    assert rates_to_try({0.002: 0.5, 0.001: 0.53, 0.004: 0.4, 0.0005: 0.5}, 0.002) == []


def rows_of(students):
    figures = {"threads": 1, "macs": 2e6, "learning_rate": 0.002, "model": 0.5, "program": 0.5, "program_interval": None}
    return [
        {"name": student.name, "p50_ms": 0.1 + number, "parameters": 10_000, "validation_by_epoch": [0.1, 0.5]} | figures
        for number, student in enumerate(students)
    ]


def test_tables_and_pictures_need_neither_several_seeds_nor_all_kinds(tmp_path):
    for students in (STUDENTS, STUDENTS[:1]):
        rows = rows_of(students)
        assert described(rows).splitlines()[-1].endswith("| 50.0 | 50.0 |")
        plot_students(rows, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 10_000
    plot_frontier([{"name": "swin_edge_small", "p50_ms": 3.0, "top1": None}], tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").is_file()


def trained(name, seed=0, share=1.0, epochs=24):
    recipe = asdict(benchmark_distill.LADDER[name])
    return benchmark_distill.Training(name, recipe, seed, epochs, share, 0.004, "folder", "36 epochs at 0.002")


def test_the_best_combination_has_what_helped_on_the_validation_images():
    arguments = argparse.Namespace(seeds=[0, 1], epochs=24, learning_rate=0.004, teacher_epochs=36)
    worth = {name: 0.5 for name in benchmark_distill.LADDER} | {"DIST": 0.7, "KL + hints": 0.6, "selected weights": 0.55}
    done = {trained(name, seed).key: {"validation": value + 0.01 * seed} for name, value in worth.items() for seed in (0, 1)}
    best = benchmark_distill.best_of(benchmark_distill.LADDER, arguments, Path("folder"), done)
    assert best.options == {"kd_loss": "dist", "kd_weight": 2.0, "feature_loss": "hints"} and best.selected
    assert best.teachers == (benchmark_distill.HYBRID,)
    done = {key: {"validation": 0.5} for key in done}  # nothing helps
    best = benchmark_distill.best_of(benchmark_distill.LADDER, arguments, Path("folder"), done)
    assert best == benchmark_distill.LADDER["KL"]


def test_gains_are_those_of_the_same_seeds():
    trainings = [trained(name, seed) for seed in (0, 1, 2) for name in ("alone", "KL")] + [trained("alone", epochs=48)]
    tests = dict(zip([training.key for training in trainings], [0.50, 0.53, 0.60, 0.64, 0.40, 0.45, 0.7]))
    done = {key: {"test": value, "validation": value} for key, value in tests.items()}
    alone, kl, longer = benchmark_distill.rows_of(trainings, done)
    assert alone["test"] == pytest.approx(0.5) and "gain" not in alone and longer["interval"] is None
    assert kl["gain"] == pytest.approx(0.04)
    assert kl["gain_interval"][1] - kl["gain"] == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)  # t of 2 degrees
    table = benchmark_distill.described([alone, kl, longer])
    assert "| KL | 24 | 100% | 54.0 | 54.0 [" in table and table.endswith("| alone | 48 | 100% | 70.0 | 70.0 |  |")


def test_labels_are_left_out_for_a_share_of_the_images():
    examples = [Example(None, number % 10) for number in range(100)]
    recipe = benchmark_distill.LADDER["KL"]
    fewer = benchmark_distill.with_fewer_labels(examples, trained("KL", share=0.1), recipe, [])
    assert len(fewer) == 100 and sum(example.label != UNKNOWN for example in fewer) == 10
    assert all(own.label in (UNKNOWN, example.label) for own, example in zip(fewer, examples))
    alone = benchmark_distill.with_fewer_labels(examples, trained("alone", share=0.1), benchmark_distill.LADDER["alone"], [])
    assert len(alone) == 10 and benchmark_distill.with_fewer_labels(examples, trained("KL"), recipe, []) is examples


def test_steps_of_distillation_are_those_of_the_training(tmp_path):
    """All kinds run."""
    case = benchmark_steps.CASES["hybrids of the digit scenes"]
    steps = benchmark_steps.steps_of(case[0](), case[1](), SIDE, 4, torch.device("cpu"), tmp_path)
    times = benchmark_steps.interleaved(steps, 1, torch.device("cpu"))
    assert list(times) == ["teacher", "student", "distillation", "logits", "cache"] and min(times.values()) > 0
    row = {"name": "both", "side": 64, "batch_size": 4, "over_sum": 1.02, "cache_speed_up": 1.5}
    table = benchmark_steps.described([row | {f"{name}_ms": 2.0 for name in times}])
    assert table.endswith("| both | 4 x 64 px | 2.0 | 2.0 | 2.0 | 1.02 | 2.0 | 2.0 (1/1.5) |")


def test_a_folder_is_judged_split_by_split():
    runs = {"teacher": [0.8, 0.7, 0.9], "alone": [0.5, 0.6, 0.7], "with a teacher": [0.56, 0.64, 0.8]}
    about = {"images": {"train": 7}, "num_classes": 2}
    result = benchmark_folder.result_of({who: [about | {"test": test} for test in tests] for who, tests in runs.items()})
    assert result["alone"] == pytest.approx(0.6) and result["num_splits"] == 3
    half = 4.302653 * 0.0305505 / 3**0.5  # Student's t for 2 degrees of freedom; differences of 0.06, 0.04 and 0.1
    assert result["gain"] == pytest.approx(0.2 / 3)
    assert result["gain, interval"] == pytest.approx([0.2 / 3 - half, 0.2 / 3 + half], abs=1e-5)
    assert "| difference, points | 6.7 [-0.9, 14.3] |" in benchmark_folder.described(result)


class ByOperations:
    """In place of measured programs: the share of the student's operations."""

    def __init__(self, *_):
        self.config = benchmark_students.middle_hybrid().config
        self.costs = Costs(SwinHfForImageClassification, self.config, self.config.image_height_width)

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def __call__(self, shape):
        share = self.costs.of(shape, "macs") / self.costs.of(self.config, "macs")
        return ProgramCost(latency_ms=share, ratio=share, size_mb=share)


def test_a_student_that_was_thin_from_the_start_has_the_operations_of_the_budget():
    share = ByOperations()
    for budget in (0.8, 0.3):
        thin = benchmark_prune.thin_student(budget)
        assert share(thin).ratio == pytest.approx(budget, rel=0.03) and thin.stage_dims == share.config.stage_dims
        widths = [thin.block_widths(stage, block) for stage, depth in enumerate(thin.depths) for block in range(depth)]
        full = [share.config.block_widths(stage, block) for stage, depth in enumerate(thin.depths) for block in range(depth)]
        shares = [own.mlp_dim / other.mlp_dim for own, other in zip(widths, full)]
        assert max(shares) - min(shares) < 0.05  # all blocks alike, but for widths that are multiples of 4
        assert all(own.num_heads == other.num_heads for own, other in zip(widths, full))
    with pytest.raises(ExplainedError, match="within 3 % of 0.01 of the operations: 0.2"):
        benchmark_prune.thin_student(0.01)


def test_a_student_that_was_narrow_from_the_start_has_the_operations_of_the_budget():
    share = ByOperations()
    full = share.config
    for budget in (0.5, 0.3):
        narrow = benchmark_prune.narrow_student(budget)
        assert share(narrow).ratio == pytest.approx(budget, rel=0.03) and narrow.depths == full.depths
        shares = [narrow.stage_dim(stage) / full.stage_dim(stage) for stage in range(len(full.depths))]
        assert max(shares) < 0.8 and max(shares) - min(shares) < 0.15
        hidden = [
            narrow.block_widths(stage, block).mlp_dim / full.block_widths(stage, block).mlp_dim
            for stage, depth in enumerate(full.depths)
            for block in range(depth)
        ]
        assert max(hidden) - min(hidden) < 0.05 and max(hidden) < max(shares) + 0.05


def test_pruned_students_are_compared_with_thin_ones_seed_by_seed(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_prune, "ProgramCosts", ByOperations)
    shapes = {"student": ByOperations().config, "pruned once": benchmark_prune.thin_student(0.5)}
    shapes["thin from the start"] = shapes["pruned once"]
    methods = {"student": [0.9, 0.9], "pruned once": [0.8, 0.7], "thin from the start": [0.6, 0.6]}
    trainings, done = [], {}
    for method, accuracies in methods.items():
        budget = 1.0 if method == "student" else 0.5
        for seed, accuracy in enumerate(accuracies):
            trainings.append(benchmark_prune.Training(method, budget, seed, 8, 4, 0.004, "folder", "24 epochs at 0.002"))
            done[trainings[-1].key] = {"model": accuracy, "program": accuracy, "config": shapes[method].to_dict()}
    assert len(done) == 6
    rows = benchmark_prune.rows_of(trainings, done, argparse.Namespace(threads=1, repeats=1))
    assert [row["method"] for row in rows] == list(methods) and "gain" not in rows[0] and "gain" not in rows[2]
    half = 12.7062 * 0.0707107 / 2**0.5  # Student's t for 1 degree of freedom; differences of 0.2 and 0.1
    assert rows[1]["gain"] == pytest.approx(0.15) and rows[1]["latency_share"] == pytest.approx(0.5, rel=0.03)
    assert rows[1]["gain_interval"] == pytest.approx([0.15 - half, 0.15 + half], abs=1e-4)
    assert "| pruned once, 50% | " in benchmark_prune.described(rows)
    benchmark_prune.plot_budgets(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


class TableByOperations:
    """A latency table by which a model takes a millisecond for a million multiply-accumulates."""

    num_programs, median_error, largest_error, prices = 20, 0.01, 0.05, {"the rest": 1.0}

    def __call__(self, shape):
        return Costs(SwinHfForImageClassification, shape, shape.image_height_width).of(shape, "macs") / 1e6

    def described(self):
        return "by operations"


def test_what_a_latency_table_promises_is_compared_with_programs(monkeypatch):
    monkeypatch.setattr(benchmark_table, "table_of_this_machine", lambda folder, arguments: TableByOperations())
    monkeypatch.setattr(benchmark_table, "SHARES", (0.6,))

    class OffByATenth(ByOperations):
        def __init__(self, before, *_):
            self.config, self.costs = before, Costs(SwinHfForImageClassification, before, before.image_height_width)

        def __call__(self, shape):
            share = super().__call__(shape).ratio
            return ProgramCost(latency_ms=share, ratio=1.1 * share, size_mb=share)

    monkeypatch.setattr(benchmark_table, "ProgramCosts", OffByATenth)
    report = benchmark_table.measure_table(argparse.Namespace(threads=1, repeats=1, processes=1))
    (row,) = report["pruned"]
    assert row["by_table"] == pytest.approx(0.6, rel=0.03) and row["measured"] == pytest.approx(1.1 * row["by_table"])
    text = benchmark_table.described_table(report)
    assert "a table of 20 programs, off by 1.0% in the median and 5.0% at worst" in text and "| 0.6x | 0." in text


def test_widths_are_compared_with_the_line_through_the_multiples_of_16():
    excess = excess_over_line({16: 3.0, 24: 4.4, 32: 5.0, 48: 7.0, 50: 7.975})  # on the line 1 + width / 8
    assert excess == pytest.approx({16: 0.0, 24: 0.1, 32: 0.0, 48: 0.0, 50: 0.1})
    rows = [{"field": field, "width": width, "excess": own} for field in NAMES for width, own in excess.items()]
    rows += [{"field": field, "width": 28, "excess": -0.05} for field in NAMES]
    assert "| +10.0 % | -5.0 % | +10.0 % |" in described_widths(rows)


class Red:
    """A classifier whose probability of class 1 rises with the red in the left half of the images."""

    def __call__(self, pixels):
        red = pixels[:, 0, :, : pixels.shape[3] // 2].mean(dim=(1, 2))
        return torch.stack([torch.zeros_like(red), 20 * red - 10], dim=1)


def test_deletion_and_insertion_by_hand():
    sharp, blurred = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    sharp[:, 0, :, :4] = 1
    right_first = np.tile(np.arange(8.0), (8, 1))
    left_first = -right_first
    probability = (1 / (1 + np.exp(10 - 20 * np.linspace(0, 1, 9)))).tolist()  # while the left half comes or goes
    whole, none = [probability[-1]] * 8, [probability[0]] * 8
    for values, deleted, inserted in (
        (left_first, [*probability[::-1], *none], [*probability, *whole]),
        (right_first, [*whole, *probability[::-1]], [*none, *probability]),
    ):
        found = benchmark_explain.curves(Red(), sharp, blurred, values, 1)
        expected = [np.trapezoid(curve, np.linspace(0, 1, 17)) for curve in (deleted, inserted)]
        assert found == pytest.approx(expected, abs=1e-5)


def test_the_largest_value_points_into_the_box():
    values = np.zeros((6, 8))
    values[2, 5] = 1
    assert benchmark_explain.points_into(values, (5, 2, 6, 3)) and not benchmark_explain.points_into(values, (0, 0, 5, 6))
    boxes = benchmark_explain.test_boxes(3)
    assert len(boxes) == 3 and all(0 <= left < right <= 64 and 0 <= top < bottom <= 64 for left, top, right, bottom in boxes)


def test_the_ladder_is_drawn(tmp_path):
    row = {"name": "alone", "epochs": 24, "labels": 1.0, "num_seeds": 2, "test": 0.5, "interval": [0.4, 0.6]}
    benchmark_distill.plot_ladder([row, row | {"labels": 0.5, "interval": None}], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("distill --seeds 0 0", "--seeds must be different values, got 0 0"),
        ("distill --output_file OUT/new.json", "--output_file must leave .*new.png free for the picture"),
        ("students --seeds 0 0", "--seeds must be different values, got 0 0"),
        ("students --students ResNet", "invalid choice: 'ResNet'"),
        ("students --seeds -1", "must lie between 0 and 2\\*\\*32 - 1, got -1"),
        ("distill --learning_rate -1", "must be positive and finite, got -1"),
        ("distill --learning_rate nan", "must be positive and finite, got nan"),
        ("students --output_file OUT/results.png", "--output_file must end in .json, got .*results.png"),
        ("students --output_file OUT/new.json", "--output_file must leave .*new.png free for the picture"),
        ("edge --parts peers frontier --output_file OUT/new.json", "must leave .*new_frontier.png free for the picture"),
        ("edge --parts grid accuracy --output_file OUT/x.json", "--checkpoints must name folders that scripts/finetune.py"),
        ("edge --parts accuracy --checkpoints OUT --output_file OUT/x.json", "with their data.json, .* got '.*'"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, message, tmp_path, capsys):
    for name in ("new.png", "new_frontier.png"):
        (tmp_path / name).write_bytes(b"my picture")
    try:
        assert main(arguments.replace("OUT", str(tmp_path)).split()) == 1
    except SystemExit as ended:
        assert ended.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.png", "new_frontier.png"]
