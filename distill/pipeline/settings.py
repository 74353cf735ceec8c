"""Settings of a run: those that all its trainings share, and those of each stage; checked before any work starts."""

import shlex
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.data.finding import has_no_classes
from distill.data.splits import ImageSettings
from distill.data.transforms import TransformSettings
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
from distill.public_names import public_name
from distill.training.command_line import CommandLine
from distill.training.models import PRETRAINED, ModelChoice
from distill.training.optimisation import OptimisationSettings
from distill.training.settings import (
    SHARED_PARTS,
    FinetuneArguments,
    FinetuneSettings,
    TaskSettings,
    check_together,
    settled,
)
from distill.training.tasks.distillation import DistillationSettings
from edge.device.names import did_you_mean
from edge.lower.process_device import kept_device
from edge.lower.recipes import RECIPES
from swin_hf.presets_swin_hf import PRESETS

STAGES = ("data", "teacher", "student", "prune", "recover", "edge", "report")
STAGES_OF_PRUNING = ("prune", "recover")  # left out where nothing is pruned
ALL = "all"
CONFIG_DIR = Path(__file__).parent / "configs"
# What the stages set themselves, and what does not concern a classifier.
LEFT_OUT = {
    FinetuneArguments: frozenset({"output_dir", "num_train_epochs", "learning_rate"}),
    ImageSettings: frozenset({"class_names", "reduce_labels"}),
    TaskSettings: frozenset({"task", "mask_share", "mask_patch_size", "evaluation_crop", "resume"}),
}
# Arguments of the Trainer that do not affect the result.
WITHOUT_EFFECT = {
    *("output_dir", "logging_dir", "run_name", "project", "report_to", "disable_tqdm", "log_level", "log_level_replica"),
    *("logging_strategy", "logging_steps", "logging_first_step", "save_total_limit"),
    *(
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "eval_on_start",
        "ddp_timeout",
        "use_cpu",
    ),
}
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
        default="macs=0.7",
        metadata={
            "help": "What the pruned student may cost: macs=0.5, params=2M, latency=0.5x (of its program on this machine), "
            "latency_ms=5 or size_mb=1.5, several joined by commas; a number up to 1 is a share. "
            f"{NO_TARGET}: nothing is pruned, without the stages prune and recover."
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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run, one part per concern; a stage depends only on the parts that it names."""

    task: TaskSettings
    images: ImageSettings
    transforms: TransformSettings
    optimisation: OptimisationSettings
    distillation: DistillationSettings
    trainer: FinetuneArguments
    run: RunSettings
    teacher: TeacherSettings
    student: StudentSettings
    prune: PruneSettings
    recover: RecoverSettings
    edge: EdgeSettings
    report: ReportSettings
    typed: tuple[str, ...] = ()  # the flags
    config: str = ""  # the file of settings, by its bare name if it is one of ours

    @property
    def command(self) -> str:
        """What was typed, with the names of files and folders in place of their paths."""
        words = ["python", "distill/run.py"]
        for word in self.typed:
            flag, _, value = word.partition("=") if word.startswith("--") else (words[-1], "", word)
            shown = self._shown(flag.removeprefix("--"), value)
            words.append(f"{flag}={shown}" if word.startswith("--") and "=" in word else word if word == flag else shown)
        return shlex.join(words)

    def _shown(self, name: str, value: str) -> str:
        """A value of the command line as others may see it: no token, no path."""
        if name.endswith("_token"):
            return "..."
        if name == "dataset":
            return self.images.public_name
        return ",".join(public_name(part) if "/" in part else part for part in value.split(","))

    @property
    def run_dir(self) -> Path:
        if self.run.output_dir:
            return Path(self.run.output_dir)
        dataset = self.images.dataset
        return Path("runs") / ("demo" if dataset == "digits" else Path(dataset).resolve().name)

    @property
    def prunes(self) -> bool:
        """Whether a student is pruned and recovered; one that was chosen by its size is not."""
        return bool(self.prune.targets) and not self.student.is_auto

    @property
    def all_stages(self) -> list[str]:
        """The stages that the run has."""
        return [stage for stage in STAGES if self.prunes or stage not in STAGES_OF_PRUNING]

    @property
    def chosen_stages(self) -> list[str]:
        """Those of them that are to be done."""
        return self.run.named_stages or self.all_stages

    @cached_property
    def is_unlabelled(self) -> bool:
        """Whether the classes of the images are those that the teacher finds."""
        return lacks_labels(self.teacher.labels, self.images.dataset)

    def training(self, choice: ModelChoice, epochs: float, learning_rate: float, output_dir: Path) -> FinetuneSettings:
        """The settings of one training of the run."""
        return FinetuneSettings(
            task=self.task,
            model=choice,
            images=self.images,
            transforms=self.transforms,
            optimisation=self.optimisation,
            distillation=self.distillation,
            trainer=self.trainer.changed(output_dir=str(output_dir), num_train_epochs=epochs, learning_rate=learning_rate),
        )

    @property
    def training_values(self) -> dict[str, Any]:
        """What the outcome of every training depends on, as JSON values."""
        with kept_device():
            usual = FinetuneArguments(use_cpu=True)
        own, usual = (values.to_dict() | {"bf16": values.chosen_bf16} for values in (self.trainer, usual))
        without_effect = WITHOUT_EFFECT - (
            {"dataloader_num_workers"} if self.images.streaming else set()
        )  # they order a stream
        changed = {name: value for name, value in own.items() if value != usual.get(name) and name not in without_effect}
        parts = {name: asdict(getattr(self, name)) for name in ("transforms", "optimisation")}
        return parts | {"trainer": changed, "image_size": self.task.image_size}


def check_unpruned(settings: Settings) -> None:
    """Check that nothing was typed that concerns pruning where nothing is pruned, and that a student's size can be found.

    Raises:
        SettingsError: something was, or the target of a student to be found is no number.
    """
    why = f"--student {AUTO}" if settings.student.is_auto else f"--target {NO_TARGET}"
    left_out = [stage for stage in settings.chosen_stages if stage not in settings.all_stages]
    require(not left_out, "stages", f"have no {' and no '.join(STAGES_OF_PRUNING)} with {why}", settings.run.stages)
    flags = {word.partition("=")[0].removeprefix("--") for word in settings.typed if word.startswith("--")}
    of_size = ("target", "latency_table") if settings.student.is_auto else ("target",)
    for part in (settings.prune, settings.recover):
        for own in fields(part):
            has_effect = own.name not in flags or own.name in of_size
            require(has_effect, own.name, f"be left out with {why}, which prunes nothing", getattr(part, own.name))
    if settings.student.is_auto:
        numbers, shares = settings.prune.targets, [str(target) for target in settings.prune.targets if target.is_share]
        rule = f"be a number for --student {AUTO}, such as latency_ms=5"
        require(bool(numbers) and not shares, "target", rule, ", ".join(shares) or settings.prune.target)


def check_schedule(stage: str, epochs: float, learning_rate: float) -> None:
    """Check the length and the learning rate of a stage's training."""
    require(epochs > 0, f"{stage}_epochs", "be positive", epochs)
    require(learning_rate > 0, f"{stage}_learning_rate", "be positive", learning_rate)


def lacks_labels(labels: str, dataset: str) -> bool:
    """Whether `--labels` asks for those of the teacher, or leaves it to a data set that has none."""
    return labels == "teacher" or (labels == "auto" and bool(dataset) and has_no_classes(dataset))


def parse_settings(argv: list[str] | None = None) -> Settings:
    """Read `--config FILE_OR_NAME` and the command line, which overrides the file.

    Raises:
        SettingsError: unknown key, wrong type, value out of range, or a file that cannot be read.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    stages = (RunSettings, TeacherSettings, StudentSettings, PruneSettings, RecoverSettings, EdgeSettings, ReportSettings)
    command_line = CommandLine(
        program="distill/run.py",
        description="From labelled images to a small Swin in a .pte: data, teacher, student, prune, recover, edge, report. "
        "Every setting of scripts/finetune.py holds for all trainings of the run.",
        folder=CONFIG_DIR,
        parts=[*stages, TaskSettings, *SHARED_PARTS],
        left_out=LEFT_OUT,
        companions={"teacher_args": "teacher", "student_args": "student"},
        brief=(*stages, ImageSettings),
        brief_options=("image_size", "per_device_train_batch_size", "kd_loss", "feature_loss"),
    )
    dataset = command_line.glance(argv, "dataset")
    is_unlabelled = lacks_labels(command_line.glance(argv, "labels") or "auto", dataset)
    config = "unlabelled" if is_unlabelled else "digits" if dataset in ("", "digits") else "photos"
    *own, task, images, transforms, optimisation, distillation, trainer = command_line.parse(argv, file=config)
    run, teacher, student, prune, recover, edge, report = own
    settings = Settings(
        task=task,
        images=images,
        transforms=transforms,
        optimisation=optimisation,
        distillation=distillation,
        trainer=trainer,
        run=run,
        teacher=teacher,
        student=student,
        prune=prune,
        recover=recover,
        edge=edge,
        report=report,
        typed=tuple(argv),
        config=command_line.glance(argv, "config") or config,
    )
    if not settings.prunes:
        check_unpruned(settings)
    streams = settings.is_unlabelled and images.streaming
    require(not streams, "labels", "be given where there is a stream of images", teacher.labels)
    for choice in (teacher.choice, student.choice):
        training = settings.training(choice, 1, 1, settings.run_dir)
        check_together(training)
        settled(training)
    return settings
