"""The one training loop: `transformers.Trainer` with augmentation on the device and, if there is a teacher, distillation."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from distill.augmentation import RandomAffine
from distill.settings import ExecutionSettings, TrainingSettings
from swin_hf.losses_swin_hf import classification_loss


class TeacherError(ValueError):
    """A checkpoint cannot teach these classes; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length and peak learning rate of one training."""

    epochs: int
    learning_rate: float
    seed: int


class Normalisation(nn.Module):
    """An image processor's mean and deviation on pixels (B, 3, H, W) in [0, 1]; nothing if it does not normalise."""

    def __init__(self, processor):
        super().__init__()
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean) / self.std


class Classifier(nn.Module):
    """A classifier behind its own input view: pixels in [0, 1] of any size to logits in the order of the data's classes.

    Teacher and student get the same augmented pixels; each then sees them in its own size and normalisation.
    """

    def __init__(self, model: PreTrainedModel, processor, class_order: list[int] | None = None):
        super().__init__()
        self.model = model
        self.processor = processor
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        self.size = (size.height or size.shortest_edge, size.width or size.shortest_edge)
        self.class_order = class_order
        self.normalise = Normalisation(processor)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if tuple(pixels.shape[2:]) != self.size:
            pixels = nn.functional.interpolate(pixels, size=self.size, mode="bicubic", antialias=True).clamp(0, 1)
        logits = self.model(pixel_values=self.normalise(pixels)).logits
        return logits if self.class_order is None else logits[:, self.class_order]


def load_classifier(checkpoint: str | Path, class_names: list[str]) -> Classifier:
    """Load an image classifier from a folder or the Hub, its outputs in the order of `class_names`.

    Raises:
        TeacherError: the checkpoint cannot be loaded, or its classes are not the data's.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        model, report = AutoModelForImageClassification.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise TeacherError(f"{checkpoint} must be a checkpoint folder or Hub id of an image classifier: {error}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise TeacherError(f"{checkpoint} lacks weights of {type(model).__name__}: {', '.join(missing[:5])}")
    order = _class_order([config.id2label[index] for index in range(config.num_labels)], class_names, checkpoint)
    return Classifier(model, processor, order).eval().requires_grad_(False)


def _class_order(model_names: list[str], class_names: list[str], checkpoint: str | Path) -> list[int] | None:
    """Where each of the data's classes stands in the model's output; None if the order is the same."""
    unnamed = model_names == [f"LABEL_{index}" for index in range(len(model_names))]
    if model_names == class_names or (unnamed and len(model_names) == len(class_names)):
        return None
    if sorted(model_names) == sorted(class_names):
        return [model_names.index(name) for name in class_names]
    raise TeacherError(
        f"{checkpoint} knows {len(model_names)} classes ({', '.join(model_names[:5])}, ...), the data has {len(class_names)} "
        f"({', '.join(class_names[:5])}, ...); fine-tune the teacher on your classes first, or "
        "leave out --teacher to train one here"
    )


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Decoded rows to uint8 pixels (B, 3, H, W) and labels (B,)."""
    pixels = torch.from_numpy(np.stack([np.asarray(row["image"]) for row in rows])).permute(0, 3, 1, 2).contiguous()
    return {"pixels": pixels, "labels": torch.tensor([row["label"] for row in rows])}


class DistillationTrainer(Trainer):
    """Cross-entropy, plus KL(teacher || student) at temperature 1 if there is a teacher.

    The model is a `Classifier`; what is saved is the `PreTrainedModel` in it. The augmented batch is made once and shown to
    both (Beyer et al. 2022, arXiv:2106.05237, "consistent teaching"). The teacher is frozen and never in training mode.
    """

    def __init__(self, *args, augmentation: RandomAffine, teacher: Classifier | None = None, kd_weight: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.augmentation = augmentation
        self.kd_weight = kd_weight
        self.teacher = None if teacher is None else teacher.to(self.args.device)
        self.loss_parts: dict[str, list[torch.Tensor]] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pixels = inputs["pixels"].float() / 255
        if model.training:
            pixels = self.augmentation(pixels)
        logits = model(pixels)
        teacher = self.teacher if model.training else None
        loss, parts = distillation_loss(logits, inputs["labels"], pixels, teacher, self.kd_weight)
        if model.training:
            for name, value in parts.items():
                self.loss_parts.setdefault(name, []).append(value.detach())
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            logs |= {name: round(torch.stack(values).mean().item(), 4) for name, values in self.loss_parts.items()}
            self.loss_parts.clear()
        super().log(logs, *args, **kwargs)


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


class ProgressBar(ProgressCallback):
    """A progress bar with images per second, the time left and the latest figures, instead of a line for each of them."""

    def __init__(self):
        super().__init__()
        self.figures: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            self.training_bar = tqdm(total=state.max_steps, unit=" images", unit_scale=images, dynamic_ncols=True)
        self.current_step = 0

    def on_prediction_step(self, args, state, control, **kwargs):
        pass  # no second bar for the few seconds of an evaluation

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            names = {"loss": "loss", "eval_accuracy": "validation"}
            self.figures |= {names[key]: f"{float(value):.3f}" for key, value in logs.items() if key in names}
            self.training_bar.set_postfix(self.figures, refresh=False)


def show_progress(trainer: Trainer) -> None:
    """Put our progress bar in the place of what a Trainer prints."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressBar())


def accuracy_of(prediction) -> dict[str, float]:
    """Share of the evaluated images whose top class is the label."""
    return {"accuracy": float((prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean())}


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
    """Train `classifier` in place, going on from the last whole checkpoint under `work_dir`, and return its figures."""
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
        label_names=["labels"],
        report_to=execution.report_to,
    )
    trainer = DistillationTrainer(
        model=classifier,
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=collate,
        compute_metrics=accuracy_of,
        augmentation=augmentation,
        teacher=teacher,
        kd_weight=settings.kd_weight,
    )
    show_progress(trainer)
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


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; half ones, left by a kill, are removed.

    The Trainer writes `trainer_state.json` last, so a checkpoint is whole if that file can be read.
    """
    numbered = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    while numbered:
        newest = numbered.pop()
        try:
            json.loads((newest / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(newest, ignore_errors=True)  # another process of the run may be at it too
        else:
            return str(newest)
    return None
