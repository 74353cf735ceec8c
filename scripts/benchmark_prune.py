"""Is pruning worth it? A student pruned to budgets, in one step and in several, against one that was as thin from the start.

All learn from one teacher, as in distill/run.py: they start with some of its weights, and are distilled by the default losses.
All see the same augmented images, for the same number of epochs: those of the student, which is shown as well, and of its
recovery together. Budgets are shares of the multiply-accumulates. Rivals have as many: the thin one with the same share of
hidden channels, queries, keys and values in each block, so that pruning only decides which channels are left where; the
narrow one with the same share of all channels, those of the residual stream too. Latencies are those of the first seed's
shapes. Accuracies are those of the test scenes.
"""

import argparse
import json
import shutil
import tempfile
import time
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from benchmark_distill import HYBRID, Teaching, shown, teacher_folder, teaching_of
from benchmark_outputs import picture_beside
from benchmark_programs import size_of
from benchmark_students import SIDE, judged, middle_hybrid, save_start, settings_of
from benchmark_table import described_table, measure_table
from benchmark_trainings import begin_report, mean_and_interval, run_all
from benchmark_widths import described_widths, measure_widths
from transformers import set_seed

from distill.compress.teachers import Teachers, load_classifier
from distill.compress.weight_selection import select_weights
from distill.data.examples import EvaluationImages
from distill.pruning.apply import apply_plan, changed
from distill.pruning.budgets import plan_pruning
from distill.pruning.costs import Costs
from distill.pruning.importance import Importance, measure_importance
from distill.pruning.search import TOLERANCE
from distill.pruning.shapes import scaled
from distill.pruning.targets import BOTTLENECK, Target, parse_targets, steps_towards
from distill.training.finetune import find_training_images, finetune, look_through, make_objective
from distill.training.tasks.distillation import Distillation, DistillationSettings
from edge.compare.candidates import ProgramCosts
from edge.device.errors import ExplainedError
from edge.lower.recipes import RECIPES
from swin_hf import SwinHfConfig, SwinHfForImageClassification
from swin_hf.output_folders import write_json
from swin_hf.presets_swin_hf import PRESETS

STUDENT, ONE_SHOT, ITERATIVE = "student", "pruned once", "pruned in steps"
THIN, NARROW = "thin from the start", "narrow from the start"
BUDGETS = (0.8, 0.65, 0.5, 0.4, 0.3)
GAINS = (ONE_SHOT, ITERATIVE, NARROW)  # of which the difference to the thin student is shown
STEPS, ROUND_TO = 3, 4
BATCHES, BATCH_SIZE = 20, 64
HALVED = ("swin_tiny", "swinv2_tiny", "tiny_vit_21m")  # of 224 pixels, to half their latency
HIDDEN_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)  # of a narrow student, tried in this order
STYLES = {ONE_SHOT: ("C0", "s"), ITERATIVE: ("C2", "D"), THIN: ("C7", "o"), NARROW: ("C1", "v"), STUDENT: ("0.2", "*")}


@dataclass(frozen=True)
class Training:
    """A training to run.

    folder: with the teacher and the students of all seeds. teaching: how long and at which learning rate the teacher was
        trained.
    """

    method: str
    budget: float
    seed: int
    epochs: int
    recovery: int
    learning_rate: float
    folder: str
    teaching: str

    @property
    def key(self) -> str:
        how = f" to {self.budget:g} of the operations" if self.method != STUDENT else ""
        return (
            f"{self.method}{how}, seed {self.seed}, {self.epochs} + {self.recovery} epochs at {self.learning_rate:g}; "
            f"teacher of {self.teaching}"
        )

    @property
    def student(self) -> Path:
        return Path(self.folder) / self.teaching / f"student, seed {self.seed}, {self.epochs} epochs at {self.learning_rate:g}"

    @property
    def teacher(self) -> Path:
        return teacher_folder(self, HYBRID)


def benchmark_prune(arguments: argparse.Namespace) -> None:
    """Run the parts; trainings that are in `arguments.output_file` are not repeated.

    Raises:
        OutputError: the picture would replace a file of somebody's own.
    """
    picture = picture_beside(arguments.output_file)
    report = begin_report(arguments, "torch", "executorch", "transformers", "torch-pruning")
    if "widths" in arguments.parts:
        report["widths"] = measure_widths(arguments)
        write_json(arguments.output_file, report)
        print(described_widths(report["widths"]))
    if "table" in arguments.parts:
        report["table"] = measure_table(arguments)
        write_json(arguments.output_file, report)
        print(described_table(report["table"]))
    if "half" in arguments.parts:
        rows = report["half"] = []
        for name in HALVED:
            rows.append(halved(name, arguments))
            write_json(arguments.output_file, report)
        print(described_half(rows))
    if "budgets" in arguments.parts:
        budgets(arguments, report)
        print(described(report["rows"]))
        plot_budgets(report["rows"], picture)
    write_json(arguments.output_file, report)
    print(f"-> {arguments.output_file}")


def halved(name: str, arguments: argparse.Namespace) -> dict:
    """A published shape with random weights, pruned to half the latency of its int8 program, and timed again."""
    config = PRESETS[name](num_labels=1000)
    model, started = SwinHfForImageClassification(config).eval(), time.perf_counter()
    importance = Importance(channels=measure_importance(model, criterion="magnitude"))
    with ProgramCosts(config, RECIPES["int8"], arguments.threads, arguments.repeats) as measure:
        costs = Costs(SwinHfForImageClassification, config, config.image_height_width, measure)
        achieved = plan_pruning(config, importance, parse_targets("latency=0.5x"), costs)
        apply_plan(model, achieved.plan)
    seconds = time.perf_counter() - started
    with ProgramCosts(config, RECIPES["int8"], arguments.threads, arguments.repeats) as measure:  # both anew
        again = measure(achieved.config)
    row = {"name": name, "seconds": seconds, "again": again.ratio, "again_ms": again.latency_ms}
    return row | achieved.as_metrics() | {"removed_shares": achieved.removed_shares}


def budgets(arguments: argparse.Namespace, report: dict) -> None:
    """Train and prune for every budget and seed."""
    done, folder, teaching = report["trainings"], arguments.output_file.with_suffix(""), teaching_of(arguments)
    teacher = Teaching(HYBRID, arguments.teacher_epochs, arguments.learning_rate / 2, str(folder), teaching)
    run_all("teacher-worker", [teacher], done, arguments, report)
    lengths = {"epochs": arguments.epochs, "recovery": arguments.recovery_epochs}
    common = lengths | {"learning_rate": arguments.learning_rate, "folder": str(folder), "teaching": teaching}
    students = [Training(STUDENT, 1.0, seed, **common) for seed in arguments.seeds]
    run_all("prune-worker", students, done, arguments, report)
    pruned = [
        replace(own, method=method, budget=budget)
        for method in (ONE_SHOT, ITERATIVE)
        for own in students
        for budget in BUDGETS
    ]
    run_all("prune-worker", pruned, done, arguments, report)
    rivals = [replace(own, method=method, budget=budget) for method in SHAPES for own in students for budget in BUDGETS]
    run_all("prune-worker", rivals, done, arguments, report)
    report["rows"] = rows_of([*students, *pruned, *rivals], done, arguments)


def program_costs(arguments: argparse.Namespace) -> ProgramCosts:
    """Measures int8 programs, each in turns with the student's."""
    return ProgramCosts(middle_hybrid().config, RECIPES["int8"], arguments.threads, arguments.repeats)


def thin_student(budget: float) -> SwinHfConfig:
    """The student with the same share of its hidden channels, queries, keys and values in all blocks, that the budget allows.

    Raises:
        ExplainedError: no such student is within 3 % of the budget.
    """
    student = middle_hybrid().config
    return nearest([with_thin_blocks(student, 1 - 0.01 * step) for step in range(100)], student, budget)


def narrow_student(budget: float) -> SwinHfConfig:
    """The student with the same share of all channels, those of its residual stream too, that the budget allows.

    Where no such shape is near the budget, it has fewer hidden channels yet.

    Raises:
        ExplainedError: no such student is within 3 % of the budget.
    """
    student = middle_hybrid().config
    for hidden in HIDDEN_SHARES[:-1]:
        with suppress(ExplainedError):
            return nearest(narrow_row(student, hidden), student, budget)
    return nearest(narrow_row(student, HIDDEN_SHARES[-1]), student, budget)


def narrow_row(student: SwinHfConfig, hidden: float) -> list[SwinHfConfig]:
    return [scaled(student, 1 - 0.01 * step, 1.0, hidden, ROUND_TO) for step in range(100)]


def nearest(row: list[SwinHfConfig], student: SwinHfConfig, budget: float) -> SwinHfConfig:
    """The shape of a row, the largest first, whose operations are nearest to a share of the student's.

    Raises:
        ExplainedError: it is not within 3 % of it.
    """
    costs = Costs(SwinHfForImageClassification, student, student.image_height_width)
    shapes = list({shape.to_json_string(): shape for shape in row}.values())

    def share(shape: SwinHfConfig) -> float:
        return costs.of(shape, "macs") / costs.of(student, "macs")

    at = bisect_left(shapes, True, key=lambda shape: share(shape) <= budget)
    found = min(shapes[max(at - 1, 0) : at + 1], key=lambda shape: abs(share(shape) - budget))
    if abs(share(found) / budget - 1) > TOLERANCE:
        raise ExplainedError(f"no such student is within 3 % of {budget:g} of the operations: {share(found):.3f}")
    return found


def with_thin_blocks(config: SwinHfConfig, factor: float) -> SwinHfConfig:
    def thinner(width: int) -> int:
        return max(round(width * factor / ROUND_TO), 1) * ROUND_TO

    fields: dict[str, list[list[int]]] = {"block_mlp_dim": [], "block_head_dim": [], "block_value_head_dim": []}
    for stage, depth in enumerate(config.depths):
        own, has_heads = [config.block_widths(stage, block) for block in range(depth)], not config.is_convolutional(stage)
        fields["block_mlp_dim"].append([thinner(widths.mlp_dim) for widths in own])
        for name in ("head_dim", "value_head_dim"):
            fields[f"block_{name}"].append([thinner(getattr(widths, name)) if has_heads else 0 for widths in own])
    return changed(config, fields)


SHAPES = {THIN: thin_student, NARROW: narrow_student}


# -- workers -------------------------------------------------------------------------------------------------------------


def work_prune(arguments: argparse.Namespace) -> None:
    """One training or pruning with its recovery, printed as JSON."""
    own = Training(**arguments.training)
    set_seed(own.seed)
    with tempfile.TemporaryDirectory() as folder:
        start, trained = Path(folder) / "start", own.student if own.method == STUDENT else Path(folder) / "trained"
        if own.method in (ONE_SHOT, ITERATIVE):
            figures = prune_in_steps(own, 1 if own.method == ONE_SHOT else STEPS, Path(folder), trained)
        else:
            save_start(started(own), start)
            epochs = own.epochs if own.method == STUDENT else own.epochs + own.recovery
            shutil.rmtree(trained, ignore_errors=True)  # what an interrupted training left
            figures = finetune(settings_of(trained, start, own.seed, epochs, own.learning_rate, teacher=own.teacher))
        config = SwinHfForImageClassification.from_pretrained(trained).config
        print(json.dumps(judged(SwinHfForImageClassification, trained, figures) | {"config": config.to_dict()}))


def started(own: Training) -> SwinHfForImageClassification:
    """A dense model that starts with some of the teacher's weights."""
    teacher = SwinHfForImageClassification.from_pretrained(own.teacher)
    is_rival = own.method in SHAPES
    model = SwinHfForImageClassification(SHAPES[own.method](own.budget)) if is_rival else middle_hybrid()
    model.config.id2label, model.config.label2id = teacher.config.id2label, teacher.config.label2id
    select_weights(model, teacher)
    return model


def prune_in_steps(own: Training, steps: int, folder: Path, trained: Path) -> dict[str, float]:
    """Prune the student of the seed to the budget, each step followed by its part of the recovery."""
    student = own.student
    config = SwinHfConfig.from_pretrained(student)
    costs = Costs(SwinHfForImageClassification, config, config.image_height_width)
    targets = parse_targets(f"macs={own.budget}")
    wanted = steps_towards(targets, costs.excess(config, targets), steps)
    for number, step in enumerate(wanted, start=1):
        is_final = number == len(wanted)
        start, after = folder / f"start{number}", trained if is_final else folder / f"trained{number}"
        save_start(pruned(own, student, step, costs, is_final), start)
        figures = finetune(
            settings_of(after, start, own.seed, own.recovery / len(wanted), own.learning_rate / 2, teacher=own.teacher)
        )
        student = after
    return figures


def pruned(
    own: Training, student: Path, targets: tuple[Target, ...], costs: Costs, is_final: bool
) -> SwinHfForImageClassification:
    """By Taylor importance on the loss of distillation, on training scenes as they are."""
    settings = settings_of(student, student, own.seed, 1, own.learning_rate)
    stream, found = find_training_images(settings)
    data = look_through(settings, stream, found, known=True)
    classifier = load_classifier(student, data.class_names)
    teachers = Teachers([load_classifier(own.teacher, data.class_names)])
    objective = make_objective(settings, classifier.model.config, classifier.processor, data)
    learning = Distillation(objective, teachers, DistillationSettings())
    chosen = np.random.default_rng(own.seed).permutation(len(data.examples["train"]))[: BATCHES * BATCH_SIZE]
    images = EvaluationImages([data.examples["train"][number] for number in chosen], classifier.processor)

    def losses():
        for start in range(0, len(images), BATCH_SIZE):
            batch = settings.kind.collate([images[number] for number in range(start, min(start + BATCH_SIZE, len(images)))])
            yield learning.learn(classifier.model, batch["pixels"].float() / 255, batch["targets"]).loss

    importance = Importance(channels=measure_importance(classifier.model, losses()))
    achieved = plan_pruning(classifier.model.config, importance, targets, costs, BOTTLENECK, ROUND_TO, is_final)
    return apply_plan(classifier.model, achieved.plan)


# -- tables --------------------------------------------------------------------------------------------------------------


def rows_of(trainings: list[Training], done: dict[str, dict], arguments: argparse.Namespace) -> list[dict]:
    """Mean and interval of each method and budget, and of the difference of its programs to the thin ones, seed by seed.

    Latency, size and operations are those of the first seed's shape.
    """
    cases: dict[tuple[str, float], list[Training]] = {}
    for training in trainings:
        cases.setdefault((training.method, training.budget), []).append(training)
    rows = []
    with program_costs(arguments) as measure:
        for (method, budget), own in cases.items():
            runs = [done[training.key] for training in own]
            shape = SwinHfConfig.from_dict(runs[0]["config"])
            program = measure(shape)
            row = {"method": method, "budget": budget, "num_seeds": len(runs), "size_mb": program.size_mb}
            row |= {"latency_ms": program.latency_ms, "latency_share": program.ratio}
            row |= size_of(SwinHfForImageClassification(shape), SIDE)
            for figure in ("model", "program"):
                row[figure], row[f"{figure}_interval"] = mean_and_interval([run[figure] for run in runs])
            if method in GAINS:
                rivals = [done[training.key] for training in cases[THIN, budget]]
                differences = [run["program"] - rival["program"] for run, rival in zip(runs, rivals, strict=True)]
                row["gain"], row["gain_interval"] = mean_and_interval(differences)
            rows.append(row)
    return sorted(rows, key=lambda row: (-row["budget"], list(STYLES).index(row["method"])))


def described(rows: list[dict]) -> str:
    lines = [
        "",
        "| student | M MACs | K parameters | kB | int8, ms | of the student's | model, % | int8 program, % | against thin |",
    ]
    lines.append("|---" * 9 + "|")
    for row in rows:
        gain = shown(row["gain"], row["gain_interval"]) if "gain" in row else ""
        name = row["method"] if row["method"] == STUDENT else f"{row['method']}, {row['budget']:.0%}"
        lines.append(
            f"| {name} | {row['macs'] / 1e6:.2f} | {row['parameters'] / 1e3:.0f} | {1e3 * row['size_mb']:.0f} | "
            f"{row['latency_ms']:.3f} | {row['latency_share']:.2f} | {100 * row['model']:.1f} | "
            f"{shown(row['program'], row['program_interval'])} | {gain} |"
        )
    return "\n".join(lines)


def described_half(rows: list[dict]) -> str:
    lines = [
        "",
        "| model | latency, of the dense | again | int8, ms | of the MACs | of the parameters | seconds |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['latency']:.3f} | {row['again']:.3f} | {row['again_ms']:.2f} | {row['macs_share']:.2f} | "
            f"{row['params_share']:.2f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def plot_budgets(rows: list[dict], path: Path) -> None:
    """Accuracy of the int8 programs against their latency."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for method, (colour, marker) in STYLES.items():
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["latency_ms"])
        means = np.array([100 * row["program"] for row in own])
        spread = np.abs(np.array([row["program_interval"] or [row["program"]] * 2 for row in own]).T * 100 - means)
        latencies = [row["latency_ms"] for row in own]
        axes.errorbar(latencies, means, spread, fmt=f"{marker}-", color=colour, capsize=3, label=method)
    axes.set(xlabel="latency of the int8 program, ms", ylabel="accuracy on the test scenes, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
