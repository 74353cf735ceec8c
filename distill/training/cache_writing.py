"""Asking teachers for a training to come: the same images, batches and augmentation, and no student."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from distill import interruption
from distill.claim import claimed
from distill.data.examples import TrainingImages, collate
from distill.errors import require
from distill.training.finetune import (
    TrainingData,
    find_training_images,
    look_through,
    make_objective,
    num_epochs_of,
    training_images,
)
from distill.training.settings import FinetuneSettings, settled
from distill.training.teacher_cache import (
    RECORD,
    Shard,
    begin_epoch,
    check_facts,
    facts_in,
    facts_of,
    finish_epoch,
    folder_of,
    why_incomplete,
)
from distill.training.teaching import load_teachers
from distill.training.trainer import TaskTrainer
from swin_hf import SwinHfImageProcessorPil
from swin_hf.output_folders import check_apart, explained_full_disk, list_files, write_json


def cache_teacher(settings: FinetuneSettings) -> dict[str, float]:
    """Write what the teachers of a training will say to `--teacher_cache`; returns figures of what was written.

    Epochs that are there already are kept.

    Raises:
        SettingsError: no teacher or no folder is named.
        CacheError: the folder holds the cache of another training.
        OutputError: it holds other files, or is one of the inputs, or nothing can be written there.
    """
    require(bool(settings.teachers), "teacher", "name a model to ask", "none")
    require(bool(settings.teacher_cache), "teacher_cache", "name the folder to write", "none")
    settings.images.require_dataset()
    folder = Path(settings.teacher_cache)
    settings = settled(settings).changed(output_dir=str(folder), push_to_hub=False)
    for teacher in settings.teachers:
        check_apart(folder, "--teacher_cache", dataset=settings.images.dataset, teacher=teacher)
    with _claimed(settings, folder), explained_full_disk(folder, "free some space and call this again, which goes on"):
        return _cache_teacher(settings, folder)


@contextmanager
def _claimed(settings: FinetuneSettings, folder: Path) -> Iterator[None]:
    if settings.trainer.process_index:  # the first process claims the folder; the others wait for it when images are found
        yield
        return
    with claimed(folder, RECORD, flag="--teacher_cache"):
        yield


@torch.no_grad()
def _cache_teacher(settings: FinetuneSettings, folder: Path) -> dict[str, float]:
    arguments = settings.trainer
    stream, found = find_training_images(settings)
    teachers = load_teachers(settings, found.class_names).hasten(arguments.device).to(arguments.device)
    data = look_through(settings, stream, found, known=False)
    epochs = num_epochs_of(settings, len(data.examples["train"]))
    facts = facts_of(settings, data.class_names, data.examples["train"], epochs)
    trainer, images = _loader_of(settings, data)
    if facts_in(folder) is not None:
        check_facts(folder, facts)
    elif arguments.process_index == 0:
        write_json(folder / RECORD, {"files": {}, "facts": facts})
    objective = trainer.objective.to(arguments.device)
    missing = [epoch for epoch in range(epochs) if why_incomplete(folder, epoch)]
    loader = trainer.get_train_dataloader()
    is_hidden = arguments.disable_tqdm or arguments.process_index > 0
    bar = tqdm(total=len(missing) * len(loader), unit="batch", disable=is_hidden)
    for epoch in missing:
        if arguments.process_index == 0:
            begin_epoch(folder, epoch)
        trainer.accelerator.wait_for_everyone()
        shard = Shard(settings.distillation.kd_top_k)
        images.begin_epoch(epoch)
        for batch in _batches(loader, images, epoch, settings):
            interruption.check()
            inputs = trainer._prepare_inputs(batch)
            pixels, _ = objective.augmented(inputs["pixels"].float() / 255, inputs["targets"], inputs["crop"])
            shard.add(inputs["crop"], teachers(pixels))
            bar.update()
        shard.write(folder_of(folder, epoch), arguments.process_index)
        trainer.accelerator.wait_for_everyone()
        if arguments.process_index == 0:
            finish_epoch(folder, epoch, arguments.world_size)
        trainer.accelerator.wait_for_everyone()
    bar.close()
    size = sum(size for name, size in list_files(folder).items() if name.endswith(".safetensors"))
    return {
        "epochs": epochs,
        "epochs_written": len(missing),
        "size_bytes": size,
        "bytes_per_image_and_epoch": size / (epochs * len(images)),
    }


def _batches(loader: DataLoader, images: TrainingImages, epoch: int, settings: FinetuneSettings) -> DataLoader:
    """This process's part of the batches of an epoch.

    A sharded loader leaves out the last batches if they are too few for all processes, which one process would not.
    """
    arguments, sampler = settings.trainer, loader.batch_sampler
    loader.set_epoch(epoch)
    if arguments.world_size > 1 and arguments.dataloader_drop_last:
        own = list(sampler.batch_sampler)[arguments.process_index :: arguments.world_size]
    else:
        own = list(sampler)  # once: each pass is that of another epoch
    return DataLoader(images, batch_sampler=own, collate_fn=collate, num_workers=arguments.dataloader_num_workers)


def _loader_of(settings: FinetuneSettings, data: TrainingData) -> tuple[TaskTrainer, TrainingImages]:
    """A trainer of nothing, whose loader gives the batches of the training."""
    images = training_images(settings, data)
    size = {"height": settings.task.image_size, "width": settings.task.image_size}
    objective = make_objective(settings, None, SwinHfImageProcessorPil(size=size), data)  # of which only `augmented` is used
    trainer = TaskTrainer(
        model=nn.Linear(1, 1),
        args=settings.trainer,
        train_dataset=images,
        eval_dataset=images,  # which the Trainer asks for, and which is not used
        task=settings.kind,
        objective=objective,
        optimisation=replace(settings.optimisation, ema_decay=0.0),
    )
    return trainer, images
