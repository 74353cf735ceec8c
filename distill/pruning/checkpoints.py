"""Prune a checkpoint that somebody has, without a run: importance on images of a folder, an ordinary checkpoint out."""

# B images of a batch, H W pixels

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig

from distill.compress.channels import encoder_of
from distill.compress.teachers import Classifier, load_classifier, load_segmenter
from distill.data.examples import UNKNOWN, EvaluationImages, Example
from distill.data.finding import find_images, has_no_classes
from distill.data.targets import CLASSES, NOTHING
from distill.pruning.apply import apply_plan, of_config
from distill.pruning.budgets import Achieved, plan_pruning, require_reachable
from distill.pruning.costs import Costs
from distill.pruning.importance import Importance, measure_blocks, measure_importance
from distill.pruning.plan import PruningPlan
from distill.pruning.targets import MEASURED, PruningError, Target
from distill.published import loadable
from edge.compare.candidates import ProgramCosts
from edge.lower.recipes import find_recipe
from swin_hf import SwinHfForImageClassification, SwinHfUperNetConfig
from swin_hf.output_folders import new_folder, write_json

PLAN, FIGURES = "pruning_plan.json", "pruning.json"
LATENCY_REPEATS, BATCH_SIZE = 100, 32


@dataclass(frozen=True, kw_only=True)
class CheckpointPruning:
    """How to prune a checkpoint.

    dataset: a folder, a data set or an embedded one, as of a training; None: only `plan`, or importance by magnitude.
    num_images: of them, on which importance is measured; as many others show what pruning changed.
    plan: a file of an earlier pruning, applied as it is; then there is no target.
    recipe, threads: of the programs whose latency or size a target names.
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
    seed: int


def prune_checkpoint(settings: CheckpointPruning) -> dict[str, Any]:
    """Write the pruned model with its processor, its plan and figures to a new folder; returns the figures, as JSON values.

    Raises:
        TeacherError: the checkpoint cannot be loaded, or is no classifier of images or pixels.
        NotOursError: it is none of our models.
        PruningError, PlanError: the target cannot be met, or the plan is for another model.
        DataError: the images cannot be found.
        OutputError: the folder is not free.
    """
    before = load_prunable(settings.checkpoint)
    with new_folder(settings.output_dir) as work_dir:
        images = examples_of(settings, before)
        figures: dict[str, Any] = {"checkpoint": settings.checkpoint, "targets": [str(own) for own in settings.targets]}
        if settings.plan is not None:
            plan = PruningPlan.load(settings.plan)
        else:
            achieved = planned(settings, before, images)
            plan, figures = achieved.plan, figures | achieved.as_metrics() | {"removed_shares": achieved.removed_shares}
            figures["described"] = achieved.described()
        after = type(before)(apply_plan(before.model, plan), before.processor, before.class_order).eval()
        if others := images[settings.num_images :]:
            figures |= compared(before, after, others)
        after.model.save_pretrained(work_dir)
        after.processor.save_pretrained(work_dir)
        plan.save(work_dir / PLAN)
        write_json(work_dir / FIGURES, figures)
    return figures


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


def examples_of(settings: CheckpointPruning, classifier: Classifier) -> list[Example]:
    """Images in an order that the seed decides: those that importance is measured on, and as many others.

    Their labels are numbers of the model's classes where the data set has just these, otherwise unknown.
    """
    if settings.dataset is None:
        return []
    found = find_images(settings.dataset, NOTHING if has_no_classes(settings.dataset) else CLASSES)
    names = classifier.class_names
    numbers = [names.index(name) if sorted(names) == sorted(found.class_names) else UNKNOWN for name in found.class_names]
    split = found.whole
    pairs = list(zip(found.images[split], found.labels[split]))
    order = np.random.default_rng(settings.seed).permutation(len(pairs))[: 2 * settings.num_images]
    return [Example(pairs[at][0], numbers[pairs[at][1]] if numbers else UNKNOWN) for at in order]


def planned(settings: CheckpointPruning, classifier: Classifier, images: list[Example]) -> Achieved:
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
    if isinstance(model, SwinHfForImageClassification) and any(own.measure in MEASURED for own in settings.targets):
        programs = ProgramCosts(config, find_recipe(settings.recipe), LATENCY_REPEATS, settings.threads)
    with programs as measure:
        costs = Costs(partial(of_config, model), config, config.image_height_width, measure)
        require_reachable(costs, settings.targets, settings.scopes, settings.round_to)
        importance = importance_of(settings, classifier, images[: settings.num_images])
        return plan_pruning(config, importance, settings.targets, costs, settings.scopes, settings.round_to)


def importance_of(settings: CheckpointPruning, classifier: Classifier, images: list[Example]) -> Importance:
    """Of channels on the loss of the labels, or of the model's own answers where none are known; of blocks on outputs."""
    classifier.requires_grad_(True)
    losses = _losses(classifier, images, 1 if settings.criterion == "hessian" else BATCH_SIZE)
    channels = measure_importance(classifier.model, losses if settings.criterion != "magnitude" else (), settings.criterion)
    classifier.requires_grad_(False)
    blocks = {}
    if "blocks" in settings.scopes:
        blocks = measure_blocks(
            classifier.model, (classifier.pixel_values(pixels) for pixels, _ in _batches(classifier, images))
        )
    return Importance(channels=channels, blocks=blocks)


def compared(before: Classifier, after: Classifier, images: list[Example]) -> dict[str, float]:
    """How often both models agree, of images or of pixels, and their accuracies where labels are known."""
    answers = [_answers(classifier, images) for classifier in (before, after)]
    figures = {"num_images": len(images), "agreement": float(np.mean(answers[0] == answers[1]))}
    labels = np.array([example.label for example in images])
    if answers[0].ndim == 1 and (labels >= 0).all():
        accuracies = [float(np.mean(own == labels)) for own in answers]
        figures |= {"accuracy_before": accuracies[0], "accuracy_after": accuracies[1]}
    return figures


def _losses(classifier: Classifier, images: list[Example], batch_size: int) -> Iterator[torch.Tensor]:
    for pixels, labels in _batches(classifier, images, batch_size):
        logits = classifier(pixels)
        labels = labels.view(-1, *[1] * (logits.ndim - 2))  # for pixels (B, 1, 1)
        yield nn.functional.cross_entropy(logits, torch.where(labels == UNKNOWN, logits.detach().argmax(dim=1), labels))


@torch.no_grad()
def _answers(classifier: Classifier, images: list[Example]) -> np.ndarray:
    """The most probable class of each image (n,), or of each pixel (n, H, W)."""
    return torch.cat([classifier(pixels).argmax(dim=1) for pixels, _ in _batches(classifier, images)]).numpy()


def _batches(
    classifier: Classifier, examples: list[Example], batch_size: int = BATCH_SIZE
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pixels in [0, 1] (B, 3, H, W), as the processor crops and resizes them, and labels (B,)."""
    images = EvaluationImages(examples, classifier.processor)
    for start in range(0, len(images), batch_size):
        numbers = range(start, min(start + batch_size, len(images)))
        pixels = torch.stack([images[number]["pixels"] for number in numbers])
        yield pixels.float() / 255, torch.tensor([examples[number].label for number in numbers])
