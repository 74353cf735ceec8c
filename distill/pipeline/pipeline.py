"""A run from end to end: what is checked before it, its stages, and what people look for after it."""

import shutil

from filelock import FileLock
from transformers import PreTrainedModel

from distill.compress.teachers import load_classifier
from distill.pipeline.report import read_table
from distill.pipeline.run_folder import Run
from distill.pipeline.settings import Settings
from distill.pipeline.stages import run_stages, stages_to_build
from distill.pipeline.steps import is_used_unchanged, stages_of
from distill.training.finetune import build_model
from distill.training.models import ModelChoice, ModelError, load_processor
from distill.training.optimisation import parameter_groups
from swin_hf import SwinHfForImageClassification


def run_pipeline(settings: Settings) -> str:
    """Build the chosen stages that are not up to date; returns the table and what to type next.

    Raises:
        StageError: a stage that is needed was not chosen and is not there.
        DataError: the data set is not there or cannot be used.
        TeacherError, ModelError, SettingsError: the teacher or the student cannot be had.
        TrainingStopped: SIGTERM came before the end.
    """
    run = Run(settings)
    check(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(run.folder / ".lock", timeout=0):
        run_stages(stages_of(run), settings.run.stage_names, run.folder, settings.run.force)
        lay_out(run)
    return closing_words(run)


def check(run: Run) -> None:
    """Look at everything from outside the run, so that what is wrong with it is said before any work."""
    settings = run.settings
    to_build = stages_to_build(stages_of(run), settings.run.stage_names, run.folder, settings.run.force)
    names = run.found.class_names if "data" in to_build else None
    if names is None and {"teacher", "student"} & set(to_build):
        names = run.class_names
    if "teacher" in to_build:
        choice = settings.teacher.choice
        if is_used_unchanged(choice, names):
            load_classifier(choice.name, names)
        else:
            check_model(run, choice, names)
    if "student" in to_build:
        choice = settings.student.choice
        student = check_model(run, choice, names)
        if not isinstance(student, SwinHfForImageClassification):
            raise ModelError(f"--student {choice.name} must be a Swin of ours to be pruned, got {type(student).__name__}")


def check_model(run: Run, choice: ModelChoice, class_names: list[str]) -> PreTrainedModel:
    """The model that a stage will train, loaded with its processor and all that depends on its architecture."""
    settings = run.settings.training(choice, 1, 1, run.folder)
    model = build_model(settings, class_names, announce=False)
    load_processor(choice, settings.task.image_size, settings.crops, model.config)
    parameter_groups(model, 1.0, 0.0, settings.optimisation.layer_decay)
    return model


def lay_out(run: Run) -> None:
    """Copy what people look for, the samples and the report, to the top of the run folder."""
    samples, report = run.folder / "data" / "samples", run.folder / "report"
    if samples.is_dir():
        shutil.rmtree(run.folder / "samples", ignore_errors=True)
        shutil.copytree(samples, run.folder / "samples")
    for file in report.glob("report*"):
        shutil.copy2(file, run.folder / file.name)


def closing_words(run: Run) -> str:
    """The table and what to type next, as far as the run has come."""
    words, folder = [], run.folder
    if (folder / "report.json").is_file():
        words += ["", read_table(folder / "report.json"), "", f"Report: {folder / 'report.html'}"]
    samples = sorted((folder / "samples").glob("*_0.png"))
    if (folder / "edge" / "model.pte").is_file() and samples:
        sample = folder / "samples" / "7_0.png"
        words.append(f"Try: python -m edge run {folder / 'edge'} {sample if sample in samples else samples[0]}")
    return "\n".join(words)
