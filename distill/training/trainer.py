"""The training loop: `transformers.Trainer` for any task, with layer-wise rates, averaged weights and safe stops."""

import json
import math
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from pytorch_optimizer import Lamb
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length, rotate_checkpoints

from distill import interruption
from distill.errors import TrainingStopped
from distill.training.optimisation import OptimisationSettings, WeightAverage, parameter_groups
from distill.training.progress import ProgressBar
from distill.training.tasks.task import Objective, Output, Panels, Task
from edge.device.errors import ExplainedError
from swin_hf.output_folders import OutputError, changes, read_record, write_record

AVERAGE_FILE = "averaged_weights.pt"
LEARNED_FILE = "objective.pt"  # what the objective itself has learned
CHECKPOINT = "checkpoint.json"  # written last into each checkpoint
UNFINISHED = "it was not finished"
CHECKPOINT_COPIES = 5  # times the size of the weights: themselves, Adam's two moments, their average, and some room


class DivergenceError(ExplainedError):
    """The loss became NaN or infinite; the message names the step and the best checkpoint so far."""


class TaskTrainer(Trainer):
    """Trains a model for a task on batches of uint8 "pixels" (B, 3, H, W) and "targets".

    With averaged weights, evaluations use the average, and checkpoints store both.
    """

    def __init__(self, *args, task: Task, objective: Objective, optimisation: OptimisationSettings, **kwargs):
        super().__init__(*args, data_collator=task.collate, compute_metrics=objective.metrics, **kwargs)
        self.objective = objective.to(self.args.device)
        self.objective.seed = self.args.seed
        self.optimisation = optimisation
        if self.args.device.type == "cpu" and not self.is_fsdp_enabled:  # FSDP takes contiguous weights only
            self.model.to(memory_format=torch.channels_last)  # in which convolutions are faster there
        self.average = WeightAverage(self.model, optimisation.ema_decay) if optimisation.ema_decay else None
        self.diverged_at = torch.full((1,), -1, device=self.args.device)  # the first step whose loss was NaN or infinite
        self.loss_parts: dict[str, list[torch.Tensor]] = {}
        self._drop_last = self.args.dataloader_drop_last
        if has_length(self.train_dataset):
            self._drop_last = drops_last(self.args, len(self.train_dataset))
        self._watch = AfterEveryStep(self)
        self.add_callback(self._watch)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(ProgressBar(task.shown_figures))

    def train(self, *args, **kwargs):
        """Train to the end.

        Raises:
            TrainingStopped: SIGTERM came before the end; a checkpoint was written.
            DivergenceError: the loss is NaN or infinite.
            OutputError: a checkpoint does not fit on the disk.
        """
        former_handler = signal.signal(signal.SIGTERM, self._watch.request_stop)
        try:
            result = super().train(*args, **kwargs)
        finally:
            signal.signal(signal.SIGTERM, former_handler)
        if self._watch.stop_requested and self.state.global_step < self.state.max_steps:
            raise TrainingStopped(f"stopped at step {self.state.global_step} of {self.state.max_steps}")
        return result

    def _get_dataloader(self, *args, is_training: bool = False, **kwargs):
        # A training may drop the last, smaller batch, since its images would depend on the number of processes; an
        # evaluation must not. The Trainer has one argument for both.
        self.args.dataloader_drop_last = is_training and self._drop_last
        return super()._get_dataloader(*args, is_training=is_training, **kwargs)

    # -- the loss ------------------------------------------------------------------------------------------------------

    def run_objective(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> Output:
        """The objective's output for a batch of uint8 images."""
        self.objective.progress = self.state.global_step / max(self.state.max_steps, 1)
        return self.objective(model, inputs["pixels"].float() / 255, inputs["targets"], inputs.get("crop"))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = self.run_objective(model, inputs)
        if model.training:
            first = (self.diverged_at < 0) & ~output.loss.detach().isfinite()
            self.diverged_at = torch.where(first, self.state.global_step + 1, self.diverged_at)
            for name, value in output.parts.items():
                self.loss_parts.setdefault(name, []).append(value.detach())
        return (output.loss, output) if return_outputs else output.loss

    def training_step(self, *args, **kwargs):
        loss, learned = super().training_step(*args, **kwargs), self.objective.learned
        if learned is not None and self.args.world_size > 1 and self.accelerator.sync_gradients:
            for parameter in learned.parameters():  # DistributedDataParallel averages the gradients of the model alone
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.args.world_size
        return loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = self.run_objective(model, inputs)
        targets = inputs["targets"]
        if targets.ndim > 1:  # masks: the predictions hold the comparison with them already, so they need not be gathered
            targets = targets.new_zeros(len(targets))
        return output.loss.detach(), output.predictions.detach(), targets

    @torch.no_grad()
    def draw(self, batch: dict[str, torch.Tensor]) -> list[Panels]:
        """Pictures of what the model predicts for a batch."""
        inputs = self._prepare_inputs(batch)
        with self.compute_loss_context_manager():
            return self.objective.draw(self.model, inputs["pixels"].float() / 255, inputs["targets"])

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            logs |= {name: round(torch.stack(values).mean().item(), 4) for name, values in self.loss_parts.items()}
            self.loss_parts.clear()
        super().log(logs, *args, **kwargs)

    # -- optimiser and averaged weights --------------------------------------------------------------------------------

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(
                self.model, self.args.learning_rate, self.args.weight_decay, self.optimisation.layer_decay
            )
            if self.objective.learned is not None:
                own = [*self.objective.learned.parameters()]
                groups.append({"params": own, "lr": self.args.learning_rate, "weight_decay": 0.0})
            optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if self.optimisation.lamb:
                optimizer_class, arguments = Lamb, {"lr": self.args.learning_rate}
            self.optimizer = optimizer_class(groups, **arguments)
        return self.optimizer

    def evaluate(self, *args, **kwargs):
        with self._as_saved(), torch.random.fork_rng():  # an evaluation does not change the random numbers of the training
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        with self._as_saved():
            return super().predict(*args, **kwargs)

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """Let all processes hold the model that is saved: averaged, and with the statistics of the first one's batches."""
        with self._averaged_weights():
            if self.args.world_size > 1:
                for buffer in self.model.buffers():
                    torch.distributed.broadcast(buffer, src=0)
            yield

    def _averaged_weights(self):
        return nullcontext() if self.average is None else self.average.in_place_of(self.model)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial) -> None:
        """Write a checkpoint if it fits on the disk; older ones are removed only after that.

        Raises:
            OutputError: the disk is too full.
        """
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        needed = CHECKPOINT_COPIES * weights
        free = shutil.disk_usage(self.args.output_dir).free
        if free < needed:
            raise OutputError(
                f"a checkpoint of step {self.state.global_step} needs about {needed / 1e6:.0f} MB, {self.args.output_dir} has "
                f"{free / 1e6:.0f} MB left; earlier checkpoints are untouched: free some space and resume"
            )
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # each process writes its own random numbers
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            write_record(folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}", CHECKPOINT, {})
            rotate_checkpoints(
                output_dir=str(folder), save_total_limit=limit, best_model_checkpoint=self.state.best_model_checkpoint
            )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.check_loss()  # a checkpoint with NaN weights would replace a good one
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average is not None and self.args.should_save:
            torch.save(self.average.averaged.state_dict(), Path(output_dir) / AVERAGE_FILE)
        if self.objective.learned is not None and self.args.should_save:
            torch.save(self.objective.learned.state_dict(), Path(output_dir) / LEARNED_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_average(checkpoint)
            if self.objective.learned is not None:
                state = torch.load(Path(checkpoint) / LEARNED_FILE, map_location=self.args.device, weights_only=True)
                self.objective.learned.load_state_dict(state)

    def _load_best_model(self) -> None:
        best = Path(self.args.output_dir) / Path(self.state.best_model_checkpoint).name  # also if the folder was moved
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()
        self._load_average(self.state.best_model_checkpoint)

    def _load_average(self, checkpoint: str) -> None:
        if self.average is not None:
            state = torch.load(Path(checkpoint) / AVERAGE_FILE, map_location=self.args.device, weights_only=True)
            self.average.averaged.load_state_dict(state)

    def save_averaged_model(self, output_dir: Path) -> None:
        """Write the model as it was evaluated, with its processor."""
        with self._averaged_weights():
            self.save_model(str(output_dir))

    def check_loss(self) -> None:
        """Stop if the loss of any step so far was NaN or infinite.

        Raises:
            DivergenceError: it was.
        """
        steps = self.accelerator.gather(self.diverged_at)  # all processes stop if one of them saw it
        if (steps >= 0).any():
            step, best = int(steps[steps >= 0].min()), self.state.best_model_checkpoint
            raise DivergenceError(
                f"the loss of step {step} is infinite or not a number; lower the learning rate or max_grad_norm, or leave "
                f"out fp16. {f'The best checkpoint so far is {best}.' if best else 'No checkpoint was written before.'}"
            )


class AfterEveryStep(TrainerCallback):
    """Averages the weights, checks the loss, and stops the training cleanly on SIGTERM."""

    def __init__(self, trainer: TaskTrainer):
        self.trainer = trainer
        self.stop_requested = False

    def request_stop(self, signal_number, frame) -> None:
        """Handler of a signal."""
        self.stop_requested = True

    def on_train_begin(self, args, state, control, **kwargs):
        torch.manual_seed(args.seed + args.process_index)  # each process drops other branches

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if (learned := self.trainer.objective.learned) is not None and args.max_grad_norm > 0:  # the Trainer clips the model's
            nn.utils.clip_grad_norm_(learned.parameters(), args.max_grad_norm)

    def on_step_end(self, args, state, control, **kwargs):
        interruption.check()
        if self.trainer.objective.learned is not None:
            self.trainer.objective.learned.zero_grad()  # the Trainer does so with the model
        if self.trainer.average is not None:
            self.trainer.average.update(self.trainer.model)
        if args.world_size > 1:  # a signal reaches processes at different steps, but all must stop after the same one
            requests = self.trainer.accelerator.gather(torch.tensor([self.stop_requested], device=args.device))
            self.stop_requested = bool(requests.any())
        if self.stop_requested:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        ended_early = state.epoch % 1 > 0 and state.global_step < state.max_steps
        if self.stop_requested and ended_early:  # its checkpoint is written already
            control.should_evaluate = control.should_save = False

    def on_log(self, args, state, control, **kwargs):
        self.trainer.check_loss()


def drops_last(arguments: TrainingArguments, number: int) -> bool:
    """Whether the last, smaller batch of so many training images is left out: if asked for, or if it has one image.

    Of one image whose map is one token, batch normalisation has no statistics.
    """
    return arguments.dataloader_drop_last or number % (arguments.train_batch_size * arguments.world_size) == 1


def steps_of_epoch(arguments: TrainingArguments, number: int) -> int:
    """Steps of an epoch of so many training images, as the Trainer counts them."""
    batch_size = arguments.train_batch_size * arguments.world_size
    batches = number // batch_size if drops_last(arguments, number) else math.ceil(number / batch_size)
    return max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint of a training's folder, or None if it has none.

    A checkpoint is whole if it has the record that is written last, and all files that this lists, of their sizes. One that
    is not is skipped with a word, and removed once an earlier one has taken its place.

    Raises:
        OutputError: there are checkpoints, but none is whole.
    """
    numbered = sorted(
        (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rsplit("-", 1)[1].isdigit()),
        key=lambda path: int(path.name.rsplit("-", 1)[1]),
    )
    damaged: dict[Path, str] = {}
    while numbered and (why := _why_damaged(numbered[-1])):
        damaged[numbered.pop()] = why
    if not numbered:
        finished = {path: why for path, why in damaged.items() if why != UNFINISHED}
        if finished:
            said = "; ".join(f"{path.name}: {why}" for path, why in finished.items())
            raise OutputError(f"no checkpoint in {folder} is whole ({said})")
        return None
    for path, why in damaged.items():
        print(f"{path} is not whole ({why}): resuming from {numbered[-1].name}", flush=True)
        shutil.rmtree(path, ignore_errors=True)
    return str(numbered[-1])


def _why_damaged(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, in words; empty if it is whole."""
    try:
        record = read_record(checkpoint, CHECKPOINT)
    except OutputError:
        return f"{CHECKPOINT} is damaged"
    if record is None:
        return UNFINISHED
    if differing := changes(checkpoint, record):
        return "; ".join(differing)
    best = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["best_model_checkpoint"]
    if best is None or Path(best).name == checkpoint.name:
        return ""
    why = _why_damaged(checkpoint.with_name(Path(best).name))
    return f"the best one before it, {Path(best).name}, is not: {why}" if why else ""
