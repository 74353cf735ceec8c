"""What a task consists of: its objective, metrics, targets and models."""

# B batch, H W image in pixels, K classes

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction, PreTrainedConfig, PreTrainedModel

from distill.data.examples import collate
from distill.data.targets import Targets
from distill.data.transforms import TransformSettings, drawn_for

if TYPE_CHECKING:  # the settings import the tasks
    from distill.training.settings import TaskSettings

HEAD_WEIGHTS = re.compile(r"(^|_head\.)(classifier|decoder)\.|mask_token$")


@dataclass(frozen=True, kw_only=True)
class Output:
    """loss: is minimised. predictions: one row per image, for `metrics`. parts: of the loss, by name, for the log."""

    loss: torch.Tensor
    predictions: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Panels:
    """Pictures (H, W, 3) in [0, 1] of one image and its prediction; `right`: whether the prediction is correct."""

    pictures: list[np.ndarray]
    caption: str
    right: bool = True


class Objective(nn.Module, ABC):
    """What a model learns from a batch of pixels (B, 3, H, W) in [0, 1] and targets, and how it is evaluated.

    A batch is augmented once, so that a student and its teacher get the same pixels.

    seed: of the augmentation; the trainer sets it.
    is_calibrated: whether `calibrate` finds anything.
    progress: share of the training that is done, from 0 to 1; the trainer sets it.
    """

    seed = 0
    progress = 0.0
    is_calibrated = False

    @property
    def learned(self) -> nn.Module | None:
        """What is trained together with the model, kept in checkpoints, and dropped in the end."""
        return None

    def forward(
        self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor, crops: np.ndarray | None = None
    ) -> Output:
        """`learn` from the augmented batch if the model is in training mode, else `judge`.

        crops: (B, 2), epoch and number of each image, from which the augmentation is drawn; None: at random.
        """
        if not model.training:
            return self.judge(model, pixels, targets)
        return self.learn(model, *self.augmented(pixels, targets, crops), crops)

    def augmented(
        self, pixels: torch.Tensor, targets: torch.Tensor, crops: np.ndarray | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`augment`, drawn from the crops."""
        with nullcontext() if crops is None else drawn_for(crops, self.seed, pixels.device):
            return self.augment(pixels, targets)

    @abstractmethod
    def augment(self, pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch, augmented at random."""

    @abstractmethod
    def learn(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor, crops: np.ndarray | None = None) -> Output:
        """The loss of an augmented batch; `predictions` are logits (B, K) or (B, K, H, W), if there are any."""

    @abstractmethod
    def judge(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> Output:
        """Loss and predictions of a batch without augmentation."""

    @abstractmethod
    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Figures of an evaluation."""

    def details(self, prediction: EvalPrediction) -> dict[str, dict[str, float]]:
        """Figures of an evaluation in detail, such as one per class."""
        return {}

    def calibrate(self, prediction: EvalPrediction) -> dict[str, float]:
        """Fields of the model's config that make its probabilities honest, from what it says of the validation images."""
        return {}

    def draw(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[Panels]:
        """What the model predicts for each image, as pictures; none by default."""
        return []


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of an evaluation.

    shown_as: its name in the progress bar, if it is shown there.
    fewest_classes: with which it says anything.
    """

    name: str
    higher_is_better: bool = True
    shown_as: str | None = None
    fewest_classes: int = 0


@dataclass(frozen=True, kw_only=True)
class ObjectiveContext:
    """What an objective is made from."""

    task: "TaskSettings"
    transforms: TransformSettings
    config: PreTrainedConfig
    processor: Any
    class_names: list[str]
    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that differs between tasks.

    auto_class: of transformers, which loads its models.
    targets: what its images come with.
    collate: rows of a data set to a batch of "pixels" and "targets".
    make_objective: builds the objective, with its figures and pictures.
    judged_by: the figures of `Objective.metrics`; the first one selects the best checkpoint.
    load_teacher: from a checkpoint and the class names, None for any classes, to a teacher: a module from pixels in [0, 1] to
        logits like those of `Objective.learn`; None if the task has no teachers.
    pipeline_tag: of a model card on the Hub.
    fresh_weights: names of weights that a checkpoint may lack.
    adapt_config: changes the config of a preset before its model is built, given the fields that the user set.
    over_backbone: builds the model on a backbone of swin_hf, from the backbone's config, the class names and the fields of
        the head that the user set; None if swin_hf has a model for the task itself.
    size_multiple: image sizes are multiples of this number of pixels.
    """

    name: str
    auto_class: type
    targets: Targets
    make_objective: Callable[[ObjectiveContext], Objective]
    judged_by: tuple[Metric, ...]
    collate: Callable[[list[dict]], dict[str, torch.Tensor]] = collate
    load_teacher: Callable[[str, list[str] | None], nn.Module] | None = None
    pipeline_tag: str | None = None
    fresh_weights: re.Pattern = HEAD_WEIGHTS
    adapt_config: Callable[[PreTrainedConfig, dict[str, Any]], None] = lambda config, changes: None
    over_backbone: Callable[[PreTrainedConfig, list[str], dict[str, Any]], PreTrainedModel] | None = None
    size_multiple: Callable[["TaskSettings"], int] = lambda settings: 1

    @property
    def best_by(self) -> Metric:
        return self.judged_by[0]

    @property
    def shown_figures(self) -> dict[str, str]:
        """Keys of a Trainer's log, and their names in the progress bar."""
        return {"loss": "loss"} | {f"eval_{metric.name}": metric.shown_as for metric in self.judged_by if metric.shown_as}


def pictures_of(pixels: torch.Tensor) -> np.ndarray:
    """Images (B, 3, H, W) as (B, H, W, 3)."""
    return pixels.permute(0, 2, 3, 1).float().cpu().numpy()
