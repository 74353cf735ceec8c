"""Settings of the stages of a run, one part for each, checked on their own."""

from dataclasses import dataclass, field

from distill.errors import require
from distill.pruning.targets import (
    AUTO,
    AUTO_PRESETS,
    CRITERIA,
    LATENCIES,
    NO_TARGET,
    ROUND_TO,
    SCOPES,
    Target,
    parse_scopes,
    parse_targets,
    read_flag,
)
from distill.training.models import PRETRAINED, ModelChoice
from edge.device.names import did_you_mean
from edge.lower.recipes import RECIPES
from swin_hf.presets_swin_hf import PRESETS

STAGES = ("data", "shape", "teacher", "student", "prune", "recover", "edge", "report")
ALL = "all"
LABELS = ("auto", "given", "teacher")
# What a student starts with, beside a checkpoint: weights of the run's teacher, those if all of its blocks can, new ones.
OWN_TEACHER, TEACHER_IF_IT_FITS, NEW_WEIGHTS = "teacher", "auto", "none"
CHOICE_HELP = f"Preset ({', '.join(PRESETS)}), pre-trained model ({', '.join(PRETRAINED)}), checkpoint folder or Hub id"
ARGS_HELP = 'Fields of its config to change, as YAML: "{depths: [1, 2]}".'


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    heading = "run"

    output_dir: str = field(
        default="", metadata={"help": "Folder of the run. Default: runs/demo for digits, else runs/ and the data set's name."}
    )
    stages: str = field(
        default=ALL, metadata={"help": f"Stages to run, separated by commas: {', '.join(STAGES)}; or {ALL} of the run."}
    )
    force: bool = field(default=False, metadata={"help": "Run the chosen stages again even if nothing changed."})

    def __post_init__(self):
        unknown = [stage for stage in self.named_stages if stage not in STAGES]
        hint = did_you_mean(unknown[0], (*STAGES, ALL)).removeprefix("; ") if unknown else ""
        require(not unknown, "stages", f"name stages out of {','.join(STAGES)}, or be {ALL}", self.stages, hint)

    @property
    def named_stages(self) -> list[str]:
        """Empty for all."""
        return [] if self.stages == ALL else [stage.strip() for stage in self.stages.split(",")]


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    heading = 'stage "teacher"'

    teacher: str = field(
        default="swin_tiny",
        metadata={
            "help": f"{CHOICE_HELP}. A preset is trained from scratch, a checkpoint of other classes is fine-tuned first, and "
            "one that knows the classes is used unchanged."
        },
    )
    teacher_args: str = field(default="", metadata={"help": ARGS_HELP})
    labels: str = field(
        default="auto",
        metadata={
            "help": "given: the classes of the images; teacher: those that the teacher finds, so that no others "
            "are needed; auto: the teacher's for a folder of images that are not in folders of classes."
        },
    )
    more_teachers: str = field(
        default="",
        metadata={
            "help": "Checkpoints, separated by commas, that know the classes and teach together with it: the mean of their "
            "probabilities."
        },
    )
    teacher_epochs: float = field(default=100, metadata={"help": "Passes over the training images."})
    teacher_learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})

    def __post_init__(self):
        check_schedule("teacher", self.teacher_epochs, self.teacher_learning_rate)
        require(self.labels in LABELS, "labels", f"be one of {', '.join(LABELS)}", self.labels)
        require(all(self.others) or not self.more_teachers, "more_teachers", "name checkpoints", self.more_teachers)

    @property
    def others(self) -> list[str]:
        """The checkpoints that teach together with the teacher."""
        return [name.strip() for name in self.more_teachers.split(",")] if self.more_teachers else []

    @property
    def choice(self) -> ModelChoice:
        return ModelChoice.parse("teacher", self.teacher, self.teacher_args)


@dataclass(frozen=True, kw_only=True)
class StudentSettings:
    heading = 'stage "student"'

    student: str = field(
        default="swin_edge_medium",
        metadata={
            "help": f"{CHOICE_HELP}; must be a swin_hf model. {AUTO}: the swin_edge whose size meets --target, which must "
            "be a number, such as latency_ms=5."
        },
    )
    student_args: str = field(default="", metadata={"help": ARGS_HELP})
    student_init_from: str = field(
        default=TEACHER_IF_IT_FITS,
        metadata={
            "help": "Checkpoint folder or Hub id of a larger Swin, with some of whose weights a preset starts; "
            f"{OWN_TEACHER}: that of the run; {TEACHER_IF_IT_FITS}: the same, if it has all blocks of the student; "
            f"{NEW_WEIGHTS}: new weights."
        },
    )
    student_epochs: float = field(default=150, metadata={"help": "Passes over the training images."})
    student_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})

    def __post_init__(self):
        check_schedule("student", self.student_epochs, self.student_learning_rate)
        kinds = f"be {TEACHER_IF_IT_FITS}, {NEW_WEIGHTS}, {OWN_TEACHER} or a checkpoint"
        require(bool(self.student_init_from.strip()), "student_init_from", kinds, self.student_init_from)

    @property
    def is_auto(self) -> bool:
        return self.student == AUTO

    @property
    def choice(self) -> ModelChoice:
        """The student; for "auto" one of its family, whose shape is not settled yet."""
        name = AUTO_PRESETS[0] if self.is_auto else self.student
        start = "" if self.student_init_from in (TEACHER_IF_IT_FITS, NEW_WEIGHTS) else self.student_init_from
        return ModelChoice.parse("student", name, self.student_args, init_from=start)


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    heading = 'stage "prune"'

    target: str = field(
        default=NO_TARGET,
        metadata={
            "help": "What the student is pruned to, or chosen by: macs=0.5, params=2M, latency=0.5x (of its program on this "
            "machine), latency_ms=5 or size_mb=1.5, several joined by commas; a number up to 1 is a share. "
            f"{NO_TARGET}: nothing is pruned, and the stages prune and recover are left out."
        },
    )
    scopes: str = field(
        default="bottleneck",
        metadata={"help": f"What may be removed: {', '.join(SCOPES)}, joined by commas; bottleneck: the first four."},
    )
    criterion: str = field(default="taylor", metadata={"help": f"Importance of channels: {', '.join(CRITERIA)}."})
    latency_table: str = field(
        default="",
        metadata={"help": "File of a device's table, by `python -m distill.latency`; latencies are then those there."},
    )
    round_to: int = field(default=ROUND_TO, metadata={"help": "Widths stay multiples of it, as kernels like them."})
    prune_batches: int = field(default=20, metadata={"help": "Batches over which importance is averaged."})
    prune_steps: int = field(default=1, metadata={"help": "Steps in which the target is reached, with training between them."})
    prune_step_epochs: float = field(default=5, metadata={"help": "Passes over the training images between two steps."})

    def __post_init__(self):
        require(self.criterion in CRITERIA, "criterion", f"be one of {', '.join(CRITERIA)}", self.criterion)
        for name in ("round_to", "prune_batches", "prune_steps", "prune_step_epochs"):
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))
        if self.target != NO_TARGET:
            read_flag("target", parse_targets, self.target, hint=f"or give {NO_TARGET}, to prune nothing")
        read_flag("scopes", parse_scopes, self.scopes)
        is_read = not self.targets or any(target.measure in LATENCIES for target in self.targets)
        require(is_read or not self.latency_table, "latency_table", "come with a target of latency or latency_ms", self.target)

    @property
    def targets(self) -> tuple[Target, ...]:
        """Empty where nothing is pruned."""
        return () if self.target == NO_TARGET else parse_targets(self.target)

    @property
    def scope_names(self) -> tuple[str, ...]:
        return parse_scopes(self.scopes)


@dataclass(frozen=True, kw_only=True)
class RecoverSettings:
    heading = 'stage "recover"'

    recover_epochs: float = field(default=40, metadata={"help": "Passes over the training images after pruning."})
    recover_learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})

    def __post_init__(self):
        check_schedule("recover", self.recover_epochs, self.recover_learning_rate)


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    heading = 'stage "edge"'

    recipe: str = field(default="int8", metadata={"help": "Export recipe, as in `python -m edge export`."})

    def __post_init__(self):
        runnable = [name for name, recipe in RECIPES.items() if recipe.executable]
        hint = did_you_mean(self.recipe, runnable).removeprefix("; ")
        require(self.recipe in runnable, "recipe", f"be one of {', '.join(runnable)}", self.recipe, hint)


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    heading = 'stage "report"'

    repeats: int = field(default=300, metadata={"help": "Timed runs per row of the report."})
    threads: int = field(default=1, metadata={"help": "Threads in every timed run."})

    def __post_init__(self):
        require(self.repeats >= 10, "repeats", "be at least 10", self.repeats)
        require(self.threads >= 1, "threads", "be positive", self.threads)


def check_schedule(stage: str, epochs: float, learning_rate: float) -> None:
    """Check the length and the learning rate of a stage's training."""
    require(epochs > 0, f"{stage}_epochs", "be positive", epochs)
    require(learning_rate > 0, f"{stage}_learning_rate", "be positive", learning_rate)
