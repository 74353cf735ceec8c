"""A cache of what teachers say of the augmented images of a training, so that they need not be asked again.

A folder with `cache.json`, which says what the images and the teachers are, and a folder for each epoch with a file of each
process that wrote it. Nothing but the images' numbers and logits is kept: the augmentation of a batch is drawn from the seed,
the epoch and the number of its first image.
"""

# B batch, K classes, k probabilities that are kept

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from distill.compress.top_probabilities import compress, restore
from distill.data.examples import Example
from edge.device.errors import ExplainedError
from swin_hf.output_folders import OutputError, changes, hashes_of, read_record, write_record

if TYPE_CHECKING:  # the settings import the tasks, which read a cache
    from distill.training.settings import FinetuneSettings

RECORD = "cache.json"
EPOCH = "epoch.json"  # written last into the folder of an epoch
WHAT_A_TEACHER_IS = (".safetensors", ".bin", ".pth", ".pt", "config.json")  # ends of file names


class CacheError(ExplainedError):
    """A cache does not hold what a training needs; the message says what differs."""


def facts_of(settings: "FinetuneSettings", class_names: list[str], examples: list[Example], num_epochs: int) -> dict[str, Any]:
    """Everything that the logits in a cache depend on, as JSON values by the flags that decide them."""
    trainer, transforms = settings.trainer, settings.transforms
    images = json.dumps([class_names, [(_content_of(example), example.label) for example in examples]])
    drops = trainer.dataloader_drop_last
    facts = {
        "teacher": [teacher_facts(name) for name in settings.teachers],
        "dataset": {"sha256": sha256(images.encode()).hexdigest()},
        "image_size": settings.task.image_size,
        "augmentation": asdict(transforms),
        "seed": trainer.seed,
        "data_seed": trainer.data_seed,
        "per_device_train_batch_size": trainer.train_batch_size,
        "dataloader_drop_last": drops or f"false, with {trainer.world_size} process(es)",  # which fill up the last batch
        "kd_top_k": settings.distillation.kd_top_k,
    }
    if transforms.initial_image_size:
        facts["num_train_epochs"] = num_epochs  # in which the images grow
    return facts


def _content_of(example: Example) -> str:
    """The sha256 of an image's file or bytes."""
    opened = example.source.open()
    return sha256(opened.read_bytes() if isinstance(opened, Path) else opened.getvalue()).hexdigest()


def teacher_facts(name: str) -> dict[str, str]:
    """A teacher's name and, if it lies on this disk, the sha256 of its weights and configurations."""
    path = Path(name)
    if path.is_file():
        return {"name": path.name} | hashes_of(path.parent, [path.name])
    files = sorted(file.name for file in path.iterdir() if file.name.endswith(WHAT_A_TEACHER_IS)) if path.is_dir() else []
    return {"name": path.name if files else name} | hashes_of(path, files)


def facts_in(folder: Path) -> dict[str, Any] | None:
    """What a cache was written for, or None if a folder holds none of an epoch or more."""
    record = read_record(folder, RECORD)
    return record.get("facts") if record is not None and any(folder.glob(f"*/{EPOCH}")) else None


def check_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Check that a cache was written for these facts.

    Raises:
        CacheError: there is none, or it was written for others.
        OutputError: its record is damaged.
    """
    found = facts_in(folder)
    if found is None:
        raise CacheError(
            f"--teacher_cache must name a folder that scripts/cache_teacher.py wrote, got {folder}; call that with the same "
            "flags"
        )
    expected = json.loads(json.dumps(facts))
    differing = [name for name in expected if found.get(name) != expected[name]]
    differing += [name for name in found if name not in expected]
    if differing:
        shown = [name for name in differing if isinstance(expected.get(name), str | int | bool)]
        details = "".join(f"; {name} was {found.get(name)}, is {expected[name]}" for name in shown)
        raise CacheError(
            f"--teacher_cache {folder} was written with another {', '.join(differing)}{details}; call "
            "scripts/cache_teacher.py with the flags of this training and another --teacher_cache"
        )


def folder_of(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}"


def why_incomplete(folder: Path, epoch: int) -> str:
    """Why an epoch of a cache cannot be used, in words; empty if it can."""
    own = folder_of(folder, epoch)
    try:
        record = read_record(own, EPOCH)
    except OutputError:
        return f"{own.name}/{EPOCH} is damaged"
    if record is None:
        return f"{own.name} is missing"
    if differing := changes(own, record):
        return f"{own.name}/{differing[0]}"
    hashes = hashes_of(own, record["sha256"])
    damaged = [name for name in hashes if hashes[name] != record["sha256"][name]]
    return f"{own.name}/{damaged[0]} is damaged" if damaged else ""


class Shard:
    """What one process has to write of an epoch, batch by batch."""

    def __init__(self, top_k: int):
        self.top_k = top_k
        self.numbers: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        self.classes: list[torch.Tensor] = []

    def add(self, crops: np.ndarray, logits: torch.Tensor) -> None:
        """A batch: crops (B, 2), epoch and number of each image, and logits (B, K)."""
        self.numbers.append(torch.from_numpy(crops[:, 1]).int())
        if self.top_k:
            logits, classes = compress(logits, min(self.top_k, logits.shape[1]))
            self.classes.append(classes.cpu())
        self.logits.append(logits.cpu())

    def write(self, folder: Path, process: int) -> None:
        """A file with the numbers and logits of all batches, one after the other, and where each batch ends."""
        tensors = {
            "numbers": torch.cat(self.numbers),
            "ends": torch.tensor([len(own) for own in self.numbers]).cumsum(0),
            "logits": torch.cat(self.logits),
        }
        if self.top_k:
            classes = torch.cat(self.classes)
            tensors["classes"] = classes.short() if classes.max() < 2**15 else classes
        save_file(tensors, folder / f"process-{process}.safetensors")


def begin_epoch(folder: Path, epoch: int) -> None:
    """An empty folder for an epoch; files of one that was not finished, or was damaged, are removed."""
    own = folder_of(folder, epoch)
    own.mkdir(exist_ok=True)
    for file in [own / EPOCH, *own.glob("process-*.safetensors")]:
        file.unlink(missing_ok=True)


def finish_epoch(folder: Path, epoch: int, num_processes: int) -> None:
    """Record that the files of an epoch, one of each process, are complete."""
    own = folder_of(folder, epoch)
    names = [f"process-{process}.safetensors" for process in range(num_processes)]
    write_record(own, EPOCH, {"sha256": hashes_of(own, names)})


class TeacherCache(nn.Module):
    """Teachers whose logits were written before; the files of an epoch are read when it begins.

    Raises:
        CacheError: an epoch is missing or damaged.
    """

    def __init__(self, folder: Path, num_classes: int, num_epochs: int):
        super().__init__()
        self.folder, self.num_classes = folder, num_classes
        self.epoch, self.batches = -1, {}
        for epoch in range(num_epochs):
            if why := why_incomplete(folder, epoch):
                raise CacheError(
                    f"--teacher_cache {folder} must hold {num_epochs} epochs, {why}; call scripts/cache_teacher.py again with "
                    "the flags of this training, it goes on where it ended"
                )

    def logits(self, crops: np.ndarray, device: torch.device) -> torch.Tensor:
        """Logits (B, K) of a batch.

        crops: (B, 2), epoch and number of each image.

        Raises:
            CacheError: there was no such batch.
        """
        epoch, numbers = int(crops[0, 0]), crops[:, 1]
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, read_epoch(folder_of(self.folder, epoch))
        known, values, classes = self.batches.get(int(numbers[0]), (np.empty(0), None, None))
        if not np.array_equal(known, numbers):
            raise CacheError(
                f"--teacher_cache {self.folder} has no batch of these {len(numbers)} images in epoch {epoch}; call "
                "scripts/cache_teacher.py with the flags and the number of processes of this training"
            )
        values = values.to(device)
        return values if classes is None else restore(values, classes.to(device), self.num_classes)


def read_epoch(folder: Path) -> dict[int, tuple[np.ndarray, torch.Tensor, torch.Tensor | None]]:
    """The batches of an epoch by the number of their first image: numbers (B,), logits (B, k) and their classes, if kept."""
    batches = {}
    for file in sorted(folder.glob("process-*.safetensors")):
        tensors = load_file(file)
        ends = tensors["ends"].tolist()
        for start, end in zip([0, *ends], ends):
            numbers, classes = tensors["numbers"][start:end].numpy(), tensors.get("classes")
            own = numbers, tensors["logits"][start:end], None if classes is None else classes[start:end]
            batches[int(numbers[0])] = own
    return batches
