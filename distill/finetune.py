"""From settings to a fine-tuned model: data, model, training, the figures of the test images, and a folder to load."""

import json
import re
from collections import Counter
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    PreTrainedModel,
    set_seed,
)

from distill.command_line import SettingsError, require
from distill.data import SPLITS, DataError, find_labelled_images
from distill.finetune_data import EvaluationImages, Example, TrainingImages, collate, prepare_splits
from distill.finetune_settings import FinetuneSettings
from distill.finetune_trainer import DivergenceError, FinetuneTrainer
from distill.optimisation import LayerError, freeze_stages
from distill.tasks import ImageClassification, MaskedImageModeling, Task
from distill.training import last_whole_checkpoint, show_progress
from distill.transforms import RandomCrop
from swin_hf import SwinHfConfig, SwinHfImageProcessorPil
from swin_hf.presets_swin_hf import PRESETS

AUTO_CLASSES = {
    "image-classification": AutoModelForImageClassification,
    "masked-image-modeling": AutoModelForMaskedImageModeling,
}
FRESH_WEIGHTS = re.compile(r"^(classifier|decoder)\.|mask_token$")  # of a head, which a checkpoint need not have


class ModelError(ValueError):
    """`--model` cannot be trained for the task; the message says why."""


EXPLAINED_ERRORS = (SettingsError, DataError, ModelError, LayerError, DivergenceError, OSError)


def finetune(settings: FinetuneSettings) -> dict[str, float]:
    """Train, write the model with its processor, figures and card to `--output_dir`, and return the figures.

    A training that SIGTERM ends writes a checkpoint and returns no figures.
    """
    arguments, output_dir = settings.trainer, Path(settings.trainer.output_dir)
    checkpoint = _checkpoint_to_resume(settings)
    _set_batch_size(settings)
    found = find_labelled_images(settings.images.dataset)
    set_seed(arguments.seed)
    model = load_model(settings, found.class_names)
    processor = load_processor(settings)
    freeze_stages(model, settings.optimisation.frozen_stages)
    with arguments.main_process_first(desc="looking through the images"):
        examples = prepare_splits(found, settings.images, output_dir / "data.json")
    if arguments.process_index == 0:
        counts = ", ".join(f"{len(examples[split])} {split}" for split in SPLITS)
        print(f"{len(found.class_names)} classes; images: {counts}", flush=True)
    task = make_task(settings, model, processor, found.class_names, examples["train"])
    arguments.metric_for_best_model = arguments.metric_for_best_model or task.best_metric
    if arguments.greater_is_better is None or arguments.metric_for_best_model == task.best_metric:
        arguments.greater_is_better = task.greater_is_better
    training_images = settings.transforms.repeats * len(examples["train"])
    batch_size = arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    hint = "lower --per_device_train_batch_size or --global_batch_size"
    require(batch_size <= training_images, "global_batch_size", f"be at most the {training_images} images", batch_size, hint)
    crop = RandomCrop(settings.transforms, settings.task.image_size, arguments.seed)
    trainer = FinetuneTrainer(
        model=model,
        args=arguments,
        train_dataset=TrainingImages(examples["train"], crop, settings.transforms.repeats),
        eval_dataset=EvaluationImages(examples["validation"], processor),
        data_collator=collate,
        compute_metrics=task.metrics,
        processing_class=processor,
        task=task,
        optimisation=settings.optimisation,
        image_size=settings.task.image_size,
    )
    show_progress(trainer)
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.was_stopped and trainer.state.global_step < trainer.state.max_steps:
        print(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; go on with --resume true")
        return {}
    prediction = trainer.predict(EvaluationImages(examples["test"], processor), metric_key_prefix="test")
    figures = {name: value for name, value in prediction.metrics.items() if not name.endswith(("_runtime", "_second"))}
    figures |= {"train_loss": trained.training_loss, "num_test_images": len(examples["test"])}
    trainer.save_averaged_model(output_dir)
    if arguments.should_save:
        details = task.details(prediction)
        (output_dir / "metrics.json").write_text(json.dumps(figures | details, indent=2, ensure_ascii=False) + "\n")
        write_card(settings, figures, output_dir)
    return figures


def load_model(settings: FinetuneSettings, class_names: list[str]) -> PreTrainedModel:
    """The model of `--model` with a head for these classes: a checkpoint's at `--image_size`, or a preset's, untrained.

    Raises:
        ModelError: it cannot be loaded, or the checkpoint lacks weights that are not its head's.
    """
    task = settings.task
    changes = yaml.safe_load(task.model_args or "{}")
    require(isinstance(changes, dict), "model_args", 'be YAML like "{depths: [1, 2]}"', task.model_args)
    if task.task == "image-classification":
        changes |= {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}
    auto_class = AUTO_CLASSES[task.task]
    try:
        if task.model in PRESETS:
            config = PRESETS[task.model](**{"image_size": task.image_size} | changes)
            if task.task == "masked-image-modeling" and "encoder_stride" not in changes:
                config.encoder_stride = config.token_height_width[0]
            return auto_class.from_config(config)
        config = AutoConfig.from_pretrained(task.model, **changes)
        if isinstance(config, SwinHfConfig):
            config.image_size = task.image_size
        model, report = auto_class.from_pretrained(
            task.model, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"--model {task.model} must be a preset ({', '.join(PRESETS)}), or a checkpoint folder or Hub id for "
            f"{auto_class.__name__}: {error}"
        ) from error
    mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}  # alone, or with both shapes
    fresh = sorted(set(report["missing_keys"]) | mismatched)
    lacking = [key for key in fresh if not FRESH_WEIGHTS.search(key)]
    if lacking:
        raise ModelError(f"--model {task.model} lacks weights of {type(model).__name__}: {', '.join(lacking[:5])}")
    if settings.trainer.process_index == 0:
        print(f"weights from {task.model}; new: {', '.join(fresh) or 'none'}", flush=True)
    return model


def load_processor(settings: FinetuneSettings):
    """The checkpoint's image processor at `--image_size`, or ours for a preset."""
    size = {"height": settings.task.image_size, "width": settings.task.image_size}
    if settings.task.model in PRESETS:
        return SwinHfImageProcessorPil(size=size)
    try:
        return AutoImageProcessor.from_pretrained(settings.task.model, backend="pil", size=size)
    except OSError:
        return SwinHfImageProcessorPil(size=size)


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
        counts = Counter(example.label for example in examples)
        class_weights = torch.tensor([len(examples) / (len(class_names) * counts[label]) for label in range(len(class_names))])
    return ImageClassification(
        processor, class_names, settings.transforms, settings.trainer.label_smoothing_factor, class_weights
    )


def write_card(settings: FinetuneSettings, figures: dict[str, float], output_dir: Path) -> None:
    """A model card with what was trained on what, and the figures measured here."""
    pipeline = settings.task.task if settings.task.task == "image-classification" else None
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
    parts = arguments.world_size * arguments.gradient_accumulation_steps
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
