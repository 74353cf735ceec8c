"""Distillation: another objective, learned from its targets and from a teacher that gets the same pixels."""

# B batch, H W image in pixels, K classes

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import EvalPrediction

from distill.errors import require
from distill.training.tasks.task import Objective, Output, Panels
from swin_hf.distillation_losses import LOSSES


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    heading = "distillation"

    kd_loss: str = field(default="kl", metadata={"help": f"Distillation loss: {', '.join(LOSSES)}."})
    kd_weight: float = field(default=1.0, metadata={"help": "Weight of the distillation loss, added to the task's."})
    kd_temperature: float = field(default=1.0, metadata={"help": "Temperature that softens the probabilities of both."})

    def __post_init__(self):
        require(self.kd_loss in LOSSES, "kd_loss", f"be one of {', '.join(LOSSES)}", self.kd_loss)
        require(self.kd_weight >= 0, "kd_weight", "not be negative", self.kd_weight)
        require(self.kd_temperature > 0, "kd_temperature", "be positive", self.kd_temperature)


class Distillation(Objective):
    """The loss of another objective plus `kd_weight` times a distillation loss.

    A batch is augmented once and given to both models (Beyer et al. 2022, arXiv:2106.05237, "consistent teaching").
    Evaluations and pictures are those of the other objective.

    teacher: pixels (B, 3, H, W) in [0, 1] to logits, frozen and never in training mode.
    """

    def __init__(self, objective: Objective, teacher: Callable[[torch.Tensor], torch.Tensor], settings: DistillationSettings):
        super().__init__()
        self.objective, self.settings = objective, settings
        self.loss = LOSSES[settings.kd_loss]
        self.teacher = teacher.eval().requires_grad_(False) if isinstance(teacher, nn.Module) else teacher

    def train(self, mode: bool = True):
        super().train(mode)
        if isinstance(self.teacher, nn.Module):
            self.teacher.eval()
        return self

    def augment(self, pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.objective.augment(pixels, targets)

    def learn(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> Output:
        output = self.objective.learn(model, pixels, targets)
        with torch.no_grad():
            teacher_logits = self.teacher(pixels)
        kd_loss = self.loss(output.predictions, teacher_logits, self.settings.kd_temperature)
        return Output(
            loss=output.loss + self.settings.kd_weight * kd_loss,
            predictions=output.predictions,
            parts=output.parts | {"task_loss": output.loss, "kd_loss": kd_loss},
        )

    def judge(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> Output:
        return self.objective.judge(model, pixels, targets)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return self.objective.metrics(prediction)

    def details(self, prediction: EvalPrediction) -> dict[str, dict[str, float]]:
        return self.objective.details(prediction)

    def draw(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[Panels]:
        return self.objective.draw(model, pixels, targets)
