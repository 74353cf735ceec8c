"""Prune a checkpoint that somebody has, without a run: importance on images of a folder, an ordinary checkpoint out."""

# B images of a batch, H W pixels

import itertools
import warnings
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig

from distill.compress.channels import encoder_of
from distill.compress.teachers import Classifier, Segmenter, load_classifier, load_segmenter
from distill.data.examples import UNKNOWN, EvaluationImages, Example
from distill.data.finding import find_images, has_no_classes
from distill.data.sources import DataError, FoundImages
from distill.data.targets import CLASSES, MASKS, NOTHING
from distill.pruning.apply import apply_plan, of_config
from distill.pruning.budgets import Achieved, plan_pruning, require_reachable
from distill.pruning.costs import Costs, tell_of_program
from distill.pruning.importance import Importance, importance_for
from distill.pruning.latency_table import LatencyTable
from distill.pruning.plan import PruningPlan
from distill.pruning.targets import PruningError, Target, need_programs
from distill.public_names import public_name
from distill.published import loadable
from edge.compare.candidates import ProgramCosts
from edge.device.image import UnreadableImageError
from edge.lower.recipes import find_recipe
from swin_hf import SwinHfForImageClassification, SwinHfUperNetConfig
from swin_hf.output_folders import check_apart, new_folder, write_json

PLAN, FIGURES = "pruning_plan.json", "pruning.json"
BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class CheckpointPruning:
    """How to prune a checkpoint.

    dataset: a folder, a data set or an embedded one, as of a training; None: only `plan`, or importance by magnitude.
    num_images: see `examples_of`.
    plan: a file of an earlier pruning, applied as it is; then there is no target.
    recipe, threads: of the programs whose latency or size a target names.
    latency_table: where latencies are taken from instead.
    """

    checkpoint: str
    output_dir: Path
    targets: tuple[Target, ...]
    scopes: tuple[str, ...]
    criterion: str
    round_to: int
    dataset: str | None
    num_images: int
    plan: Path | None
    recipe: str
    threads: int
    latency_table: Path | None
    seed: int

    def read_table(self) -> LatencyTable | None:
        """Where latencies are taken from, if not from programs on this machine.

        Raises:
            LatencyTableError: it cannot be read, or is of another recipe or number of threads.
        """
        return None if self.latency_table is None else LatencyTable.load(self.latency_table, self.recipe, self.threads)


def prune_checkpoint(settings: CheckpointPruning) -> dict[str, Any]:
    """Write the pruned model with its processor, its plan and figures to a new folder; returns the figures, as JSON values.

    Raises:
        TeacherError: the checkpoint cannot be loaded, or is no classifier of images or pixels.
        NotOursError: it is none of our models.
        PruningError, PlanError: the target cannot be met, or the plan is for another model.
        LatencyTableError: the table cannot be read, or is of other models.
        DataError: the images cannot be found.
        OutputError: the folder is not free, or is one of the inputs.
    """
    inputs = {"checkpoint": settings.checkpoint, "dataset": settings.dataset, "plan": settings.plan}
    inputs["latency_table"] = settings.latency_table
    check_apart(settings.output_dir, "OUT", **inputs)
    with new_folder(settings.output_dir) as work_dir:
        plan = None if settings.plan is None else PruningPlan.load(settings.plan)
        table = settings.read_table()
        before = load_prunable(settings.checkpoint)
        if table is not None:
            require_priced(table, before)
        of_importance, of_comparison = examples_of(settings, before)
        figures = record_of(settings)
        if plan is None:
            achieved = planned(settings, before, of_importance, table)
            plan = achieved.plan
            figures |= achieved.as_metrics() | {"removed_shares": achieved.removed_shares}
            figures["described"] = achieved.described()
        after = type(before)(apply_plan(before.model, plan), before.processor, before.class_order).eval()
        if of_comparison:
            figures |= compared(before, after, of_comparison)
        after.model.save_pretrained(work_dir)
        after.processor.save_pretrained(work_dir)
        plan.save(work_dir / PLAN)
        write_json(work_dir / FIGURES, figures)
    height, width = after.size
    return figures | {"image_size": height if height == width else None, "is_segmenter": isinstance(after, Segmenter)}


def record_of(settings: CheckpointPruning) -> dict[str, Any]:
    """What was asked for, as JSON values, without folders of this machine."""
    own = {"checkpoint": public_name(settings.checkpoint), "dataset": settings.dataset and public_name(settings.dataset)}
    if settings.plan is not None:
        return own | {"plan": settings.plan.name}
    own |= {"targets": [str(target) for target in settings.targets], "scopes": list(settings.scopes)}
    names = ("criterion", "round_to", "num_images", "seed")
    if settings.latency_table is not None:
        own |= {"latency_table": settings.latency_table.name}
    if need_programs(settings.targets, settings.latency_table is not None):
        names += ("recipe", "threads")
    return own | {name: getattr(settings, name) for name in names}


def load_prunable(checkpoint: str) -> Classifier:
    """A classifier of images, or of pixels, that is one of our models.

    Raises:
        TeacherError: it cannot be loaded.
        NotOursError: it is none of ours.
    """
    try:
        is_segmenter = AutoConfig.from_pretrained(loadable(checkpoint)).model_type == SwinHfUperNetConfig.model_type
    except Exception:  # whatever is wrong with the checkpoint, loading it explains it
        is_segmenter = False
    classifier = (load_segmenter if is_segmenter else load_classifier)(checkpoint, None)
    encoder_of(classifier.model)
    return classifier


def examples_of(settings: CheckpointPruning, classifier: Classifier) -> tuple[list[Example], list[Example]]:
    """Images that importance is measured on, and others that show what changed: of the test split, if there is one.

    At most `num_images` each, in an order that the seed decides; of few images half are for importance. Images that cannot be
    read are left out. Labels are numbers of the model's classes where the data set has just these, otherwise unknown.
    """
    if settings.dataset is None:
        return [], []
    found = _found(settings.dataset, isinstance(classifier, Segmenter))
    names, numbers = classifier.class_names, None
    if found.masks is None and found.class_names and sorted(names) == sorted(found.class_names):
        numbers = [names.index(name) for name in found.class_names]
    rng = np.random.default_rng(settings.seed)

    def drawn(split: str) -> Iterator[Example]:
        sources, labels = found.images[split], found.labels[split]
        for at in rng.permutation(len(sources)):
            try:
                sources[at].load()
            except UnreadableImageError as error:
                warnings.warn(f"left out an image: {error}", stacklevel=2)
                continue
            yield Example(sources[at], UNKNOWN if numbers is None else numbers[labels[at]])

    if settings.plan is not None:
        return [], list(itertools.islice(drawn("test" if "test" in found.images else found.whole), settings.num_images))
    if "test" in found.images:
        return tuple(list(itertools.islice(drawn(split), settings.num_images)) for split in (found.whole, "test"))
    every = list(itertools.islice(drawn(found.whole), 2 * settings.num_images))
    return every[: (len(every) + 1) // 2], every[(len(every) + 1) // 2 :]


def _found(dataset: str, has_masks: bool) -> FoundImages:
    """With classes or masks if the data set has such, otherwise only images.

    Raises:
        DataError: there is no such data set.
    """
    if has_masks or not has_no_classes(dataset):
        with suppress(DataError):
            return find_images(dataset, MASKS if has_masks else CLASSES)
    return find_images(dataset, NOTHING)


def require_priced(table: LatencyTable, classifier: Classifier) -> None:
    """Find out whether a table prices a model.

    Raises:
        PruningError: it is a segmenter, whose parts no table prices.
        LatencyTableError: the table is for other models.
    """
    if not isinstance(classifier.model, SwinHfForImageClassification):
        raise PruningError("a latency table prices classifiers, got a segmenter; give a target of macs or params")
    table(classifier.model.config)


def planned(
    settings: CheckpointPruning, classifier: Classifier, images: list[Example], table: LatencyTable | None
) -> Achieved:
    """The plan that meets the targets.

    Raises:
        PruningError: there is none, or importance needs images.
    """
    model, config = classifier.model, encoder_of(classifier.model).config
    if not images and (settings.criterion != "magnitude" or "blocks" in settings.scopes):
        raise PruningError(
            f"importance by {settings.criterion} of {', '.join(settings.scopes)} is measured on images, got none; give "
            "--dataset, or take --criterion magnitude without blocks"
        )
    programs = nullcontext()
    is_classifier = isinstance(model, SwinHfForImageClassification)
    if is_classifier and need_programs(settings.targets, table is not None):
        tell = partial(tell_of_program, with_latency=table is None)
        programs = ProgramCosts(config, find_recipe(settings.recipe), settings.threads, announce=tell)
    with programs as measure:
        costs = Costs(partial(of_config, model), config, config.image_height_width, measure, table)
        require_reachable(costs, settings.targets, settings.scopes, settings.round_to)
        importance = importance_of(settings, classifier, images)
        return plan_pruning(config, importance, settings.targets, costs, settings.scopes, settings.round_to)


def importance_of(settings: CheckpointPruning, classifier: Classifier, images: list[Example]) -> Importance:
    """Of channels on the loss of the labels, or of the model's own answers where none are known; of blocks on outputs."""
    losses = _losses(classifier, images, 1 if settings.criterion == "hessian" else BATCH_SIZE)
    inputs = (classifier.pixel_values(pixels) for pixels, _ in _batches(classifier, images))
    return importance_for(classifier.model, settings.scopes, settings.criterion, losses, inputs)


@torch.no_grad()
def compared(before: Classifier, after: Classifier, images: list[Example]) -> dict[str, float]:
    """How often both models agree, of images or of pixels, and their accuracies where the labels are known."""
    agreed, right, total, labels_known = 0, np.zeros(2), 0, all(example.label != UNKNOWN for example in images)
    for pixels, labels in _batches(before, images):
        answers = [classifier(pixels).argmax(dim=1) for classifier in (before, after)]
        agreed, total = agreed + int((answers[0] == answers[1]).sum()), total + answers[0].numel()
        if labels_known:
            right += [int((own == labels).sum()) for own in answers]
    figures = {"num_images": len(images), "agreement": agreed / total}
    if labels_known:
        figures |= {"accuracy_before": right[0] / total, "accuracy_after": right[1] / total}
    return figures


def _losses(classifier: Classifier, images: list[Example], batch_size: int) -> Iterator[torch.Tensor]:
    for pixels, labels in _batches(classifier, images, batch_size):
        logits = classifier(pixels)
        labels = labels.view(-1, *[1] * (logits.ndim - 2))  # for pixels (B, 1, 1)
        yield nn.functional.cross_entropy(logits, torch.where(labels == UNKNOWN, logits.detach().argmax(dim=1), labels))


def _batches(
    classifier: Classifier, examples: list[Example], batch_size: int = BATCH_SIZE
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pixels in [0, 1] (B, 3, H, W), as the processor crops and resizes them, and labels (B,)."""
    images = EvaluationImages(examples, classifier.processor)
    for start in range(0, len(images), batch_size):
        numbers = range(start, min(start + batch_size, len(images)))
        pixels = torch.stack([images[number]["pixels"] for number in numbers])
        yield pixels.float() / 255, torch.tensor([examples[number].label for number in numbers])
