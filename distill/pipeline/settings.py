"""Settings of a run: frozen dataclasses filled from a YAML recipe and the command line, checked before any work."""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from distill.training.command_line import CommandLine, require
from edge.lower.recipes import RECIPES

STAGES = ("data", "teacher", "student", "prune", "recover", "edge", "report")
RECIPE_DIR = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    name: str = field(
        default="", metadata={"help": "Run folder under --output_root. Default: demo, or the data set's own name."}
    )
    output_root: str = field(default="runs", metadata={"help": "Folder that holds all runs."})
    stages: str = field(default=",".join(STAGES), metadata={"help": "Comma-separated stages to run."})
    force: bool = field(default=False, metadata={"help": "Run the chosen stages again even where nothing changed."})

    def __post_init__(self):
        unknown = [stage for stage in self.stage_names if stage not in STAGES]
        require(not unknown, "stages", f"name stages out of {','.join(STAGES)}", self.stages)
        require(self.name not in (".", "..") and not set(self.name) & set("/\\"), "name", "be a plain folder name", self.name)

    @property
    def stage_names(self) -> list[str]:
        return [stage.strip() for stage in self.stages.split(",")]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    dataset: str = field(
        default="digits", metadata={"help": "digits, a folder with one folder of images per class, or a Hub id."}
    )
    image_size: int = field(default=32, metadata={"help": "Height and width in pixels that every image is resized to."})
    validation_share: float = field(default=0.15, metadata={"help": "Share of the images held out for validation."})
    test_share: float = field(default=0.25, metadata={"help": "Share of the images held out for the final test."})
    max_unreadable_share: float = field(
        default=0.05, metadata={"help": "Stop when more than this share of the images cannot be read."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the split, the initial weights and the training order."})

    def __post_init__(self):
        require(self.image_size >= 8, "image_size", "be at least 8 pixels", self.image_size)
        for name in ("validation_share", "test_share"):
            require(0 < getattr(self, name) < 0.5, name, "lie between 0 and 0.5", getattr(self, name))
        require(0 <= self.max_unreadable_share < 1, "max_unreadable_share", "lie in [0, 1)", self.max_unreadable_share)


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    rotation_degrees: float = field(default=12.0, metadata={"help": "Largest rotation to either side, in degrees."})
    translate_share: float = field(default=0.06, metadata={"help": "Largest shift, as a share of the image side."})
    scale_share: float = field(default=0.12, metadata={"help": "Largest change of size, as a share."})
    shear_share: float = field(default=0.1, metadata={"help": "Largest horizontal shear, as a share."})
    horizontal_flip: bool = field(default=False, metadata={"help": "Mirror half of the images. Not for digits or text."})

    def __post_init__(self):
        require(0 <= self.rotation_degrees <= 180, "rotation_degrees", "lie in [0, 180]", self.rotation_degrees)
        for name in ("translate_share", "scale_share", "shear_share"):
            require(0 <= getattr(self, name) < 1, name, "lie in [0, 1)", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    batch_size: int = field(default=64, metadata={"help": "Images per step and device."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    warmup_share: float = field(default=0.1, metadata={"help": "Share of the steps with a rising learning rate."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm."})
    kd_weight: float = field(default=1.0, metadata={"help": "Weight of the distillation loss beside cross-entropy."})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16."})

    def __post_init__(self):
        require(self.batch_size >= 1, "batch_size", "be positive", self.batch_size)
        require(self.weight_decay >= 0, "weight_decay", "not be negative", self.weight_decay)
        require(0 <= self.warmup_share < 1, "warmup_share", "lie in [0, 1)", self.warmup_share)
        require(self.max_grad_norm > 0, "max_grad_norm", "be positive", self.max_grad_norm)
        require(self.kd_weight >= 0, "kd_weight", "not be negative", self.kd_weight)
        require(self.mixed_precision in ("no", "bf16", "fp16"), "mixed_precision", "be no, bf16 or fp16", self.mixed_precision)


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """How a training is carried out, without any bearing on what comes out."""

    dataloader_workers: int = field(default=0, metadata={"help": "Processes that decode images."})
    report_to: str = field(default="none", metadata={"help": "Tracker of transformers.Trainer: tensorboard, wandb, ..."})

    def __post_init__(self):
        require(self.dataloader_workers >= 0, "dataloader_workers", "not be negative", self.dataloader_workers)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    patch_size: int = field(default=4, metadata={"help": "Patch of both models, in pixels."})
    window_size: int = field(default=4, metadata={"help": "Attention window of both models, in patches."})

    def __post_init__(self):
        require(self.patch_size >= 1, "patch_size", "be positive", self.patch_size)
        require(self.window_size >= 1, "window_size", "be positive", self.window_size)


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    teacher: str = field(
        default="", metadata={"help": "Checkpoint folder or Hub id of any image classifier. Default: train one here."}
    )
    teacher_embed_dim: int = field(default=64, metadata={"help": "Channels of the teacher's first stage."})
    teacher_depths: list[int] = field(default_factory=lambda: [2, 4], metadata={"help": "Blocks per stage."})
    teacher_num_heads: list[int] = field(default_factory=lambda: [4, 8], metadata={"help": "Heads per stage."})
    teacher_drop_path: float = field(default=0.05, metadata={"help": "Stochastic depth of the teacher."})
    teacher_epochs: int = field(default=40, metadata={"help": "Passes over the training images."})
    teacher_learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate."})

    def __post_init__(self):
        check_architecture("teacher", self.teacher_embed_dim, self.teacher_depths, self.teacher_num_heads)
        require(0 <= self.teacher_drop_path < 1, "teacher_drop_path", "lie in [0, 1)", self.teacher_drop_path)
        require(self.teacher_epochs >= 1, "teacher_epochs", "be positive", self.teacher_epochs)
        require(self.teacher_learning_rate > 0, "teacher_learning_rate", "be positive", self.teacher_learning_rate)


@dataclass(frozen=True, kw_only=True)
class StudentSettings:
    student_embed_dim: int = field(default=32, metadata={"help": "Channels of the student's first stage."})
    student_depths: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Blocks per stage."})
    student_num_heads: list[int] = field(default_factory=lambda: [2, 4], metadata={"help": "Heads per stage."})
    student_epochs: int = field(default=60, metadata={"help": "Passes over the training images."})
    student_learning_rate: float = field(default=3e-3, metadata={"help": "Peak learning rate."})

    def __post_init__(self):
        check_architecture("student", self.student_embed_dim, self.student_depths, self.student_num_heads)
        require(self.student_epochs >= 1, "student_epochs", "be positive", self.student_epochs)
        require(self.student_learning_rate > 0, "student_learning_rate", "be positive", self.student_learning_rate)


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    prune_heads: float = field(default=0.2, metadata={"help": "Share of all attention heads to remove."})
    prune_mlp: float = field(default=0.4, metadata={"help": "Share of all hidden MLP channels to remove."})
    prune_batches: int = field(default=20, metadata={"help": "Batches that importance is accumulated over."})

    def __post_init__(self):
        for name in ("prune_heads", "prune_mlp"):
            require(0 <= getattr(self, name) < 1, name, "lie in [0, 1)", getattr(self, name))
        require(self.prune_batches >= 1, "prune_batches", "be positive", self.prune_batches)


@dataclass(frozen=True, kw_only=True)
class RecoverSettings:
    recover_epochs: int = field(default=25, metadata={"help": "Passes over the training images after pruning."})
    recover_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})

    def __post_init__(self):
        require(self.recover_epochs >= 1, "recover_epochs", "be positive", self.recover_epochs)
        require(self.recover_learning_rate > 0, "recover_learning_rate", "be positive", self.recover_learning_rate)


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    edge_recipe: str = field(default="int8", metadata={"help": "Export recipe of `python -m edge export`."})

    def __post_init__(self):
        runnable = [name for name, recipe in RECIPES.items() if recipe.executable]
        require(self.edge_recipe in runnable, "edge_recipe", f"be one of {', '.join(runnable)}", self.edge_recipe)


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    latency_repeats: int = field(default=300, metadata={"help": "Timed runs per row of the report."})
    latency_threads: int = field(default=1, metadata={"help": "Threads of every timed run."})

    def __post_init__(self):
        require(self.latency_repeats >= 10, "latency_repeats", "be at least 10", self.latency_repeats)
        require(self.latency_threads >= 1, "latency_threads", "be positive", self.latency_threads)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run, one part per concern; a stage depends on the parts it names and on nothing else."""

    run: RunSettings
    data: DataSettings
    augmentation: AugmentationSettings
    training: TrainingSettings
    execution: ExecutionSettings
    model: ModelSettings
    teacher: TeacherSettings
    student: StudentSettings
    prune: PruneSettings
    recover: RecoverSettings
    edge: EdgeSettings
    report: ReportSettings

    @property
    def run_name(self) -> str:
        if self.run.name:
            return self.run.name
        return "demo" if self.data.dataset == "digits" else Path(self.data.dataset).resolve().name

    @property
    def run_dir(self) -> Path:
        return Path(self.run.output_root) / self.run_name


def check_architecture(model: str, embed_dim: int, depths: list[int], num_heads: list[int]) -> None:
    """Check one model's widths and depths, naming the flag that is wrong."""
    require(embed_dim >= 1, f"{model}_embed_dim", "be positive", embed_dim)
    require(bool(depths) and min(depths) >= 1, f"{model}_depths", "hold at least one block per stage", depths)
    require(len(num_heads) == len(depths), f"{model}_num_heads", f"have one entry per stage like depths {depths}", num_heads)
    for stage, heads in enumerate(num_heads):
        dim = embed_dim * 2**stage
        require(heads >= 1 and dim % heads == 0, f"{model}_num_heads", f"divide {dim} channels in stage {stage}", num_heads)


def parse_settings(argv: list[str] | None = None) -> Settings:
    """Read `--recipe FILE_OR_NAME` and the command line, which wins over the recipe.

    Raises:
        SettingsError: unknown key, wrong type, value out of range, or a recipe that cannot be read.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parts = {part.name: part.type for part in fields(Settings)}
    command_line = CommandLine(
        program="distill/run.py",
        description="From labelled images to a small Swin in a .pte: data, teacher, student, prune, recover, edge, report.",
        option="recipe",
        folder=RECIPE_DIR,
        parts=list(parts.values()),
    )
    recipe = "digits" if command_line.glance(argv, "dataset") == "digits" else "photos"
    return Settings(**dict(zip(parts, command_line.parse(argv, file=recipe))))
