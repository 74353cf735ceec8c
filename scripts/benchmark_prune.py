"""Is pruning worth it? A student pruned to budgets, in one step and in several, against a dense one of the same latency.

All see the same augmented images, for the same number of epochs: those of the student and of its recovery together. Budgets
are shares of the multiply-accumulates; the dense rival is the same architecture, narrower, until its program takes as long as
that of the pruned one. Accuracies are those of the test scenes.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from benchmark_outputs import picture_beside
from benchmark_programs import size_of
from benchmark_students import SIDE, hybrid, judged, save_start, settings_of
from benchmark_trainings import begin_report, mean_and_interval, run_all
from benchmark_widths import described_widths, measure_widths
from torch import nn
from transformers import set_seed

from distill.data.examples import EvaluationImages
from distill.pruning.apply import apply_plan
from distill.pruning.budgets import Achieved, plan_pruning
from distill.pruning.costs import Costs
from distill.pruning.importance import Importance, measure_importance
from distill.pruning.search import Search
from distill.pruning.shapes import scaled
from distill.pruning.targets import BOTTLENECK, Target, parse_targets, steps_towards
from distill.training.finetune import find_training_images, finetune, look_through
from edge.compare.candidates import ProgramCosts
from edge.lower.recipes import RECIPES
from swin_hf import SwinHfConfig, SwinHfForImageClassification, SwinHfImageProcessorPil
from swin_hf.output_folders import write_json
from swin_hf.presets_swin_hf import PRESETS

DENSE, ONE_SHOT, ITERATIVE, RIVAL = "dense", "pruned once", "pruned in steps", "narrower dense rival"
BUDGETS = (0.8, 0.65, 0.5, 0.4, 0.3)
STEPS, ROUND_TO = 3, 4
BATCHES, BATCH_SIZE = 20, 64
HALVED = ("swin_tiny", "swinv2_tiny", "tiny_vit_21m")  # of 224 pixels, to half their latency
STYLES = {ONE_SHOT: ("C0", "s"), ITERATIVE: ("C2", "D"), RIVAL: ("C7", "o"), DENSE: ("0.2", "*")}


def make_student() -> SwinHfForImageClassification:
    return hybrid([24, 48, 96], [4, 1, 2])


@dataclass(frozen=True)
class Training:
    """A training to run. shape: the config of a rival, as JSON values. folder: with the dense students of all seeds."""

    method: str
    budget: float
    seed: int
    epochs: int
    recovery: int
    learning_rate: float
    folder: str
    shape: dict | None = None

    @property
    def key(self) -> str:
        budget = "" if self.method == DENSE else f" to {self.budget:g} of the operations"
        return (
            f"{self.method}{budget}, seed {self.seed}, {self.epochs} + {self.recovery} epochs, "
            f"learning rate {self.learning_rate:g}"
        )

    @property
    def dense(self) -> Path:
        return Path(self.folder) / f"seed {self.seed}, {self.epochs} epochs"


def benchmark_prune(arguments: argparse.Namespace) -> None:
    """Run the parts; trainings that are in `arguments.output_file` are not repeated.

    Raises:
        OutputError: the picture would replace a file of somebody's own.
    """
    picture = picture_beside(arguments.output_file)
    report = begin_report(arguments, "torch", "executorch", "transformers", "torch-pruning")
    for part, measure, describe in (("widths", measure_widths, described_widths), ("half", halved, described_half)):
        if part in arguments.parts:
            report[part] = measure(arguments)
            write_json(arguments.output_file, report)
            print(describe(report[part]))
    if "budgets" in arguments.parts:
        budgets(arguments, report)
        print(described(report["rows"]))
        plot_budgets(report["rows"], picture)
    write_json(arguments.output_file, report)
    print(f"-> {arguments.output_file}")


def halved(arguments: argparse.Namespace) -> list[dict]:
    """Published shapes with random weights, pruned to half the latency of their int8 programs, and timed again."""
    rows = []
    for name in HALVED:
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
        rows.append({"name": name, "seconds": seconds, "again": again.ratio, "again_ms": again.latency_ms})
        rows[-1] |= achieved.as_metrics() | {"removed_shares": achieved.removed_shares}
    return rows


def budgets(arguments: argparse.Namespace, report: dict) -> None:
    """Train and prune for every budget and seed."""
    done, folder = report["trainings"], arguments.output_file.with_suffix("")
    first = [
        Training(DENSE, 1.0, seed, arguments.epochs, arguments.recovery_epochs, arguments.learning_rate, str(folder))
        for seed in arguments.seeds
    ]
    run_all("prune-worker", first, done, arguments, report)
    pruned = [
        replace(own, method=method, budget=budget) for own in first for budget in BUDGETS for method in (ONE_SHOT, ITERATIVE)
    ]
    run_all("prune-worker", pruned, done, arguments, report)
    shapes = {budget: done[replace(first[0], method=ONE_SHOT, budget=budget).key]["config"] for budget in BUDGETS}
    rivals = report.setdefault("rivals", {})
    with rival_costs(arguments) as measure:
        for budget, shape in shapes.items():
            if str(budget) not in rivals:
                rivals[str(budget)] = rival_of(SwinHfConfig.from_dict(shape), measure).to_dict()
                write_json(arguments.output_file, report)
    dense = [replace(own, method=RIVAL, budget=budget, shape=rivals[str(budget)]) for own in first for budget in BUDGETS]
    run_all("prune-worker", dense, done, arguments, report)
    report["rows"] = rows_of([*first, *pruned, *dense], done, arguments)


def rival_costs(arguments: argparse.Namespace) -> ProgramCosts:
    return ProgramCosts(make_student().config, RECIPES["int8"], arguments.threads, arguments.repeats)


def rival_of(pruned: SwinHfConfig, measure: ProgramCosts) -> SwinHfConfig:
    """The dense architecture, scaled in width, whose program takes as long as the pruned one's."""
    config = make_student().config
    costs = Costs(SwinHfForImageClassification, config, config.image_height_width, measure)
    target = Target(measure="latency", value=measure(pruned).ratio, is_share=True)
    row = list({own.to_json_string(): own for own in (scaled(config, 1 - 0.01 * step, 1.0, 2) for step in range(80))}.values())
    search = Search(row.__getitem__, len(row) - 1, (target,), costs, "give another student")
    return search.config_at(search.place())


# -- workers -------------------------------------------------------------------------------------------------------------


def work_prune(arguments: argparse.Namespace) -> None:
    """One training or pruning with its recovery, printed as JSON."""
    own = Training(**arguments.training)
    set_seed(own.seed)
    with tempfile.TemporaryDirectory() as folder:
        start, trained = Path(folder) / "start", Path(folder) / "trained"
        if own.method in (DENSE, RIVAL):
            model = make_student() if own.method == DENSE else SwinHfForImageClassification(SwinHfConfig.from_dict(own.shape))
            save_start(model, start)
            trained = own.dense if own.method == DENSE else trained
            epochs = own.epochs if own.method == DENSE else own.epochs + own.recovery
            figures = finetune(settings_of(trained, start, own.seed, epochs, own.learning_rate))
        else:
            trained, figures = pruned_in_steps(own, 1 if own.method == ONE_SHOT else STEPS, Path(folder))
        config = SwinHfForImageClassification.from_pretrained(trained).config
        print(json.dumps(judged(SwinHfForImageClassification, trained, figures) | {"config": config.to_dict()}))


def pruned_in_steps(own: Training, steps: int, folder: Path) -> tuple[Path, dict[str, float]]:
    """Prune the dense student of the seed to the budget, each step followed by its part of the recovery."""
    model = SwinHfForImageClassification.from_pretrained(own.dense).eval()
    config = model.config
    costs = Costs(SwinHfForImageClassification, config, config.image_height_width)
    targets = parse_targets(f"macs={own.budget}")
    for step, wanted in enumerate(steps_towards(targets, costs.excess(config, targets), steps)):
        achieved = planned(model, own, wanted, costs)
        start, trained = folder / f"start{step}", folder / f"trained{step}"
        save_start(apply_plan(model, achieved.plan), start)
        figures = finetune(settings_of(trained, start, own.seed, own.recovery / steps, own.learning_rate / 2))
        model = SwinHfForImageClassification.from_pretrained(trained).eval()
    return trained, figures


def planned(model: SwinHfForImageClassification, own: Training, targets: tuple[Target, ...], costs: Costs) -> Achieved:
    """By Taylor importance on the labels of training scenes."""
    settings = settings_of(own.dense, own.dense, own.seed, 1, own.learning_rate)
    stream, found = find_training_images(settings)
    examples = look_through(settings, stream, found, known=True).examples["train"]
    chosen = np.random.default_rng(own.seed).permutation(len(examples))[: BATCHES * BATCH_SIZE]
    images = EvaluationImages([examples[number] for number in chosen], SwinHfImageProcessorPil.from_pretrained(own.dense))
    normal = SwinHfImageProcessorPil.from_pretrained(own.dense)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normal.image_mean, normal.image_std))

    def losses():
        for start in range(0, len(images), BATCH_SIZE):
            rows = [images[number] for number in range(start, min(start + BATCH_SIZE, len(images)))]
            pixels = torch.stack([row["pixels"] for row in rows]).float() / 255
            logits = model(pixel_values=(pixels - mean) / std).logits
            yield nn.functional.cross_entropy(logits, torch.stack([row["targets"] for row in rows]))

    importance = Importance(channels=measure_importance(model, losses()))
    return plan_pruning(model.config, importance, targets, costs, BOTTLENECK, ROUND_TO)


# -- tables --------------------------------------------------------------------------------------------------------------


def rows_of(trainings: list[Training], done: dict[str, dict], arguments: argparse.Namespace) -> list[dict]:
    """Mean and interval of each method and budget; latency, size and operations are those of the first seed's shape."""
    cases: dict[tuple[str, float], list[Training]] = {}
    for training in trainings:
        cases.setdefault((training.method, training.budget), []).append(training)
    rows = []
    with rival_costs(arguments) as measure:
        for (method, budget), own in cases.items():
            runs = [done[training.key] for training in own]
            shape = SwinHfConfig.from_dict(runs[0]["config"])
            program = measure(shape)
            row = {"method": method, "budget": budget, "num_seeds": len(runs), "size_mb": program.size_mb}
            row |= {"latency_ms": program.latency_ms, "latency_share": program.ratio}
            row |= size_of(SwinHfForImageClassification(shape), SIDE)
            for figure in ("model", "program"):
                row[figure], row[f"{figure}_interval"] = mean_and_interval([run[figure] for run in runs])
            rows.append(row)
    return sorted(rows, key=lambda row: (-row["budget"], list(STYLES).index(row["method"])))


def described(rows: list[dict]) -> str:
    lines = [
        "",
        "| student | M MACs | K parameters | int8, ms | of the dense | kB | model, % | int8 program, % |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        bounds = row["program_interval"]
        interval = " [{:.1f}, {:.1f}]".format(*(100 * bound for bound in bounds)) if bounds else ""
        budget = "" if row["method"] == DENSE else f", {row['budget']:.0%}"
        lines.append(
            f"| {row['method']}{budget} | {row['macs'] / 1e6:.1f} | {row['parameters'] / 1e3:.0f} | {row['latency_ms']:.3f} | "
            f"{row['latency_share']:.2f} | {1e3 * row['size_mb']:.0f} | {100 * row['model']:.1f} | "
            f"{100 * row['program']:.1f}{interval} |"
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
    axes.set(xlabel="latency of the int8 program, ms (median)", ylabel="accuracy on the test scenes, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
