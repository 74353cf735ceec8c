"""The stages of a run, from images to a report: a function each, and the table of them."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distill.compress.teachers import load_classifier
from distill.compress.weight_selection import is_larger_everywhere
from distill.data.targets import CLASSES, NOTHING
from distill.pipeline.inputs import checkpoint_files, content_of, data_files
from distill.pipeline.measure import program_logits
from distill.pipeline.models import evaluate, is_used_unchanged, save_classifier, train
from distill.pipeline.prune_stage import build_pruned
from distill.pipeline.report import make_report, stage_cost
from distill.pipeline.report_pages import write_report
from distill.pipeline.report_pictures import pictures_of
from distill.pipeline.run_folder import Run, read_data_facts
from distill.pipeline.settings import Settings
from distill.pipeline.stage_settings import OWN_TEACHER, TEACHER_IF_IT_FITS, StudentSettings, TeacherSettings
from distill.pipeline.stages import Stage
from distill.pipeline.storing import store_images
from distill.pipeline.student_shape import build_shape, student_choice
from distill.pruning.targets import MEASURED, need_programs
from distill.public_names import public_name
from distill.training.finetune import write_metrics
from distill.training.models import ModelChoice, ModelError, load_larger
from edge.device.runner import Runner
from edge.export.export import ExportSettings, export_into
from edge.export.prepare import images_to_compare_on
from swin_hf.presets_swin_hf import PRESETS


def build_data(run: Run, work_dir: Path) -> None:
    """Split the images, leave out unreadable ones, and store them at the size of the models."""
    settings = run.settings
    store_images(run.found, settings.images, settings.task.image_size, work_dir, run.stream, run.labeller())
    if "edge" in settings.chosen_stages:  # which would refuse them only after all trainings
        export_settings = ExportSettings(recipe=settings.edge.recipe, dataset=work_dir / "calibration")
        images_to_compare_on(export_settings, read_data_facts(work_dir)["class_names"])


def build_teacher(run: Run, work_dir: Path) -> None:
    """Use the teacher unchanged if it knows the classes; otherwise train it on the images."""
    own, choice = run.settings.teacher, run.settings.teacher.choice
    if is_used_unchanged(choice, run.class_names):
        print(f"      {choice} knows these classes: it is used unchanged")
        classifier = load_classifier(choice.name, run.class_names)
        save_classifier(work_dir, classifier)
        write_metrics(work_dir, {"source": public_name(choice.name), "evaluation": evaluate(run, classifier)})
        return
    how = "trained from scratch" if choice.is_preset else "fine-tuned on these classes, which it does not know yet"
    print(f"      {choice} is {how}")
    train(run.settings.training(choice, own.teacher_epochs, own.teacher_learning_rate, work_dir), run)


def build_student(run: Run, work_dir: Path) -> None:
    """Distill the teacher into a small model."""
    own, choice = run.settings.student, with_start(run, student_choice(run))
    settings = run.settings.training(choice, own.student_epochs, own.student_learning_rate, work_dir)
    train(settings, run, run.teachers())


def with_start(run: Run, choice: ModelChoice) -> ModelChoice:
    """The student with the checkpoint that it starts with: the run's teacher, if that was asked for, or if it fits."""
    started = replace(choice, init_from=str(run.folder / "teacher"))
    if choice.init_from == OWN_TEACHER:
        return started
    if choice.is_preset and run.settings.student.student_init_from == TEACHER_IF_IT_FITS:
        own = PRESETS[choice.name](**{"image_size": run.settings.task.image_size} | choice.args)
        with suppress(ModelError):  # the teacher is no Swin
            if is_larger_everywhere(load_larger(started).config, own):
                return started
    return choice


def build_recovered(run: Run, work_dir: Path) -> None:
    """Distill again, to win back what pruning cost."""
    own, choice = run.settings.recover, ModelChoice(name=str(run.folder / "pruned"), flag="student")
    settings = run.settings.training(choice, own.recover_epochs, own.recover_learning_rate, work_dir)
    train(settings, run, run.teachers())


def build_edge(run: Run, work_dir: Path) -> None:
    """Quantize, lower to ExecuTorch, and run the program."""
    data = run.folder / "data"
    held_out = None if run.data().labelled_by_teacher else data / "validation"  # whose accuracy would be an agreement
    settings = ExportSettings(recipe=run.settings.edge.recipe, dataset=data / "calibration", validation=held_out)
    manifest = export_into(work_dir, run.last_model, run.folder / "edge", settings)
    parity = manifest.parity["program"]
    print(
        f"      {manifest.program['size_bytes'] / 1e3:.0f} kB, {manifest.program['num_delegates']} delegate(s), agrees "
        f"with the model on {parity['agreement']:.1%} of {parity['num_images']} training images"
    )
    runner = Runner(work_dir)
    write_metrics(work_dir, {"evaluation": evaluate(run, lambda examples: program_logits(runner, examples))})


def build_report(run: Run, work_dir: Path) -> None:
    """Measure every step on the same test images."""
    before = [step for step in STEPS if step.name in run.settings.all_stages and step.name != "report"]
    report = make_report(
        run.folder,
        run.settings.report,
        dataset=run.settings.images.public_name,
        command=run.settings.command,
        last_model=run.last_model.name,
        stages=[stage_cost(run.folder / step.folder) for step in before],
    )
    write_report(report, work_dir, pictures_of(report, run.folder))


# -- the table -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage before it belongs to a run.

    inputs: other stages, of which those count that the run has, or `LAST`.
    settings: what its outcome depends on beside its inputs, as JSON values.
    has_target: whether the target is met in it, by measuring if it takes programs to know what they cost.
    """

    name: str
    title: str
    folder: str
    inputs: tuple[str, ...]
    settings: Callable[[Settings], dict[str, Any]]
    build: Callable[[Run, Path], None]
    has_target: bool = False


def _of_images(settings: Settings) -> dict[str, Any]:
    """The settings of the data stage, and the files of the data set; not its name, which only the report shows."""
    own = {name: value for name, value in asdict(settings.images).items() if name != "dataset_name"}
    if settings.is_unlabelled:
        own |= {"labels": "teacher", "labeller": [settings.teacher.teacher, checkpoint_files(settings.teacher.teacher)]}
    files = data_files(settings.images.dataset, NOTHING if settings.is_unlabelled else CLASSES)
    return own | {"image_size": settings.task.image_size, "files": files}


def _with_model(own: TeacherSettings | StudentSettings) -> dict[str, Any]:
    """The settings of a stage that starts with a model of the user's choice, and the files of its checkpoints."""
    choice, own = own.choice, {name: value for name, value in asdict(own).items() if name not in ("more_teachers", "labels")}
    names = ([] if choice.is_preset else [choice.name]) + ([] if choice.init_from in ("", OWN_TEACHER) else [choice.init_from])
    return {"own": own, "files": [file for name in names for file in checkpoint_files(name)]}


def _distilled(settings: Settings) -> dict[str, Any]:
    """The settings of a stage that distills, and the files of the teachers beside the run's own."""
    others = settings.teacher.others
    own = settings.distillation
    losses = {"logits_loss": own.logits_loss, "maps_loss": own.maps_loss}  # which may have been left to us
    values = settings.training_values | {"distillation": asdict(own) | losses}
    return values | ({"more_teachers": [[name, checkpoint_files(name)] for name in others]} if others else {})


def _sized(settings: Settings) -> dict[str, Any]:
    """What the shape of a student depends on that is to be found."""
    return {"target": settings.prune.target, "student_args": settings.student.choice.args} | _timed(settings)


def _pruned(settings: Settings) -> dict[str, Any]:
    """What the outcome of pruning depends on; of trainings between steps, only if there are several steps."""
    own = settings.prune
    values = {"targets": [str(target) for target in own.targets], "scopes": list(own.scope_names)}
    values |= {name: getattr(own, name) for name in ("criterion", "round_to", "prune_batches", "prune_steps")}
    if own.prune_steps > 1:
        values |= {"epochs": own.prune_step_epochs, "learning_rate": settings.recover.recover_learning_rate}
    return {"own": values} | _timed(settings)


def _timed(settings: Settings) -> dict[str, Any]:
    """What the latency and the size of programs depend on, if the target names one."""
    if not any(target.measure in MEASURED for target in settings.prune.targets):
        return {}
    table, facts = settings.prune.latency_table, {"recipe": settings.edge.recipe, "threads": settings.report.threads}
    return facts | ({"latency_table": content_of(table)} if table else {})


LAST = "the last training"
STEPS = (
    Step(
        name="data",
        title="clean, resize and split the images",
        folder="data",
        inputs=(),
        settings=_of_images,
        build=build_data,
    ),
    Step(
        name="shape",
        title="find the student that meets the target",
        folder="shape",
        inputs=("data",),
        settings=_sized,
        build=build_shape,
        has_target=True,
    ),
    Step(
        name="teacher",
        title="have a large model that knows the classes",
        folder="teacher",
        inputs=("data",),
        settings=lambda settings: settings.training_values | _with_model(settings.teacher),
        build=build_teacher,
    ),
    Step(
        name="student",
        title="distill the teacher into a small model",
        folder="student",
        inputs=("data", "shape", "teacher"),
        settings=lambda settings: _distilled(settings) | _with_model(settings.student),
        build=build_student,
    ),
    Step(
        name="prune",
        title="remove what matters least, until the target is met",
        folder="pruned",
        inputs=("data", "teacher", "student"),
        settings=lambda settings: _distilled(settings) | _pruned(settings),
        build=build_pruned,
        has_target=True,
    ),
    Step(
        name="recover",
        title="distill again, to win back what pruning cost",
        folder="recovered",
        inputs=("data", "teacher", "prune"),
        settings=lambda settings: _distilled(settings) | {"own": asdict(settings.recover)},
        build=build_recovered,
    ),
    Step(
        name="edge",
        title="quantize, lower to ExecuTorch, and run the program",
        folder="edge",
        inputs=("data", LAST),
        settings=lambda settings: asdict(settings.edge),
        build=build_edge,
    ),
    Step(
        name="report",
        title="measure every step on the test images",
        folder="report",
        inputs=("data", "shape", "teacher", "student", "prune", "recover", "edge"),
        settings=lambda settings: asdict(settings.report) | {"dataset": settings.images.public_name},
        build=build_report,
    ),
)


def stages_of(run: Run) -> list[Stage]:
    """The stages of a run, each with exactly the settings that its outcome depends on."""
    settings = run.settings
    is_measured = need_programs(settings.prune.targets, has_table=bool(settings.prune.latency_table))

    def inputs_of(step: Step) -> tuple[str, ...]:
        last = next(own.name for own in STEPS if own.folder == run.last_model.name)
        names = [last if name == LAST else name for name in step.inputs]
        return tuple(name for name in names if name in settings.all_stages)

    return [
        Stage(
            name=step.name,
            title=step.title,
            folder=step.folder,
            inputs=inputs_of(step),
            settings=step.settings(settings),
            build=partial(step.build, run),
            is_measured=step.has_target and is_measured,
        )
        for step in STEPS
        if step.name in settings.all_stages
    ]
