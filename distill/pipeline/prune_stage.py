"""The stage that prunes the student, in one step or in several with distillation between them."""

# B images of a batch, H W their size

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from distill.compress.teachers import Classifier, Teachers, load_classifier
from distill.data.examples import EvaluationImages
from distill.pipeline.models import evaluate, save_classifier, train
from distill.pipeline.run_folder import Run
from distill.pruning.apply import apply_plan
from distill.pruning.budgets import plan_pruning, require_reachable
from distill.pruning.costs import Costs, tell_of_program
from distill.pruning.importance import Importance, importance_for
from distill.pruning.latency_table import LatencyTable
from distill.pruning.targets import Target, steps_towards
from distill.training.finetune import METRICS, make_objective, write_metrics
from distill.training.models import ModelChoice
from distill.training.tasks.distillation import Distillation, DistillationSettings
from edge.compare.candidates import ProgramCost, ProgramCosts
from edge.lower.recipes import find_recipe
from swin_hf import SwinHfConfig, SwinHfForImageClassification
from swin_hf.output_folders import write_json

PLAN, STEP = "pruning_plan_{}.json", "step.json"  # a plan is for what the step before it left


def check_prunable(run: Run, student: SwinHfConfig) -> None:
    """Find out before any training whether the target can be met with a student of this config.

    Raises:
        PruningError: it cannot.
    """
    own = run.settings.prune
    with program_costs(run, student) as measure:
        costs = costs_of(run, student, measure)
        announce_check(costs, own.targets)
        require_reachable(costs, own.targets, own.scope_names, own.round_to)


def announce_check(costs: Costs, targets: tuple[Target, ...]) -> None:
    """Say what takes a while before a run begins: programs are lowered to know whether the target can be met."""
    if costs.are_measured(targets):
        print(f"looking whether {', '.join(map(str, targets))} can be met, by programs of this machine", flush=True)


def build_pruned(run: Run, work_dir: Path) -> None:
    """Remove what matters least to what the student has learned, until the target is met."""
    if (work_dir / METRICS).is_file():  # a run that was interrupted while it removed the steps
        remove_steps(work_dir)
        return
    own, student = run.settings.prune, run.classifier("student")
    config = student.model.config
    with program_costs(run, config) as measure:
        costs = costs_of(run, config, measure)
        steps = steps_towards(own.targets, costs.excess(config, own.targets), own.prune_steps)
        figures = []
        for number, targets in enumerate(steps[:-1], start=1):
            figures.append(take_step(run, student, targets, costs, work_dir / f"step{number}", work_dir / PLAN.format(number)))
            student = load_classifier(work_dir / f"step{number}" / "recovered", run.class_names)
        student, last = prune_once(run, student, steps[-1], costs, work_dir / PLAN.format(len(steps)), is_final=True)
    save_classifier(work_dir, student)
    write_metrics(work_dir, last | {"steps": [*figures, last]})
    remove_steps(work_dir)


def remove_steps(work_dir: Path) -> None:
    for folder in work_dir.glob("step*"):
        shutil.rmtree(folder)


def take_step(
    run: Run, student: Classifier, targets: tuple[Target, ...], costs: Costs, folder: Path, plan: Path
) -> dict[str, Any]:
    """Prune, then distill for a while into `folder`/recovered; what an interrupted run has done is not repeated."""
    if (folder / STEP).is_file():
        return json.loads((folder / STEP).read_text())
    folder.mkdir(exist_ok=True)
    if not (folder / "pruned" / METRICS).is_file():
        pruned, figures = prune_once(run, student, targets, costs, plan, is_final=False)
        (folder / "pruned").mkdir(exist_ok=True)
        save_classifier(folder / "pruned", pruned)
        write_metrics(folder / "pruned", figures)
    figures = json.loads((folder / "pruned" / METRICS).read_text())
    settings, choice = run.settings, ModelChoice(name=str(folder / "pruned"), flag="student")
    epochs, rate = settings.prune.prune_step_epochs, settings.recover.recover_learning_rate
    train(settings.training(choice, epochs, rate, folder / "recovered"), run, run.teachers())
    figures["recovered"] = evaluate(run, load_classifier(folder / "recovered", run.class_names))
    write_json(folder / STEP, figures)
    return figures


def prune_once(
    run: Run, student: Classifier, targets: tuple[Target, ...], costs: Costs, plan: Path, is_final: bool
) -> tuple[Classifier, dict[str, Any]]:
    """The pruned student, and figures for `metrics.json`; what was kept is written to `plan`."""
    own, config = run.settings.prune, student.model.config
    set_seed(run.settings.trainer.seed)
    importance = importance_of(run, student)
    achieved = plan_pruning(config, importance, targets, costs, own.scope_names, own.round_to, is_final)
    achieved.plan.save(plan)
    pruned = Classifier(apply_plan(student.model, achieved.plan), student.processor, student.class_order).eval()
    removed = ", ".join(f"{share:.0%} of {scope}" for scope, share in achieved.removed_shares.items())
    print(f"      {', '.join(map(str, targets))}: {achieved.described()}; removed {removed}", flush=True)
    figures = {"targets": [str(target) for target in targets], "removed_shares": achieved.removed_shares}
    return pruned, achieved.as_metrics() | figures | {"evaluation": evaluate(run, pruned)}


def importance_of(run: Run, student: Classifier) -> Importance:
    """What matters in the student: to its distillation loss, and blocks to its outputs, on training images."""
    own = run.settings.prune
    size = 1 if own.criterion == "hessian" else None  # which squares the gradients of single images
    losses = distillation_losses(run, student, run.teachers(), size)
    inputs = (student.pixel_values(batch["pixels"].float() / 255) for batch in batches(run, student))
    return importance_for(student.model, own.scope_names, own.criterion, losses, inputs)


def distillation_losses(
    run: Run, student: Classifier, teachers: Teachers, batch_size: int | None = None
) -> Iterator[torch.Tensor]:
    """The distillation loss of the student's logits on batches of training images as they are."""
    settings = run.settings
    own = settings.distillation
    own = own if own.label_weight or own.logits_weight else DistillationSettings()  # of feature maps alone, none is left
    training = settings.training(settings.student.choice, 1, 1, run.folder)
    objective = Distillation(make_objective(training, student.model.config, student.processor, run.data()), teachers, own)
    for batch in batches(run, student, batch_size):
        yield objective.learn(student.model, batch["pixels"].float() / 255, batch["targets"]).loss


def batches(run: Run, student: Classifier, batch_size: int | None = None) -> Iterator[dict[str, torch.Tensor]]:
    """`--prune_batches` batches of training images as they are, in an order that the seed decides, or as many in others."""
    settings = run.settings
    images = EvaluationImages(run.data().examples["train"], student.processor)
    usual = min(settings.trainer.per_device_train_batch_size, len(images))
    order = np.random.default_rng(settings.trainer.seed).permutation(len(images))
    used = order[: min(settings.prune.prune_batches, len(images) // usual) * usual]
    collate = settings.training(settings.student.choice, 1, 1, run.folder).kind.collate
    size = batch_size or usual
    for start in range(0, len(used), size):
        yield collate([images[number] for number in used[start : start + size]])


def program_costs(
    run: Run,
    before: SwinHfConfig | None,
    known: dict[str, ProgramCost] | None = None,
    then: Callable[[], None] = lambda: None,
) -> ProgramCosts:
    """Measures programs by the recipe of the run, with the threads of its report, beside that of `before` if it is given.

    known: see `ProgramCosts`. then: is called when a program was measured.
    """

    def announce(cost: ProgramCost) -> None:
        tell_of_program(cost, indent="      ", with_latency=not run.settings.prune.latency_table)
        then()

    return ProgramCosts(
        before, find_recipe(run.settings.edge.recipe), run.settings.report.threads, known=known, announce=announce
    )


def costs_of(run: Run, before: SwinHfConfig, measure: ProgramCosts) -> Costs:
    """Costs of classifiers; their latencies are those of the run's table, if it has one.

    Raises:
        LatencyTableError: the table cannot be read, or is of another recipe or number of threads.
    """
    file = run.settings.prune.latency_table
    table = LatencyTable.load(Path(file), run.settings.edge.recipe, run.settings.report.threads) if file else None
    return Costs(SwinHfForImageClassification, before, before.image_height_width, measure, table)
