"""Settings of a training: the task, the model, the data and the arguments of `transformers.Trainer`."""

import copy
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from distill.data.splits import ImageSettings
from distill.data.transforms import TransformSettings
from distill.errors import require
from distill.precision import computes_in_bfloat16
from distill.training.command_line import CommandLine
from distill.training.models import ModelChoice
from distill.training.optimisation import OptimisationSettings
from distill.training.tasks import TASKS
from distill.training.tasks.distillation import DistillationSettings
from distill.training.tasks.task import Task
from edge.device.names import did_you_mean
from swin_hf.presets_swin_hf import PRESETS

CONFIG_DIR = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    heading = "task"

    task: str = field(default="image-classification", metadata={"help": f"One of {', '.join(TASKS)}."})
    image_size: int = field(default=224, metadata={"help": "Height and width in pixels at which the model is trained."})
    evaluation_crop: bool = field(
        default=True, metadata={"help": "Evaluate on centre crops if the checkpoint's processor makes them."}
    )
    mask_share: float = field(default=0.6, metadata={"help": "Share of the image that SimMIM masks."})
    mask_patch_size: int = field(default=32, metadata={"help": "Side in pixels of the squares that SimMIM masks."})
    num_pictures: int = field(
        default=16, metadata={"help": "Validation images whose predictions are drawn after each evaluation; 0: none."}
    )
    resume: bool = field(default=False, metadata={"help": "Resume from the last checkpoint in --output_dir."})

    def __post_init__(self):
        hint = did_you_mean(self.task, TASKS).removeprefix("; ")
        require(self.task in TASKS, "task", f"be one of {', '.join(TASKS)}", self.task, hint)
        require(self.image_size >= 8, "image_size", "be at least 8 pixels", self.image_size)
        require(self.num_pictures >= 0, "num_pictures", "not be negative", self.num_pictures)
        require(0 < self.mask_share < 1, "mask_share", "lie between 0 and 1", self.mask_share)
        require(self.mask_patch_size >= 1, "mask_patch_size", "be positive", self.mask_patch_size)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    heading = "model"

    model: str = field(
        default="swin_tiny",
        metadata={"help": f"Checkpoint folder, Hub id, or a preset to train from scratch: {', '.join(PRESETS)}."},
    )
    model_args: str = field(
        default="", metadata={"help": 'Fields of the model\'s config to change, as YAML: "{depths: [1, 2], window_size: 4}".'}
    )
    head_args: str = field(
        default="", metadata={"help": 'Fields of SwinHfUperNetConfig, for segmentation, as YAML: "{hidden_size: 256}".'}
    )
    init_from: str = field(
        default="",
        metadata={"help": "Checkpoint folder or Hub id of a larger Swin, with some of whose weights a preset starts."},
    )
    teacher: str = field(
        default="",
        metadata={
            "help": "Checkpoint folder or Hub id of a model of the same classes to distil from; several, separated by commas, "
            "teach the mean of their probabilities."
        },
    )
    teacher_cache: str = field(
        default="", metadata={"help": "Folder with the teacher's logits, written by scripts/cache_teacher.py."}
    )


def _is_launched_with(name: str) -> bool:
    """Whether `accelerate launch` set up "CPU", "FSDP" or "DEEPSPEED"."""
    return parse_flag_from_env(f"ACCELERATE_USE_{name}")


@dataclass
class FinetuneArguments(TrainingArguments):
    """The arguments of `transformers.Trainer`, all under their own names, with defaults for Swin."""

    output_dir: str | None = field(default="runs/finetune", metadata={"help": "Folder of the model and its checkpoints."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of all but norms, biases and position tables."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps with a rising learning rate; below 1: as a share."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of transformers: cosine, polynomial, ..."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm; 0: they are not."})
    num_train_epochs: float = field(default=30.0, metadata={"help": "Passes over the training images."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per device and batch."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images per device and batch of an evaluation."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: epoch, steps or no."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint: epoch, steps, best or no."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log: epoch, steps or no."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep: the best and the last."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint's weights."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be false: batches are pixels and targets."})
    dataloader_drop_last: bool = field(
        default=True,
        metadata={"help": "Leave out the last, smaller batch of an epoch, so that all steps have the same size."},
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Mixed precision in bfloat16. Default: on a GPU that computes in it, unless another was chosen ("
            "`accelerate launch --mixed_precision no` chooses none; --bf16 false does)."
        },
    )
    report_to: str = field(default="none", metadata={"help": "Tracker: tensorboard, wandb, trackio, ... or none."})
    dataloader_pin_memory: bool = field(default=torch.cuda.is_available(), metadata={"help": "Pin memory for the device."})

    ddp_timeout: int = field(
        default=12 * 3600, metadata={"help": "Seconds that processes wait for the first one, which checks the images."}
    )

    def __post_init__(self):
        chosen = self.metric_for_best_model, self.greater_is_better
        self.chosen_bf16 = self.bf16  # None if that was left to us
        if self.bf16 is None:
            on_cpu = self.use_cpu or _is_launched_with("CPU")
            self.bf16 = not self._precision_is_chosen and computes_in_bfloat16("cpu" if on_cpu else "cuda")
        super().__post_init__()
        self.metric_for_best_model, self.greater_is_better = chosen  # the task decides; transformers would take the loss
        for name in ("remove_unused_columns", "dataloader_persistent_workers"):  # persistent workers would not see a new epoch
            require(not getattr(self, name), name, "be false", getattr(self, name))

    @property
    def _precision_is_chosen(self) -> bool:
        """Whether another argument, `accelerate launch` or DeepSpeed says in which numbers to compute."""
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
        return self.fp16 or launched or self.deepspeed is not None or _is_launched_with("DEEPSPEED")

    def changed(self, **changes: Any) -> "FinetuneArguments":
        """A copy with other values; `dataclasses.replace` would run `__post_init__` again."""
        copied = copy.copy(self)
        for name, value in changes.items():
            setattr(copied, name, value)
        return copied


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """All settings of a training, one part per concern.

    teacher: checkpoint to distil from, if any; several are separated by commas.
    teacher_cache: folder with what it says, so that it is not asked.
    """

    task: TaskSettings
    model: ModelChoice
    teacher: str = ""
    teacher_cache: str = ""
    images: ImageSettings
    transforms: TransformSettings
    optimisation: OptimisationSettings
    distillation: DistillationSettings
    trainer: FinetuneArguments

    @property
    def kind(self) -> Task:
        return TASKS[self.task.task]

    @property
    def splits_weights(self) -> bool:
        """Whether FSDP or DeepSpeed split the weights between processes."""
        launched = any(_is_launched_with(name) for name in ("FSDP", "DEEPSPEED"))
        return bool(self.trainer.fsdp) or self.trainer.deepspeed is not None or launched

    @property
    def teachers(self) -> list[str]:
        """The checkpoints to distil from."""
        return [name.strip() for name in self.teacher.split(",")] if self.teacher else []

    @property
    def crops(self) -> bool:
        """Whether images are judged on their centre where the checkpoint's processor does; masks are not cropped."""
        return self.task.evaluation_crop and not (self.kind.targets.have_masks or self.kind.targets.are_boxes)

    def changed(self, **arguments: Any) -> "FinetuneSettings":
        """A copy with other arguments of the Trainer."""
        return replace(self, trainer=self.trainer.changed(**arguments))


SHARED_PARTS = (ImageSettings, TransformSettings, OptimisationSettings, DistillationSettings, FinetuneArguments)


def parse_finetune_settings(argv: list[str] | None = None) -> FinetuneSettings:
    """Read `--config FILE_OR_NAME` and the command line, which overrides the file.

    Raises:
        SettingsError: unknown key, wrong type, value out of range, or a file that cannot be read.
    """
    command_line = CommandLine(
        program="accelerate launch scripts/finetune.py",
        description="Train or fine-tune an image model on your images. All arguments of transformers.Trainer work too.",
        folder=CONFIG_DIR,
        parts=[TaskSettings, ModelSettings, *SHARED_PARTS],
        companions={"model_args": "model"},
        brief=(TaskSettings, ModelSettings, ImageSettings),
        brief_options=(
            *("output_dir", "num_train_epochs", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"),
            *(
                "bf16",
                "fp16",
                "gradient_checkpointing",
                "kd_loss",
                "feature_loss",
                "ema_decay",
                "layer_decay",
                "frozen_stages",
            ),
        ),
    )
    task, model, *shared = command_line.parse(argv)
    images, transforms, optimisation, distillation, trainer = shared
    untaught = not model.teacher and distillation != DistillationSettings()
    changed = [f"--{own.name}" for own in fields(distillation) if getattr(distillation, own.name) != own.default]
    require(not untaught, "teacher", f"name a model to distil from with {', '.join(changed)}", "none")
    settings = FinetuneSettings(
        task=task,
        model=ModelChoice.parse("model", model.model, model.model_args, model.head_args, model.init_from),
        teacher=model.teacher,
        teacher_cache=model.teacher_cache,
        images=images,
        transforms=transforms,
        optimisation=optimisation,
        distillation=distillation,
        trainer=trainer,
    )
    check_together(settings)
    return settings


def check_together(settings: FinetuneSettings) -> None:
    """Check settings against each other.

    Raises:
        SettingsError: two of them do not go together.
    """
    trainer, transforms, optimisation = settings.trainer, settings.transforms, settings.optimisation
    sharded, compares = settings.splits_weights, settings.distillation.must_compare_maps
    require(not (sharded and optimisation.ema_decay), "ema_decay", "be 0 where FSDP or DeepSpeed split the weights", "more")
    rule = "be none where FSDP or DeepSpeed split the weights"
    require(not (sharded and compares), "feature_loss", rule, settings.distillation.feature_loss)
    besides = optimisation.ema_decay > 0 or compares
    rule = "be false with --ema_decay and --feature_loss, whose weights are saved besides the model's"
    require(not (trainer.save_only_model and besides), "save_only_model", rule, True)
    require(
        transforms.initial_image_size <= settings.task.image_size,
        "initial_image_size",
        f"be at most --image_size {settings.task.image_size}",
        transforms.initial_image_size,
    )
    if settings.teacher:
        taught = [name for name, task in TASKS.items() if task.load_teacher]
        require(settings.kind.load_teacher is not None, "teacher", f"come with {' or '.join(taught)}", settings.kind.name)
        require(all(settings.teachers), "teacher", "name checkpoints, separated by commas", settings.teacher)
        teaches = settings.distillation.logits_weight or compares
        require(bool(teaches), "teacher", "have something to teach, a --kd_loss or a --feature_loss with a weight", "neither")
    if settings.teacher_cache:
        rule = "come with a --teacher of image-classification and a --kd_loss, without --feature_loss and --streaming"
        own, is_segmented = settings.distillation, settings.kind.targets.have_masks
        fits = bool(settings.teacher and own.logits_weight) and not (compares or settings.images.streaming or is_segmented)
        require(fits, "teacher_cache", rule, settings.teacher_cache)
    if settings.images.streaming:
        by_steps = {trainer.eval_strategy, trainer.save_strategy, trainer.logging_strategy} == {"steps"}
        counted = trainer.max_steps > 0 and by_steps
        rule = "come with --max_steps N and with steps as --eval_strategy, --save_strategy and --logging_strategy"
        require(counted, "streaming", rule, "epochs", "a stream has no length to count epochs by")
        once = not transforms.initial_image_size and transforms.repeated_augmentation == 1
        rule = "come without --initial_image_size, --repeated_augmentation and --class_weights"
        require(once and optimisation.class_weights == "none", "streaming", rule, "one of them")


def settled(settings: FinetuneSettings) -> FinetuneSettings:
    """Settings with defaults filled in: the figure that selects the best checkpoint, and the batch size of each device.

    Raises:
        SettingsError: there is no such figure, or the global batch cannot be divided.
    """
    return _with_batch_size(_with_judge(settings))


def _with_judge(settings: FinetuneSettings) -> FinetuneSettings:
    """Let the task choose the figure that selects the best checkpoint, unless the user did."""
    arguments, task = settings.trainer, settings.kind
    judge = arguments.metric_for_best_model or task.best_by.name
    higher_is_better = {metric.name: metric.higher_is_better for metric in task.judged_by} | {"loss": False}
    name = judge.removeprefix("eval_")
    require(name in higher_is_better, "metric_for_best_model", f"be one of {', '.join(higher_is_better)}", name)
    greater = arguments.greater_is_better
    changes = {"metric_for_best_model": judge, "greater_is_better": higher_is_better[name] if greater is None else greater}
    return settings.changed(**changes)


def _with_batch_size(settings: FinetuneSettings) -> FinetuneSettings:
    """Divide `--global_batch_size` among processes and accumulated batches."""
    arguments, whole = settings.trainer, settings.optimisation.global_batch_size
    if not whole:
        return settings
    devices = arguments.world_size * max(arguments.n_gpu, 1)  # one process drives several GPUs if no launcher started more
    parts = devices * arguments.gradient_accumulation_steps
    require(whole % parts == 0, "global_batch_size", f"be a multiple of processes x accumulated batches = {parts}", whole)
    return settings.changed(per_device_train_batch_size=whole // parts)
