"""From settings to a trained model: data, model, training, figures of the test images, and a checkpoint folder."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    TrainerCallback,
    set_seed,
)

from distill.claim import claimed
from distill.compress.teachers import Teachers
from distill.data.examples import UNKNOWN, BeginEpoch, EvaluationImages, Example, TrainingImages
from distill.data.finding import find_images
from distill.data.sources import SPLITS, FoundImages
from distill.data.splits import prepare_splits
from distill.data.streaming import Stream, StreamedImages, open_stream
from distill.data.transforms import IGNORED, RandomCrop
from distill.errors import SettingsError, require
from distill.memory import keep_freed_memory
from distill.precision import device_in_words
from distill.training.card import write_training_card
from distill.training.figures import as_agreement, evaluation_of
from distill.training.models import load_model, load_processor
from distill.training.optimisation import freeze_stages, synchronised
from distill.training.pictures import PredictionPictures
from distill.training.settings import FinetuneSettings, settled
from distill.training.stream_trainer import StreamTrainer
from distill.training.tasks.task import Objective, ObjectiveContext
from distill.training.teacher_cache import TeacherCache, check_facts, facts_of
from distill.training.teaching import load_teachers, taught
from distill.training.trainer import TaskTrainer, last_whole_checkpoint, steps_of_epoch
from edge.device.errors import ExplainedError
from edge.device.scores import largest_class_share
from swin_hf.model_card import read_metrics
from swin_hf.output_folders import changes, check_apart, explained_full_disk, read_record, write_record

METRICS = "metrics.json"
CARD = "README.md"
RECORD = "training.json"  # in --output_dir: this project trains here


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Images that were found, split and checked.

    examples: by split; those for training are missing where there is a stream of them.
    labelled_by_teacher: the labels are the classes that the teacher found, so that accuracies are agreements with it.
    """

    class_names: list[str]
    examples: dict[str, list[Example]]
    stream: Stream | None = None
    labelled_by_teacher: bool = False


def finetune(settings: FinetuneSettings, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, float]:
    """Train, write the model with its processor, figures and card to `--output_dir`, and return the figures.

    callbacks: of the Trainer, in addition to our own.

    Raises:
        OutputError: `--output_dir` holds other files, or is one of the inputs, or nothing can be written there.
        TrainingStopped: SIGTERM came before the end; a checkpoint was written.
    """
    settings.images.require_dataset()
    settings = settled(settings)
    output_dir = Path(settings.trainer.output_dir)
    model = settings.model
    check_apart(output_dir, "--output_dir", dataset=settings.images.dataset, model=model.name, init_from=model.init_from)
    for teacher in settings.teachers:
        check_apart(output_dir, "--output_dir", teacher=teacher)
    with _claimed(settings), explained_full_disk(output_dir, "free some space and go on with --resume true"):
        return _finetune(settings, callbacks)


def _finetune(settings: FinetuneSettings, callbacks: Sequence[TrainerCallback]) -> dict[str, float]:
    checkpoint = _checkpoint_to_resume(settings)
    stream, found = find_training_images(settings)
    check_judge(settings, len(found.class_names))
    model = build_model(settings, found.class_names)
    load_processor(settings.model, settings.task.image_size, settings.crops, model.config)  # before a look at all images
    teacher = None if settings.teacher_cache else load_teachers(settings, found.class_names)
    data = look_through(settings, stream, found, known=checkpoint is not None)
    if settings.teacher_cache:
        teacher = open_cache(settings, data)
    if settings.trainer.process_index == 0:
        print(f"training on {device_in_words(settings.trainer)}", flush=True)
    figures = train_model(settings, model, data, teacher=teacher, checkpoint=checkpoint, callbacks=callbacks)
    if settings.trainer.should_save:
        write_training_card(settings, model, Path(settings.trainer.output_dir))
        write_record(Path(settings.trainer.output_dir), RECORD, {})
    return figures


def check_judge(settings: FinetuneSettings, num_classes: int) -> None:
    """Check that the figure which selects the best checkpoint is known of so many classes.

    Raises:
        SettingsError: it is not.
    """
    judge = settings.trainer.metric_for_best_model.removeprefix("eval_")
    for metric in settings.kind.judged_by:
        if metric.name == judge:
            rule = f"be a figure of {num_classes} classes; {judge} takes {metric.fewest_classes} or more"
            require(num_classes >= metric.fewest_classes, "metric_for_best_model", rule, judge)


def build_model(settings: FinetuneSettings, class_names: list[str], announce: bool = True) -> PreTrainedModel:
    """The model to train, with frozen stages if asked for; the seed decides its new weights.

    Raises:
        ModelError, SettingsError, LayerError: there is no such model, or its batch norms cannot be synchronised.
    """
    set_seed(settings.trainer.seed)
    model = load_model(settings.model, settings.kind, class_names, settings.task.image_size, announce)
    if settings.optimisation.sync_batch_norm:
        model = synchronised(model, settings.trainer.world_size, settings.trainer.device)
    freeze_stages(model, settings.optimisation.frozen_stages)
    return model


def open_cache(settings: FinetuneSettings, data: TrainingData) -> TeacherCache:
    """What the teachers said of the images of this training.

    Raises:
        CacheError: the cache is not there, is not complete, or was written for another training.
    """
    examples, folder = data.examples["train"], Path(settings.teacher_cache)
    epochs = num_epochs_of(settings, len(examples))
    check_facts(folder, facts_of(settings, data.class_names, examples, epochs))
    return TeacherCache(folder, len(data.class_names), epochs)


def train_model(
    settings: FinetuneSettings,
    model: PreTrainedModel,
    data: TrainingData,
    *,
    teacher: Teachers | TeacherCache | None = None,
    checkpoint: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, float]:
    """Train a model and write it with its processor and figures to the output folder; returns the figures.

    teacher: to distil from.
    checkpoint: from which the training resumes.

    Raises:
        TrainingStopped: SIGTERM came before the end; a checkpoint was written.
    """
    settings = settled(settings)
    keep_freed_memory()
    arguments, output_dir = settings.trainer, Path(settings.trainer.output_dir)
    processor = load_processor(settings.model, settings.task.image_size, settings.crops, model.config)
    objective = make_objective(settings, model.config, processor, data)
    if teacher is not None:
        objective = taught(objective, model, teacher, settings, checkpoint)
    training = training_images(settings, data)
    validation, test = (EvaluationImages(data.examples[split], processor) for split in ("validation", "test"))
    trainer_class = StreamTrainer if data.stream else TaskTrainer
    try:
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=training,
            eval_dataset=validation,
            processing_class=processor,
            task=settings.kind,
            objective=objective,
            optimisation=settings.optimisation,
            callbacks=[*callbacks] if data.stream else [*callbacks, BeginEpoch(training)],
        )
        trainer.get_optimizer_cls_and_kwargs(arguments, model)  # not made yet: FSDP shards the weights first
    except ExplainedError:
        raise
    except (ValueError, RuntimeError, ImportError) as error:  # a tracker or an optimiser that is not there
        raise SettingsError(f"transformers.Trainer refuses its arguments: {error}") from error
    if settings.task.num_pictures:
        trainer.add_callback(PredictionPictures(trainer, validation, settings.task.num_pictures))
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    prediction = trainer.predict(test, metric_key_prefix="test")
    figures = {name: value for name, value in prediction.metrics.items() if not name.endswith(("_runtime", "_second"))}
    figures |= {"train_loss": trained.training_loss, "num_test_images": len(test)}
    best = settings.kind.best_by.name
    validated = [row[f"eval_{best}"] for row in trainer.state.log_history if f"eval_{best}" in row]
    if validated:
        kept_best = arguments.load_best_model_at_end and arguments.metric_for_best_model.removeprefix("eval_") == best
        figures[f"validation_{best}"] = trainer.state.best_metric if kept_best else validated[-1]
    if objective.is_calibrated and not data.labelled_by_teacher:  # a teacher is always right about its own classes
        for name, value in objective.calibrate(trainer.predict(validation, metric_key_prefix="validation")).items():
            setattr(model.config, name, value)
    trainer.save_averaged_model(output_dir)
    if arguments.should_save:
        share = largest_class_share(prediction.label_ids) if best == "accuracy" else None
        metric = as_agreement(best) if data.labelled_by_teacher else best
        evaluation = evaluation_of(metric, figures[f"test_{best}"], len(test), settings.images, share)
        record, history = figures | objective.details(prediction), trainer.state.log_history
        if data.labelled_by_teacher:
            record, *history = ({as_agreement(name): value for name, value in own.items()} for own in (record, *history))
        write_metrics(output_dir, record | {"evaluation": evaluation, "history": history})
    return figures


def write_metrics(folder: Path, figures: dict[str, Any]) -> None:
    """Write `metrics.json`, in which figures that are NaN or infinite are null."""
    text = json.dumps(_finite(figures), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / METRICS).write_text(f"{text}\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no NaN: null takes its place."""
    if isinstance(value, dict):
        return {name: _finite(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def doubt_of(folder: Path) -> str:
    """What to say first of the model in a folder if nothing shows that it learned anything, else empty."""
    _, evaluation = read_metrics(folder / METRICS)
    return evaluation.doubt if evaluation else ""


def find_training_images(settings: FinetuneSettings) -> tuple[Stream | None, FoundImages]:
    """The stream to train on, if there is one, and the stored images."""
    images, targets = settings.images, settings.kind.targets
    with settings.trainer.main_process_first(desc="finding the images"):
        if images.streaming:
            stream = open_stream(targets, images, Path(settings.trainer.output_dir))
            return stream, stream.held_out
        class_names = Path(images.class_names) if images.class_names else None
        return None, find_images(images.dataset, targets, class_names, images.drop_small_classes)


def look_through(settings: FinetuneSettings, stream: Stream | None, found: FoundImages, known: bool) -> TrainingData:
    """The images by split, without unreadable ones. known: the split was recorded before the training was interrupted."""
    arguments = settings.trainer
    with arguments.main_process_first(desc="checking the images"):
        known = known or arguments.local_process_index > 0
        examples = prepare_splits(found, settings.images, Path(arguments.output_dir) / "data.json", known)
    if arguments.process_index == 0:
        counts = ", ".join(f"{len(examples[split])} {split}" for split in SPLITS if split in examples)
        print(f"{len(found.class_names)} classes; images: {counts}{' and a stream' if stream else ''}", flush=True)
    return TrainingData(class_names=found.class_names, examples=examples, stream=stream)


def training_images(settings: FinetuneSettings, data: TrainingData) -> TrainingImages | StreamedImages:
    """Random crops of the training images; there must be enough for one step."""
    arguments, repeats = settings.trainer, settings.transforms.repeated_augmentation
    multiple = settings.kind.size_multiple(settings.task)
    crop = partial(RandomCrop, settings.transforms, settings.task.image_size, arguments.seed, multiple=multiple)
    if data.stream is not None:
        return StreamedImages(data.stream, settings.images, crop(), arguments.process_index, arguments.world_size)
    number = repeats * len(data.examples["train"])
    batch_size = _images_of_step(settings)
    hint = "lower --per_device_train_batch_size or --global_batch_size"
    require(batch_size <= number, "global_batch_size", f"be at most the {number} images", batch_size, hint)
    return TrainingImages(
        data.examples["train"], crop(num_epochs=num_epochs_of(settings, len(data.examples["train"]))), repeats
    )


def _images_of_step(settings: FinetuneSettings) -> int:
    arguments = settings.trainer
    return arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps


def num_epochs_of(settings: FinetuneSettings, num_images: int) -> int:
    """The epochs of a training on so many images, the last of which may be cut short."""
    arguments = settings.trainer
    if arguments.max_steps <= 0:
        return math.ceil(arguments.num_train_epochs)
    return math.ceil(arguments.max_steps / steps_of_epoch(arguments, settings.transforms.repeated_augmentation * num_images))


def make_objective(settings: FinetuneSettings, config: PreTrainedConfig | None, processor, data: TrainingData) -> Objective:
    """The objective of the task, with class weights if they are balanced."""
    examples = data.examples.get("train", [])
    balanced = settings.optimisation.class_weights == "balanced"
    context = ObjectiveContext(
        task=settings.task,
        transforms=settings.transforms,
        config=config,
        processor=processor,
        class_names=data.class_names,
        label_smoothing=settings.trainer.label_smoothing_factor,
        class_weights=balanced_weights(examples, len(data.class_names)) if balanced else None,
    )
    return settings.kind.make_objective(context)


def balanced_weights(examples: list[Example], num_classes: int) -> torch.Tensor:
    """The inverse frequencies of classes of images or, where there are masks, of pixels; 0 for a class that does not occur."""
    labels = [example.label for example in examples if example.mask is None and example.label != UNKNOWN]
    counts = np.bincount(labels, minlength=num_classes)
    for example in examples:
        if example.mask is not None:
            pixels = np.asarray(example.load_mask()).ravel()
            counts += np.bincount(pixels, minlength=max(num_classes, IGNORED + 1))[:num_classes]
    return torch.tensor([counts.sum() / (num_classes * count) if count else 0.0 for count in counts], dtype=torch.float32)


@contextmanager
def _claimed(settings: FinetuneSettings) -> Iterator[None]:
    """Have `--output_dir` for this training alone: it must be new or, with `--resume`, hold a training.

    Raises:
        SettingsError: there is nothing to resume.
        OutputError: it holds other files, or nothing can be written there.
        filelock.Timeout: another training is at work there.
    """
    output_dir, is_resumed = Path(settings.trainer.output_dir), settings.task.resume
    if settings.trainer.process_index:  # the first process claims the folder; the others wait for it when images are found
        yield
        return
    if is_resumed:
        record = read_record(output_dir, RECORD)
        require(record is not None, "resume", f"find a training in {output_dir}", "none", "leave out --resume")
        changed = [name for name in (METRICS, CARD) if (output_dir / name).exists() and name not in record["files"]]
        changed += [words.split()[0] for words in changes(output_dir, record) if words.startswith((METRICS, CARD))]
        rule = "be as the training left them, which writes them again"
        require(not changed, "resume", f"find {METRICS} and {CARD} in {output_dir} {rule}", changed, "move them elsewhere")
    with claimed(output_dir, RECORD, is_resumed, hint="add --resume true, or give another --output_dir"):
        yield


def _checkpoint_to_resume(settings: FinetuneSettings) -> str | None:
    """The last whole checkpoint with `--resume`, or None: a training that was stopped before its first begins anew.

    Raises:
        OutputError: there are checkpoints, but none is whole.
    """
    if not settings.task.resume:
        return None
    with settings.trainer.main_process_first(desc="looking for a checkpoint"):
        return last_whole_checkpoint(Path(settings.trainer.output_dir))
