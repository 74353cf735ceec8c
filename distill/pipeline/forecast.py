"""What a run is about to train, and how long that takes here, by a few steps of each model on noise."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from transformers import PreTrainedModel

from distill.compress.teachers import Classifier, load_classifier
from distill.pipeline.models import is_used_unchanged
from distill.pipeline.report_pages import duration
from distill.pipeline.run_folder import Run
from distill.pipeline.student_shape import student_choice
from distill.precision import mixed_precision
from distill.training.finetune import build_model
from distill.training.settings import settled

TRAININGS = ("teacher", "student", "recover")
STEPS = 4  # of a measurement, whose fastest counts, as other work may stop one for seconds; a step before them warms up
IMAGES_ON_CPU = 8  # of such a step; a GPU takes as long for few images as for a whole batch, so it gets that
LONG_S = 3600.0  # from here on the run says what suits a machine without a GPU


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A training that is to come. seconds: about how long it takes on this machine."""

    stage: str
    parameters: int
    epochs: float
    images: int
    seconds: float


@torch.random.fork_rng(devices=[])  # the trainings draw what they would draw without it
def forecasts(run: Run, to_build: list[str]) -> list[Forecast]:
    """The trainings of the stages that are to be built, once the images are stored."""
    settings, data = run.settings, run.data()
    images = len(data.examples["train"]) * settings.transforms.repeated_augmentation
    epochs = {
        "teacher": settings.teacher.teacher_epochs,
        "student": settings.student.student_epochs,
        "recover": settings.recover.recover_epochs,
    }
    unchanged = is_used_unchanged(settings.teacher.choice, run.class_names)
    found = []

    @cache
    def timed(stage: str) -> tuple[float, int]:
        """Seconds of a step for one of its images, and the number of parameters."""
        own = settings.teacher.choice if stage == "teacher" else student_choice(run)
        choice = replace(own, init_from="")  # other weights take no longer
        model = build_model(settings.training(choice, 1, 1, run.folder), run.class_names, announce=False)
        return seconds_per_step(model, run), sum(part.numel() for part in model.parameters())

    teaching = 0.0
    if {"student", "recover"} & set(to_build):
        trained_first = "teacher" in to_build and not unchanged  # of its step, the forward part is a third
        teaching = timed("teacher")[0] / 3 if trained_first else _seconds_of_own(run, to_build)
        teaching += _seconds_of_others(run)
    for stage in TRAININGS:
        if stage not in to_build or (stage == "teacher" and unchanged):
            continue
        seconds, parameters = timed("student" if stage == "recover" else stage)
        whole = (seconds + (0.0 if stage == "teacher" else teaching)) * images * epochs[stage]
        found.append(Forecast(stage=stage, parameters=parameters, epochs=epochs[stage], images=images, seconds=whole))
    return found


def describe(found: list[Forecast], device: str, config: str) -> str:
    """The forecasts as text. device: that trains. config: the name of the file of settings in force."""
    lines = [f"      to be trained here, on {device}:"]
    for own in found:
        size = f"{own.parameters / 1e6:.1f} M parameters, {own.epochs:g} epochs of {own.images:,} images"
        lines.append(f"        {own.stage:<8} {size}: about {duration(own.seconds)}")
    whole = sum(own.seconds for own in found)
    lines.append(f"      about {duration(whole)} in all, by the fastest of {STEPS} steps of each")
    if whole > LONG_S and device.startswith("the CPU") and config == "photos":
        lines.append(
            "      --config small is made for a machine without a GPU and a few hundred images; Ctrl-C stops this run"
        )
    return "\n".join(lines)


def _seconds_of_own(run: Run, to_build: list[str]) -> float:
    """Seconds that a teacher which is not trained takes for an image: the one that was given, or that of an earlier stage."""
    folder = run.settings.teacher.choice.name if "teacher" in to_build else run.folder / "teacher"
    return seconds_per_inference(load_classifier(folder, run.class_names), run)


def _seconds_of_others(run: Run) -> float:
    """Seconds that the teachers beside it take."""
    others = run.settings.teacher.others
    return sum(seconds_per_inference(load_classifier(other, run.class_names), run) for other in others)


def seconds_per_step(model: PreTrainedModel, run: Run) -> float:
    """Seconds of a step of training for one of its images."""
    trainer, side, images = run.settings.trainer, run.settings.task.image_size, _images_of(run)
    device = trainer.device
    pixels = torch.randn(images, getattr(model.config, "num_channels", 3), side, side, device=device)

    def step() -> None:
        with mixed_precision(trainer):
            logits = model(pixel_values=pixels).logits
        logits.float().logsumexp(dim=1).mean().backward()
        model.zero_grad()

    model.to(device).train()
    if trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable(trainer.gradient_checkpointing_kwargs)
    try:
        return _seconds_of(step, device) / images
    finally:
        model.cpu()


@torch.no_grad()
def seconds_per_inference(classifier: Classifier, run: Run) -> float:
    """Seconds that a teacher takes for an image, with the resize to its own size."""
    device, side, images = run.settings.trainer.device, run.settings.task.image_size, _images_of(run)
    pixels = torch.rand(images, 3, side, side, device=device)
    classifier.hasten(device).to(device).eval()
    return _seconds_of(lambda: classifier(pixels), device) / images


def _images_of(run: Run) -> int:
    """Images of a step that is timed."""
    if run.settings.trainer.device.type == "cpu":
        return IMAGES_ON_CPU
    return settled(run.settings.training(run.settings.student.choice, 1, 1, run.folder)).trainer.per_device_train_batch_size


def _seconds_of(step: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(1 + STEPS):
        started = time.perf_counter()
        step()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])
