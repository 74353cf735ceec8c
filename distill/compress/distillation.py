"""Knowledge distillation: a student learns labels and its teacher's view of the very same augmented pixels."""

# B batch, H W image in pixels, K classes

import shutil
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction, TrainingArguments

from distill.compress.teachers import Classifier
from distill.data.augmentation import RandomAffine
from distill.pipeline.settings import ExecutionSettings, TrainingSettings
from distill.training.optimisation import OptimisationSettings
from distill.training.tasks import Task, TaskOutput
from distill.training.trainer import TaskTrainer, last_whole_checkpoint
from swin_hf.losses_swin_hf import classification_loss


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length and peak learning rate of one training."""

    epochs: int
    learning_rate: float
    seed: int


class Distillation(Task):
    """Cross-entropy, plus KL(teacher || student) at temperature 1 if there is a teacher.

    The model is a `Classifier`. The augmented batch is made once and shown to both (Beyer et al. 2022, arXiv:2106.05237,
    "consistent teaching"). The teacher is frozen and never in training mode.
    """

    metric_names = ("accuracy",)

    def __init__(self, augmentation: RandomAffine, teacher: Classifier | None = None, kd_weight: float = 1.0):
        super().__init__()
        self.augmentation, self.teacher, self.kd_weight = augmentation, teacher, kd_weight

    def forward(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> TaskOutput:
        if not model.training:
            logits = model(pixels)
            return TaskOutput(loss=classification_loss(logits, targets), predictions=logits)
        pixels = self.augmentation(pixels)
        logits = model(pixels)
        loss, parts = distillation_loss(logits, targets, pixels, self.teacher, self.kd_weight)
        return TaskOutput(loss=loss, predictions=logits, parts=parts)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Share of the evaluated images whose top class is the label."""
        return {"accuracy": float((prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean())}


def distillation_loss(
    logits: torch.Tensor, labels: torch.Tensor, pixels: torch.Tensor, teacher: Classifier | None, kd_weight: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Cross-entropy plus, if there is a teacher, `kd_weight` times its KL divergence; and both parts by name.

    logits, labels: the student's (B, K) for `pixels` (B, 3, H, W) in [0, 1], and class indices (B,).
    """
    parts = {"task_loss": classification_loss(logits, labels)}
    if teacher is None:
        return parts["task_loss"], parts
    with torch.no_grad():
        teacher_logits = teacher(pixels)
    parts["kd_loss"] = kd_loss(logits, teacher_logits)
    return parts["task_loss"] + kd_weight * parts["kd_loss"], parts


def kd_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of (B, K) logits at temperature 1, averaged over the batch (Hinton et al. 2015)."""
    student, teacher = student_logits.float().log_softmax(dim=1), teacher_logits.float().log_softmax(dim=1)
    return nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean")


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Decoded rows to uint8 "pixels" (B, 3, H, W) and "targets" (B,), the labels."""
    pixels = torch.from_numpy(np.stack([np.asarray(row["image"]) for row in rows])).permute(0, 3, 1, 2).contiguous()
    return {"pixels": pixels, "targets": torch.tensor([row["label"] for row in rows])}


def train(
    classifier: Classifier,
    data: datasets.DatasetDict,
    settings: TrainingSettings,
    execution: ExecutionSettings,
    schedule: Schedule,
    augmentation: RandomAffine,
    work_dir: Path,
    teacher: Classifier | None = None,
) -> dict[str, float | int | list[float]]:
    """Train `classifier` in place, going on from the last whole checkpoint under `work_dir`, and return its figures.

    Raises:
        TrainingStopped: SIGTERM came before the end; a checkpoint was written, and the next call goes on from there.
    """
    checkpoints = work_dir / "checkpoints"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=schedule.epochs,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        dataloader_num_workers=execution.dataloader_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        bf16=settings.mixed_precision == "bf16",
        fp16=settings.mixed_precision == "fp16",
        seed=schedule.seed,
        data_seed=schedule.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        remove_unused_columns=False,
        report_to=execution.report_to,
    )
    trainer = TaskTrainer(
        model=classifier,
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=collate,
        task=Distillation(augmentation, teacher, settings.kd_weight),
        optimisation=OptimisationSettings(),
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(checkpoints))
    figures = trainer.state.log_history
    classifier.eval().cpu()
    shutil.rmtree(checkpoints, ignore_errors=True)
    accuracies = [row["eval_accuracy"] for row in figures if "eval_accuracy" in row]
    return {
        "validation_accuracy": accuracies[-1],
        "train_loss": next(row["loss"] for row in reversed(figures) if "loss" in row),
        "epochs": schedule.epochs,
        "validation_accuracy_by_epoch": accuracies,
    }
