"""Distillation: another objective, learned from its targets and from a teacher that gets the same pixels."""

# B batch, H W image in pixels, K classes

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction

from distill.compress.feature_maps import WithMaps
from distill.compress.teachers import Teachers, mean_of
from distill.compress.top_probabilities import rounded
from distill.errors import require
from distill.training.tasks.features import FEATURE_LOSSES, FeatureDistillation
from distill.training.tasks.task import Objective, Output, Panels
from distill.training.teacher_cache import TeacherCache
from swin_hf.distillation_losses import LOSSES

SCHEDULES: dict[str, Callable[[float], float]] = {  # the share of a weight that is left at a progress from 0 to 1
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


AUTO, NONE = "auto", "none"
WITH_LABELS, WITHOUT_LABELS, OF_MAPS = "nkd", "kl", "hints"  # what auto stands for


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    heading = "distillation"

    label_weight: float = field(default=1.0, metadata={"help": "Weight of the task's own loss, that of the labels; 0: none."})
    kd_loss: str = field(
        default=AUTO,
        metadata={
            "help": f"Loss of the logits: {', '.join(LOSSES)}, or none; {AUTO}: {WITH_LABELS}, or {WITHOUT_LABELS} where "
            "--label_weight is 0."
        },
    )
    kd_weight: float = field(default=1.0, metadata={"help": "Weight of the loss of the logits."})
    kd_temperature: float = field(default=1.0, metadata={"help": "Temperature that softens the probabilities of both."})
    kd_schedule: str = field(default="constant", metadata={"help": f"How its weight falls to 0: {', '.join(SCHEDULES)}."})
    kd_top_k: int = field(
        default=0, metadata={"help": "Probabilities of the teacher that count, the largest ones, as in float16; 0: all."}
    )
    feature_loss: str = field(
        default=AUTO,
        metadata={
            "help": f"Loss of feature maps: {', '.join(FEATURE_LOSSES)}, or none; {AUTO}: {OF_MAPS} where both models give "
            "maps, the teacher is no cache, checkpoints are whole, and no weights are split."
        },
    )
    feature_weight: float = field(default=1.0, metadata={"help": "Weight of the loss of feature maps."})
    feature_schedule: str = field(default="constant", metadata={"help": f"How its weight falls to 0: {', '.join(SCHEDULES)}."})

    def __post_init__(self):
        for name, table in (("kd_loss", LOSSES), ("feature_loss", FEATURE_LOSSES)):
            values = [AUTO, *table, NONE]
            require(getattr(self, name) in values, name, f"be one of {', '.join(values)}", getattr(self, name))
        for name in ("label_weight", "kd_weight", "feature_weight"):
            require(getattr(self, name) >= 0, name, "not be negative", getattr(self, name))
        for name in ("kd_schedule", "feature_schedule"):
            require(getattr(self, name) in SCHEDULES, name, f"be one of {', '.join(SCHEDULES)}", getattr(self, name))
        require(self.kd_top_k >= 0, "kd_top_k", "not be negative", self.kd_top_k)
        require(self.kd_temperature > 0, "kd_temperature", "be positive", self.kd_temperature)
        softens = self.kd_loss not in ("hard", NONE) or self.kd_temperature == 1
        require(softens, "kd_temperature", "come with a --kd_loss that softens probabilities: kl, dist or nkd", self.kd_loss)
        for name, value in (("feature_weight", 1.0), ("feature_schedule", "constant")):
            has_effect = self.feature_loss != NONE or getattr(self, name) == value
            require(has_effect, name, "come with a --feature_loss", getattr(self, name))
        learns = self.label_weight or self.logits_weight or self.must_compare_maps
        require(bool(learns), "label_weight", "be positive where kd_loss and feature_loss have no weight", self.label_weight)

    @property
    def logits_weight(self) -> float:
        return 0.0 if self.kd_loss == NONE else self.kd_weight

    @property
    def logits_loss(self) -> str:
        """The loss of the logits, which may have been left to us."""
        return (WITH_LABELS if self.label_weight else WITHOUT_LABELS) if self.kd_loss == AUTO else self.kd_loss

    @property
    def must_compare_maps(self) -> bool:
        return self.feature_loss in FEATURE_LOSSES and self.feature_weight > 0

    @property
    def may_compare_maps(self) -> bool:
        return self.feature_loss == AUTO and self.feature_weight > 0

    @property
    def maps_loss(self) -> str:
        """The loss of feature maps, where they are compared."""
        return OF_MAPS if self.feature_loss == AUTO else self.feature_loss


class Distillation(Objective):
    """The loss of another objective, a loss of the logits and one of feature maps, each times its weight.

    A batch is augmented once and given to both models (Beyer et al. 2022, arXiv:2106.05237, "consistent teaching").
    Evaluations and pictures are those of the other objective.

    teacher: pixels (B, 3, H, W) in [0, 1] to logits, frozen and never in training mode, or a cache of its logits; with
        `features`, `Teachers`.
    features: compares feature maps.
    """

    def __init__(
        self,
        objective: Objective,
        teacher: Callable[[torch.Tensor], torch.Tensor] | TeacherCache,
        settings: DistillationSettings,
        features: FeatureDistillation | None = None,
    ):
        super().__init__()
        self.objective, self.settings, self.features = objective, settings, features
        self.is_calibrated = objective.is_calibrated
        self.teacher = teacher.eval().requires_grad_(False) if isinstance(teacher, nn.Module) else teacher

    @property
    def learned(self) -> nn.Module | None:
        return self.features

    def train(self, mode: bool = True):
        super().train(mode)
        if isinstance(self.teacher, nn.Module):
            self.teacher.eval()
        return self

    def augment(self, pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.objective.augment(pixels, targets)

    def learn(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor, crops: np.ndarray | None = None) -> Output:
        settings, student = self.settings, model if self.features is None else WithMaps(model, self.features.indices)
        output = self.objective.learn(student, pixels, targets)
        logits, maps = self.ask(pixels, crops)
        parts, loss = {"task_loss": output.loss}, settings.label_weight * output.loss
        if settings.logits_weight:
            parts["kd_loss"] = LOSSES[settings.logits_loss](output.predictions, logits, targets, settings.kd_temperature)
            loss = loss + settings.logits_weight * SCHEDULES[settings.kd_schedule](self.progress) * parts["kd_loss"]
        if self.features is not None:
            parts["feature_loss"] = self.features(student.maps, maps)
            weight = settings.feature_weight * SCHEDULES[settings.feature_schedule](self.progress)
            loss = loss + weight * parts["feature_loss"]
        return Output(loss=loss, predictions=output.predictions, parts=output.parts | parts)

    @torch.no_grad()
    def ask(self, pixels: torch.Tensor, crops: np.ndarray | None) -> tuple[torch.Tensor | None, list[list[torch.Tensor]]]:
        """What the teachers say of pixels: logits, and the feature maps of each; only what the losses need."""
        settings = self.settings
        if isinstance(self.teacher, TeacherCache):
            return self.teacher.logits(crops, pixels.device), []
        if self.features is None:
            return rounded(self.teacher(pixels), settings.kd_top_k) if settings.logits_weight else None, []
        logits, maps = self.teacher.with_maps(pixels)
        return rounded(mean_of(logits), settings.kd_top_k) if settings.logits_weight else None, maps

    def judge(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> Output:
        return self.objective.judge(model, pixels, targets)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return self.objective.metrics(prediction)

    def details(self, prediction: EvalPrediction) -> dict[str, dict[str, float]]:
        return self.objective.details(prediction)

    def calibrate(self, prediction: EvalPrediction) -> dict[str, float]:
        return self.objective.calibrate(prediction)

    def draw(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[Panels]:
        return self.objective.draw(model, pixels, targets)


@torch.no_grad()
def compare_features(
    kind: str, model: nn.Module, normalise: Callable[[torch.Tensor], torch.Tensor], teacher: Teachers, image_size: int
) -> FeatureDistillation:
    """New projectors between the feature maps of a student and those of its teachers, for images of `image_size` pixels.

    kind: of `FEATURE_LOSSES`.
    normalise: pixels in [0, 1] to the student's input.

    Raises:
        FeatureError: one of the models has no feature maps.
    """
    was_training, pixels = model.training, torch.zeros(1, 3, image_size, image_size)
    student = WithMaps(model.eval())
    try:
        student(pixel_values=normalise(pixels))
    finally:
        model.train(was_training)
    return FeatureDistillation(FEATURE_LOSSES[kind], student.maps, teacher.with_maps(pixels)[1], student.indices)
