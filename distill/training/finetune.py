"""From settings to a fine-tuned model: data, model, training, the figures of the test images, and a folder to load."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel, TrainerCallback, set_seed

from distill.data.examples import BeginEpoch, EvaluationImages, Example, TrainingImages, collate, prepare_splits
from distill.data.sources import SPLITS, DataError, FoundImages, find_images
from distill.data.streaming import Stream, StreamedImages, StreamTrainer, open_stream
from distill.data.transforms import IGNORED, RandomCrop
from distill.training.command_line import SettingsError, require
from distill.training.models import ModelError, load_model, load_processor
from distill.training.optimisation import LayerError, freeze_stages
from distill.training.pictures import PredictionPictures
from distill.training.settings import FinetuneArguments, FinetuneSettings
from distill.training.tasks import ImageClassification, MaskedImageModeling, SemanticSegmentation, Task
from distill.training.trainer import DivergenceError, TaskTrainer, last_whole_checkpoint

LOWER_IS_BETTER = ("loss", "calibration_error", "reconstruction_error")
PIPELINES = {"image-classification": "image-classification", "semantic-segmentation": "image-segmentation"}
EXPLAINED_ERRORS = (SettingsError, DataError, ModelError, LayerError, DivergenceError, OSError)


def finetune(settings: FinetuneSettings, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, float]:
    """Train, write the model with its processor, figures and card to `--output_dir`, and return the figures.

    callbacks: of the Trainer, beside our own.

    Raises:
        TrainingStopped: SIGTERM came before the end; a checkpoint was written.
    """
    arguments, output_dir = settings.trainer, Path(settings.trainer.output_dir)
    checkpoint = _checkpoint_to_resume(settings)
    _set_batch_size(settings)
    stream, found = _find(settings)
    set_seed(arguments.seed)
    model, processor = load_model(settings, found.class_names), load_processor(settings)
    freeze_stages(model, settings.optimisation.frozen_stages)
    with arguments.main_process_first(desc="looking through the images"):
        known = checkpoint is not None or arguments.local_process_index > 0
        examples = prepare_splits(found, settings.images, output_dir / "data.json", known)
    if arguments.process_index == 0:
        counts = ", ".join(f"{len(examples[split])} {split}" for split in SPLITS if split in examples)
        print(f"{len(found.class_names)} classes; images: {counts}{' and a stream' if stream else ''}", flush=True)
    task = make_task(settings, model, processor, found.class_names, examples.get("train", []))
    _judge_by(task, arguments)
    training = _training_images(settings, examples, stream)
    validation, test = (EvaluationImages(examples[split], processor) for split in ("validation", "test"))
    trainer_class = StreamTrainer if stream else TaskTrainer
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=training,
        eval_dataset=validation,
        data_collator=collate,
        processing_class=processor,
        task=task,
        optimisation=settings.optimisation,
        callbacks=[*callbacks] if stream else [*callbacks, BeginEpoch(training)],
    )
    if settings.task.num_pictures:
        trainer.add_callback(PredictionPictures(trainer, validation, settings.task.num_pictures))
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    prediction = trainer.predict(test, metric_key_prefix="test")
    figures = {name: value for name, value in prediction.metrics.items() if not name.endswith(("_runtime", "_second"))}
    figures |= {"train_loss": trained.training_loss, "num_test_images": len(test)}
    trainer.save_averaged_model(output_dir)
    if arguments.should_save:
        details = task.details(prediction)
        (output_dir / "metrics.json").write_text(json.dumps(figures | details, indent=2, ensure_ascii=False) + "\n")
        write_card(settings, figures, output_dir)
    return figures


def _find(settings: FinetuneSettings) -> tuple[Stream | None, FoundImages]:
    """The stream to train on, if there is one, and the images that lie here."""
    task, images = settings.task.task, settings.images
    with settings.trainer.main_process_first(desc="finding the images"):
        if images.streaming:
            stream = open_stream(task, images, Path(settings.trainer.output_dir))
            return stream, stream.held_out
        return None, find_images(images.dataset, task, Path(images.class_names) if images.class_names else None)


def _training_images(
    settings: FinetuneSettings, examples: dict[str, list[Example]], stream: Stream | None
) -> TrainingImages | StreamedImages:
    """Random crops of the training images, of which there must be enough for a step."""
    arguments, masked = settings.trainer, settings.task.task == "masked-image-modeling"
    crop = partial(
        RandomCrop,
        settings.transforms,
        settings.task.image_size,
        arguments.seed,
        multiple=settings.task.mask_patch_size if masked else 1,
    )
    if stream is not None:
        return StreamedImages(stream, settings.images, crop(), arguments.process_index, arguments.world_size)
    number = settings.transforms.repeats * len(examples["train"])
    batch_size = arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    hint = "lower --per_device_train_batch_size or --global_batch_size"
    require(batch_size <= number, "global_batch_size", f"be at most the {number} images", batch_size, hint)
    steps = number // batch_size
    epochs = arguments.max_steps / steps if arguments.max_steps > 0 else arguments.num_train_epochs
    return TrainingImages(examples["train"], crop(num_epochs=math.ceil(epochs)), settings.transforms.repeats)


def _judge_by(task: Task, arguments: FinetuneArguments) -> None:
    """Let the task say which checkpoint is best, unless the user did."""
    arguments.metric_for_best_model = arguments.metric_for_best_model or task.metric_names[0]
    name = arguments.metric_for_best_model.removeprefix("eval_")
    rule = f"be one of {', '.join((*task.metric_names, 'loss'))}"
    require(name in (*task.metric_names, "loss"), "metric_for_best_model", rule, name)
    if arguments.greater_is_better is None:
        arguments.greater_is_better = name not in LOWER_IS_BETTER


def make_task(
    settings: FinetuneSettings, model: PreTrainedModel, processor, class_names: list[str], examples: list[Example]
) -> Task:
    """The task, with weights of the classes if they are to be balanced."""
    if settings.task.task == "masked-image-modeling":
        side, size = settings.task.mask_patch_size, settings.task.image_size
        patch = model.config.patch_height_width[0]
        fits = side % patch == 0 and size % side == 0
        require(fits, "mask_patch_size", f"be a multiple of the patch of {patch} pixels and divide --image_size {size}", side)
        return MaskedImageModeling(processor, patch, settings.task)
    class_weights = None
    if settings.optimisation.class_weights == "balanced":
        class_weights = balanced_weights(examples, len(class_names))
    if settings.task.task == "semantic-segmentation":
        return SemanticSegmentation(processor, class_names, settings.transforms, class_weights)
    return ImageClassification(
        processor, class_names, settings.transforms, settings.trainer.label_smoothing_factor, class_weights
    )


def balanced_weights(examples: list[Example], num_classes: int) -> torch.Tensor:
    """The inverse frequencies of classes of images or, where there are masks, of pixels; a class that is never seen gets 0."""
    counts = np.bincount([example.label for example in examples if example.mask is None], minlength=num_classes)
    for example in examples:
        if example.mask is not None:
            pixels = np.asarray(example.load_mask()).ravel()
            counts += np.bincount(pixels, minlength=max(num_classes, IGNORED + 1))[:num_classes]
    return torch.tensor([counts.sum() / (num_classes * count) if count else 0.0 for count in counts], dtype=torch.float32)


def write_card(settings: FinetuneSettings, figures: dict[str, float], output_dir: Path) -> None:
    """A model card with what was trained on what, and the figures measured here."""
    pipeline = PIPELINES.get(settings.task.task)
    data = ModelCardData(library_name="transformers", pipeline_tag=pipeline)
    changes = f" with `{settings.task.model_args}`" if settings.task.model_args else ""
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items())
    text = f"""---
{data.to_yaml()}
---

# {output_dir.name}

`{settings.task.model}`{changes}, trained for {settings.task.task} on `{settings.images.dataset}` at \
{settings.task.image_size} x {settings.task.image_size} pixels with swin-hf's `scripts/finetune.py`.

| figure | value |
|---|---|
{rows}
"""
    ModelCard(text).save(output_dir / "README.md")


def _set_batch_size(settings: FinetuneSettings) -> None:
    """Divide `--global_batch_size` among processes and accumulated batches."""
    arguments, whole = settings.trainer, settings.optimisation.global_batch_size
    if not whole:
        return
    devices = arguments.world_size * max(arguments.n_gpu, 1)  # one process on several GPUs, where nothing launched more
    parts = devices * arguments.gradient_accumulation_steps
    require(whole % parts == 0, "global_batch_size", f"be a multiple of processes x accumulated batches = {parts}", whole)
    arguments.per_device_train_batch_size = whole // parts


def _checkpoint_to_resume(settings: FinetuneSettings) -> str | None:
    """The last checkpoint if `--resume`; else make sure that nothing is there to be overwritten."""
    output_dir = Path(settings.trainer.output_dir)
    checkpoint = last_whole_checkpoint(output_dir)
    if settings.task.resume:
        require(checkpoint is not None, "resume", f"find a checkpoint in {output_dir}", "none", "leave out --resume")
        return checkpoint
    used = checkpoint is not None or (output_dir / "model.safetensors").is_file()
    require(not used, "output_dir", "be new or empty", str(output_dir), "add --resume true, or give another --output_dir")
    return None
