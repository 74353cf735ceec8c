"""Training on a stream: checkpoints record which worker is next and how far each worker has read."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from distill.errors import require
from distill.training.trainer import TaskTrainer


class StreamLoader(DataLoader):
    """A loader that begins with the batch of worker `dataset.first`; PyTorch's always begins with worker 0.

    is_finished: whether the training has all its steps, so that none is loaded.
    """

    def __init__(self, *args, is_finished: Callable[[], bool], **kwargs):
        super().__init__(*args, **kwargs)
        self.is_finished = is_finished

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if self.is_finished():
            return
        batches, first = super().__iter__(), self.dataset.first
        while True:
            in_turn = list(itertools.islice(batches, max(self.num_workers, 1)))
            yield from in_turn[first:] + in_turn[:first]


class StreamTrainer(TaskTrainer):
    """Trains on `StreamedImages`, and records in each checkpoint how far every reader of the stream has read."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.args.ignore_data_skip = True  # the Trainer would load, crop and drop all images seen before

    def get_train_dataloader(self) -> DataLoader:
        """A loader that is not prepared by accelerate, which would divide the stream among processes once more."""
        return StreamLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self._num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            drop_last=True,
            is_finished=lambda: self.state.global_step >= self.args.max_steps,
            generator=torch.Generator(),  # its own, so that a resumed training draws the same random numbers
        )

    def training_step(self, model, inputs, *args, **kwargs):
        worker, *position = inputs.pop("position")[-1].tolist()
        self.train_dataset.positions[worker] = position
        self.train_dataset.first = (worker + 1) % max(self._num_workers, 1)
        return super().training_step(model, inputs, *args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        record = {"readers": self._readers, "positions": self.train_dataset.positions, "first": self.train_dataset.first}
        (Path(output_dir) / f"stream_{self.args.process_index}.json").write_text(json.dumps(record) + "\n")

    def _load_rng_state(self, checkpoint: str) -> None:
        super()._load_rng_state(checkpoint)
        path = Path(checkpoint) / f"stream_{self.args.process_index}.json"
        record = json.loads(path.read_text()) if path.is_file() else {"readers": None}
        require(
            record["readers"] == self._readers,
            "resume",
            f"use as many processes and --dataloader_num_workers as the run that wrote {checkpoint}, {record['readers']}",
            self._readers,
        )
        self.train_dataset.positions = {int(worker): position for worker, position in record["positions"].items()}
        self.train_dataset.first = record["first"]

    @property
    def _num_workers(self) -> int:
        return min(self.args.dataloader_num_workers, self.train_dataset.max_workers)

    @property
    def _readers(self) -> list[int]:
        return [self.args.world_size, self._num_workers]
