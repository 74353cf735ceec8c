"""Settings of a fine-tuning: what is trained on what, beside the arguments of `transformers.Trainer`."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments

from distill.training.command_line import CommandLine, SettingsError, require
from distill.training.optimisation import OptimisationSettings
from swin_hf.presets_swin_hf import PRESETS

TASKS = ("image-classification", "semantic-segmentation", "masked-image-modeling")
CONFIG_DIR = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    task: str = field(default="image-classification", metadata={"help": f"One of {', '.join(TASKS)}."})
    model: str = field(
        default="swin_tiny",
        metadata={"help": f"Checkpoint folder, Hub id, or a preset to train from scratch: {', '.join(PRESETS)}."},
    )
    model_args: str = field(
        default="", metadata={"help": 'Fields of the model\'s config to change, as YAML: "{depths: [1, 2], window_size: 4}".'}
    )
    head_args: str = field(
        default="", metadata={"help": 'Fields of SwinHfUperNetConfig, which segments with a Swin: "{hidden_size: 256}".'}
    )
    image_size: int = field(default=224, metadata={"help": "Height and width in pixels that the model is trained for."})
    mask_share: float = field(default=0.6, metadata={"help": "Share of the image that SimMIM masks."})
    mask_patch_size: int = field(default=32, metadata={"help": "Side in pixels of the squares that SimMIM masks."})
    num_pictures: int = field(
        default=16, metadata={"help": "Validation images whose predictions are drawn after each evaluation; 0: none."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in --output_dir."})

    def __post_init__(self):
        require(self.task in TASKS, "task", f"be one of {', '.join(TASKS)}", self.task)
        require(self.image_size >= 8, "image_size", "be at least 8 pixels", self.image_size)
        require(self.num_pictures >= 0, "num_pictures", "not be negative", self.num_pictures)
        require(0 < self.mask_share < 1, "mask_share", "lie between 0 and 1", self.mask_share)
        require(self.mask_patch_size >= 1, "mask_patch_size", "be positive", self.mask_patch_size)


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Where the images come from; without parts of their own, validation and test are cut from the training images."""

    dataset: str = field(
        default="digits",
        metadata={
            "help": "digits, digit-scenes, a folder of class folders or of images and masks, a .csv or .parquet table, a "
            "folder with parquet files, a saved `datasets`, or a Hub id."
        },
    )
    class_names: str = field(
        default="", metadata={"help": "Text file with one class in a line, for masks; by default classes.txt in the folder."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Train on the images as they come, without a copy of them on disk; counts steps."}
    )
    shuffle_buffer: int = field(default=2000, metadata={"help": "Streamed images that are mixed with each other."})
    reduce_labels: bool = field(default=False, metadata={"help": "Masks count classes from 1, and 0 means nothing (ADE20K)."})
    validation_share: float = field(default=0.1, metadata={"help": "Share of the images held out for validation."})
    test_share: float = field(default=0.1, metadata={"help": "Share of the images held out for the final test."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the split, apart from the training's."})
    max_unreadable_share: float = field(
        default=0.05, metadata={"help": "Stop when more than this share of the images cannot be read."}
    )

    def __post_init__(self):
        missing = self.class_names and not Path(self.class_names).is_file()
        require(not missing, "class_names", "be a text file with one class in a line", self.class_names)
        for name in ("validation_share", "test_share"):
            require(0 < getattr(self, name) < 0.5, name, "lie between 0 and 0.5", getattr(self, name))
        require(self.shuffle_buffer >= 1, "shuffle_buffer", "be positive", self.shuffle_buffer)
        require(0 <= self.max_unreadable_share < 1, "max_unreadable_share", "lie in [0, 1)", self.max_unreadable_share)


@dataclass(frozen=True, kw_only=True)
class TransformSettings:
    """Random changes of the training images; the defaults are those of Swin on ImageNet (Liu et al. 2021, appendix A2.1).

    But for RandAugment, which is Kornia's: it draws its operations for a whole batch, and its colour operations go one way,
    down below a magnitude of 15 and up above it.
    """

    initial_image_size: int = field(
        default=0, metadata={"help": "Image size of the first epoch, from which it grows to --image_size; 0: always that."}
    )
    crop_min_area: float = field(default=0.08, metadata={"help": "Smallest share of the image that a crop keeps; 1: no crop."})
    crop_max_aspect: float = field(default=4 / 3, metadata={"help": "Largest change of aspect ratio by a crop; 1: none."})
    horizontal_flip: float = field(default=0.5, metadata={"help": "Share of the images that are mirrored."})
    randaugment_ops: int = field(default=2, metadata={"help": "Operations of RandAugment on each batch; 0: none."})
    randaugment_magnitude: int = field(default=9, metadata={"help": "Strength of RandAugment, 1 to 29."})
    color_jitter: float = field(default=0.4, metadata={"help": "Largest change of brightness, contrast and saturation."})
    rotation_degrees: float = field(default=0.0, metadata={"help": "Largest rotation to either side, in degrees."})
    translate_share: float = field(default=0.0, metadata={"help": "Largest shift, as a share of the image side."})
    random_erasing: float = field(default=0.25, metadata={"help": "Share of the images that lose a rectangle."})
    mixup_alpha: float = field(default=0.8, metadata={"help": "Mixup's beta distribution; 0: no mixup."})
    cutmix_alpha: float = field(default=1.0, metadata={"help": "CutMix's beta distribution; 0: no CutMix."})
    mix_share: float = field(default=1.0, metadata={"help": "Share of the batches that are mixed."})
    repeats: int = field(default=1, metadata={"help": "Times that an epoch shows each image, each time changed anew."})

    def __post_init__(self):
        require(self.initial_image_size >= 0, "initial_image_size", "not be negative", self.initial_image_size)
        require(0 < self.crop_min_area <= 1, "crop_min_area", "lie in (0, 1]", self.crop_min_area)
        require(self.crop_max_aspect >= 1, "crop_max_aspect", "be at least 1", self.crop_max_aspect)
        for name in ("horizontal_flip", "random_erasing", "mix_share", "translate_share", "color_jitter"):
            require(0 <= getattr(self, name) <= 1, name, "lie in [0, 1]", getattr(self, name))
        require(0 <= self.randaugment_ops <= 15, "randaugment_ops", "lie in [0, 15]", self.randaugment_ops)
        require(1 <= self.randaugment_magnitude <= 29, "randaugment_magnitude", "lie in [1, 29]", self.randaugment_magnitude)
        require(0 <= self.rotation_degrees <= 180, "rotation_degrees", "lie in [0, 180]", self.rotation_degrees)
        for name in ("mixup_alpha", "cutmix_alpha"):
            require(getattr(self, name) >= 0, name, "not be negative", getattr(self, name))
        require(self.repeats >= 1, "repeats", "be positive", self.repeats)


@dataclass
class FinetuneArguments(TrainingArguments):
    """The arguments of `transformers.Trainer`, all under their own names, with defaults for Swin."""

    output_dir: str | None = field(default="runs/finetune", metadata={"help": "Folder of the model and its checkpoints."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of all but norms, biases and position tables."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps with a rising learning rate; below 1 their share."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "cosine, polynomial, ... of transformers."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm."})
    num_train_epochs: float = field(default=30.0, metadata={"help": "Passes over the training images."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per device and batch."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images per device and batch of an evaluation."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: epoch, steps or no."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint: epoch, steps, best or no."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log: epoch, steps or no."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept: the best and the last."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint's weights."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be false: batches are pixels and targets."})
    dataloader_drop_last: bool = field(
        default=True,
        metadata={"help": "Leave out the last, smaller batch of an epoch: all steps see as many images."},
    )
    report_to: str = field(default="none", metadata={"help": "Tracker: tensorboard, wandb, trackio, ... or none."})
    dataloader_pin_memory: bool = field(default=torch.cuda.is_available(), metadata={"help": "Pin memory for the device."})

    ddp_timeout: int = field(
        default=12 * 3600, metadata={"help": "Seconds that processes wait for the first one, which looks through the images."}
    )

    def __post_init__(self):
        chosen = self.metric_for_best_model, self.greater_is_better
        super().__post_init__()
        self.metric_for_best_model, self.greater_is_better = chosen  # the task decides, where transformers would take the loss
        for name in ("remove_unused_columns", "dataloader_persistent_workers"):  # workers must hear of a new epoch
            require(not getattr(self, name), name, "be false", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """All settings of a fine-tuning, one part per concern."""

    task: TaskSettings
    images: ImageSettings
    transforms: TransformSettings
    optimisation: OptimisationSettings
    trainer: FinetuneArguments


def parse_finetune_settings(argv: list[str] | None = None) -> FinetuneSettings:
    """Read `--config FILE_OR_NAME` and the command line, which wins over the file.

    Raises:
        SettingsError: unknown key, wrong type, value out of range, or a file that cannot be read.
    """
    command_line = CommandLine(
        program="accelerate launch scripts/finetune.py",
        description="Train or fine-tune an image model on your images; beside these, every argument of transformers.Trainer.",
        option="config",
        folder=CONFIG_DIR,
        parts=[TaskSettings, ImageSettings, TransformSettings, OptimisationSettings, FinetuneArguments],
    )
    try:
        task, images, transforms, optimisation, trainer = command_line.parse(argv)
    except (ValueError, ImportError) as error:  # TrainingArguments checks what depends on each other, and the device
        raise error if isinstance(error, SettingsError) else SettingsError(str(error)) from error
    launched = {name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "false") == "true"}
    sharded = bool(trainer.fsdp) or trainer.deepspeed is not None or bool(launched)
    require(not (sharded and optimisation.ema_decay), "ema_decay", "be 0 where FSDP or DeepSpeed split the weights", "more")
    partial = trainer.save_only_model and optimisation.ema_decay > 0
    require(not partial, "save_only_model", "be false with --ema_decay, whose weights are saved beside the model's", True)
    require(
        transforms.initial_image_size <= task.image_size,
        "initial_image_size",
        f"be at most --image_size {task.image_size}",
        transforms.initial_image_size,
    )
    if images.streaming:
        by_steps = {trainer.eval_strategy, trainer.save_strategy, trainer.logging_strategy} == {"steps"}
        counted = trainer.max_steps > 0 and by_steps
        rule = "come with --max_steps N and with steps as --eval_strategy, --save_strategy and --logging_strategy"
        require(counted, "streaming", rule, "epochs", "a stream has no length to count epochs by")
        whole = not transforms.initial_image_size and transforms.repeats == 1 and optimisation.class_weights == "none"
        require(whole, "streaming", "come without --initial_image_size, --repeats and --class_weights", "one of them")
    return FinetuneSettings(task=task, images=images, transforms=transforms, optimisation=optimisation, trainer=trainer)
