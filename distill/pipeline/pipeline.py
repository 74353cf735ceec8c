"""A run from end to end: what is checked before it, its stages, and what people look for after it."""

from dataclasses import replace

from transformers import PreTrainedModel

from distill.claim import claimed
from distill.compress.teachers import load_classifier
from distill.pipeline.forecast import TRAININGS, describe, forecasts
from distill.pipeline.layout import RECORD, check_layout, lay_out
from distill.pipeline.other_runs import REPORT
from distill.pipeline.prune_stage import check_prunable
from distill.pipeline.report import read_report
from distill.pipeline.report_pages import text_table
from distill.pipeline.run_folder import Run
from distill.pipeline.settings import Settings
from distill.pipeline.stage_settings import OWN_TEACHER
from distill.pipeline.stages import MANIFEST, Stage, explained_damage, run_stages, stages_to_build
from distill.pipeline.steps import STEPS, is_used_unchanged, stages_of
from distill.pipeline.student_shape import check_shape, student_choice
from distill.precision import device_in_words
from distill.training.finetune import build_model
from distill.training.models import ModelChoice, ModelError, load_larger, load_processor, start_with
from distill.training.optimisation import parameter_groups
from swin_hf import SwinHfConfig, SwinHfForImageClassification
from swin_hf.output_folders import check_apart


def run_pipeline(settings: Settings) -> str:
    """Build the chosen stages that are not up to date; returns the table and what to type next.

    Raises:
        StageError: a stage that is needed was not chosen and is not there.
        DataError: the data set is not there or cannot be used.
        TeacherError, ModelError, SettingsError: the teacher or the student cannot be had.
        PruningError: the student cannot be pruned as asked.
        OutputError: the folder of the run holds other files, or is one of the inputs, or nothing can be written there.
        TrainingStopped: SIGTERM came before the end.
    """
    settings.images.require_dataset()
    run = Run(settings)
    own = settings.student
    inputs = {"teacher": settings.teacher.teacher, "student": own.student}
    inputs |= {"student_init_from": None if own.choice.init_from == OWN_TEACHER else own.choice.init_from}
    check_apart(run.folder, "--output_dir", dataset=settings.images.dataset, **inputs)
    for other in settings.teacher.others:
        check_apart(run.folder, "--output_dir", more_teachers=other)
    with claimed(run.folder, RECORD):
        check_layout(run.folder)
        stages = stages_of(run)
        with explained_damage(stages, run.folder):
            check(run, stages)
            if left := folders_left(run):
                print(f"no longer of this run, and left as they are: {', '.join(left)} in {run.folder}", flush=True)
            run_stages(stages, settings.chosen_stages, run.folder, settings.run.force, before=BeforeFirstTraining(run))
        lay_out(run.folder)
    return closing_words(run)


def folders_left(run: Run) -> list[str]:
    """Folders of stages that the run had with other settings and does not have now."""
    others = [step.folder for step in STEPS if step.name not in run.settings.all_stages]
    return [folder for folder in others if (run.folder / folder / MANIFEST).is_file()]


class BeforeFirstTraining:
    """Done before the first training of a run: by then, a student that was to be found is known."""

    def __init__(self, run: Run):
        self.run, self.is_done = run, False

    def __call__(self, stage: str, to_build: list[str]) -> None:
        if self.is_done or stage not in TRAININGS:
            return
        self.is_done = True
        if self.run.settings.student.is_auto and "student" in to_build:
            check_student(self.run, student_choice(self.run), self.run.class_names, to_build)
        announce_trainings(self.run, to_build)


def announce_trainings(run: Run, to_build: list[str]) -> None:
    """Say what is to be trained, and how long that takes here."""
    settings = run.settings
    if settings.images.streaming:
        return
    try:
        found = forecasts(run, to_build)
    except (RuntimeError, ValueError, MemoryError) as error:  # of a model that takes other inputs: training will tell
        print(f"      how long the trainings take is not known: {error}", flush=True)
        return
    if found:
        print(describe(found, device_in_words(settings.trainer), settings.config), flush=True)


def check(run: Run, stages: list[Stage]) -> None:
    """Look at everything from outside the run, so that what is wrong with it is said before any work."""
    settings = run.settings
    to_build = stages_to_build(stages, settings.chosen_stages, run.folder, settings.run.force)
    names = None
    if "data" in to_build:
        labeller, found = run.labeller(), run.found
        names = found.class_names if labeller is None else labeller.class_names
    if names is None and {"shape", "teacher", "student"} & set(to_build):
        names = run.class_names
    if "teacher" in to_build:
        choice = settings.teacher.choice
        if is_used_unchanged(choice, names):
            load_classifier(choice.name, names)
        else:
            check_model(run, choice, names)
    if {"student", "prune", "recover"} & set(to_build):
        for other in settings.teacher.others:
            load_classifier(other, names or run.class_names)
    if {"shape", "student"} & set(to_build):
        choice = settings.student.choice
        if settings.student.is_auto:  # whether it can start with a larger one is known when its shape is
            student = check_model(run, replace(choice, init_from=""), names)
            if choice.init_from and "student" in to_build:
                model_to_start_with(run, names, to_build)
        else:
            student = check_student(run, choice, names, to_build)
        if not isinstance(student, SwinHfForImageClassification):
            raise ModelError(f"--student {choice.name} must be a Swin of ours to be exported, got {type(student).__name__}")
        if "shape" in to_build:
            check_shape(run, len(names))
        if "prune" in to_build:
            check_prunable(run, student.config)
    elif "prune" in to_build:
        check_prunable(run, SwinHfConfig.from_pretrained(run.folder / "student"))


def check_student(run: Run, choice: ModelChoice, class_names: list[str], to_build: list[str]) -> PreTrainedModel:
    """The student, as its stage will train it; one that is to start with weights of a larger model can.

    Raises:
        ModelError: it cannot.
    """
    student = check_model(run, replace(choice, init_from=""), class_names)
    if choice.init_from:
        start_with(student, model_to_start_with(run, class_names, to_build), choice, announce=False)
    return student


def model_to_start_with(run: Run, class_names: list[str], to_build: list[str]) -> PreTrainedModel:
    """The larger model whose weights the student is to start with; the run's teacher has others if it is not trained yet.

    Raises:
        ModelError: it is no Swin.
    """
    teacher, choice = run.settings.teacher.choice, run.settings.student.choice
    if choice.init_from != OWN_TEACHER:
        return load_larger(choice)
    if "teacher" in to_build and teacher.is_preset:
        return check_model(run, teacher, class_names)
    checkpoint = teacher.name if "teacher" in to_build else str(run.folder / "teacher")
    return load_larger(replace(choice, init_from=checkpoint))


def check_model(run: Run, choice: ModelChoice, class_names: list[str]) -> PreTrainedModel:
    """The model that a stage will train, loaded with its processor and all that depends on its architecture."""
    settings = run.settings.training(choice, 1, 1, run.folder)
    model = build_model(settings, class_names, announce=False)
    load_processor(choice, settings.task.image_size, settings.crops, model.config)
    parameter_groups(model, 1.0, 0.0, settings.optimisation.layer_decay)
    return model


def closing_words(run: Run) -> str:
    """The table and what to type next, as far as the run has come."""
    words, folder = [], run.folder
    if (folder / REPORT).is_file():
        report = read_report(folder / REPORT)
        words += ["", *([report.doubt, ""] if report.doubt else []), text_table(report), ""]
        words.append(f"Report: {folder / 'report.html'}")
    samples = sorted((folder / "samples").glob("*_0.png"))
    if (folder / "edge" / "model.pte").is_file() and samples:
        sample = folder / "samples" / "7_0.png"
        words.append(f"Try: python -m edge run {folder / 'edge'} {sample if sample in samples else samples[0]}")
    return "\n".join(words)
