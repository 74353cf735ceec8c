"""Settings of a run: those that all its trainings share, and those of each stage; checked together before any work starts."""

import shlex
import sys
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.data.finding import has_no_classes
from distill.data.splits import ImageSettings
from distill.data.transforms import TransformSettings
from distill.errors import require
from distill.pipeline.stage_settings import (
    STAGES,
    EdgeSettings,
    PruneSettings,
    RecoverSettings,
    ReportSettings,
    RunSettings,
    StudentSettings,
    TeacherSettings,
)
from distill.pruning.targets import AUTO
from distill.public_names import public_name
from distill.training.command_line import CommandLine
from distill.training.models import ModelChoice
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
from edge.lower.process_device import kept_device

STAGES_OF_PRUNING = ("prune", "recover")  # left out where nothing is pruned
STAGES_OF_AUTO = ("shape",)  # left out where the shape of the student is given
WITH_AUTO, WITH_TARGET = f"with --student {AUTO}", "with a --target, such as macs=0.7 or latency=0.7x"
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
        left_out = (() if self.prunes else STAGES_OF_PRUNING) + (() if self.student.is_auto else STAGES_OF_AUTO)
        return [stage for stage in STAGES if stage not in left_out]

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


def check_stages(settings: Settings) -> None:
    """Check that the run has the stages that were named.

    Raises:
        SettingsError: it does not have one.
    """
    is_auto, chosen = settings.student.is_auto, settings.chosen_stages
    names = " and ".join(stage for stage in chosen if stage in STAGES_OF_AUTO)
    require(is_auto or not names, "stages", f"name {names} only {WITH_AUTO}", settings.run.stages)
    names = " and ".join(stage for stage in chosen if stage in STAGES_OF_PRUNING)
    rule = f"not name {names} {WITH_AUTO}" if is_auto else f"name {names} only {WITH_TARGET}"
    require(settings.prunes or not names, "stages", f"{rule}, as nothing is pruned", settings.run.stages)


def check_unpruned(settings: Settings) -> None:
    """Check that nothing was typed that concerns pruning where nothing is pruned, and that a student's size can be found.

    Raises:
        SettingsError: something was, or the target of a student to be found is no number.
    """
    rule = f"be left out {WITH_AUTO}" if settings.student.is_auto else f"come {WITH_TARGET}"
    flags = {word.partition("=")[0].removeprefix("--") for word in settings.typed if word.startswith("--")}
    of_size = ("target", "latency_table") if settings.student.is_auto else ("target",)
    for part in (settings.prune, settings.recover):
        for own in fields(part):
            has_effect = own.name not in flags or own.name in of_size
            require(has_effect, own.name, f"{rule}, as nothing is pruned", getattr(part, own.name))
    if settings.student.is_auto:
        numbers, shares = settings.prune.targets, [str(target) for target in settings.prune.targets if target.is_share]
        rule = f"be a number for --student {AUTO}, such as latency_ms=5"
        require(bool(numbers) and not shares, "target", rule, ", ".join(shares) or settings.prune.target)


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
        description="From labelled images to a small Swin in a .pte: data, teacher, student, edge, report. With a --target, a "
        "student that is there is pruned and recovered, and the shape of --student auto is found by it. "
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
    check_stages(settings)
    if not settings.prunes:
        check_unpruned(settings)
    streams = settings.is_unlabelled and images.streaming
    require(not streams, "labels", "be given where there is a stream of images", teacher.labels)
    for choice in (teacher.choice, student.choice):
        training = settings.training(choice, 1, 1, settings.run_dir)
        check_together(training)
        settled(training)
    return settings
