"""What is a teacher worth? A student trained alone and in every way of distillation, for the same steps, on digit scenes.

All trainings of a seed see the same augmented images, but for those with fewer labels and no teacher, which see fewer images
more often. A recipe counts by its test accuracy, over several seeds, against the student trained alone with the same seeds.
The best combination is chosen by the validation images.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from benchmark_outputs import picture_beside
from benchmark_students import hybrid, resnet, save_start, settings_of, validation_by_epoch
from benchmark_trainings import begin_report, mean_and_interval, run_all
from transformers import PreTrainedModel, set_seed

from distill.compress.teachers import Classifier, Teachers, load_classifier
from distill.compress.weight_selection import select_weights
from distill.data.examples import UNKNOWN, Example
from distill.pipeline.measure import classifier_logits
from distill.training.cache_writing import cache_teacher
from distill.training.finetune import (
    RECORD,
    TrainingData,
    build_model,
    find_training_images,
    finetune,
    look_through,
    open_cache,
    train_model,
)
from distill.training.settings import FinetuneSettings
from distill.training.tasks.distillation import DistillationSettings
from distill.training.teacher_cache import TeacherCache
from swin_hf.output_folders import write_json

CONVOLUTIONAL, HYBRID = "ResNet", "hybrid"
TEACHERS = {
    CONVOLUTIONAL: lambda: resnet([32, 64, 128, 256], [2, 2, 2, 2]),
    HYBRID: lambda: hybrid([24, 48, 96], [6, 1, 2]),
}
ALONE, BEST, DEFAULT = "alone", "the best combination", "the default"


def make_student() -> PreTrainedModel:
    return hybrid([16, 32, 64], [2, 1, 2])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to train the student.

    teachers: of `TEACHERS`; none: alone. options: of `DistillationSettings`. selected: it starts with weights of the hybrid.
    """

    teachers: tuple[str, ...] = ()
    options: dict[str, object] = field(default_factory=dict)
    selected: bool = False

    @property
    def uses_maps(self) -> bool:
        return "feature_loss" in self.options

    def settings(self, **more: object) -> DistillationSettings:
        """Those of its losses, with others."""
        return DistillationSettings(**{"feature_loss": "none"} | self.options | more)

    def __str__(self) -> str:
        options = [f"{name} {value}" for name, value in self.options.items()]
        return ", ".join(
            [*options, *(["selected weights"] if self.selected else []), *(f"from the {own}" for own in self.teachers)]
        )


OF_LOGITS = {  # by name, with the weights that their papers or common practice give them
    "KL": {"kd_loss": "kl"},
    "DIST": {"kd_loss": "dist", "kd_weight": 2.0},
    "NKD": {"kd_loss": "nkd"},
}
OF_MAPS = {"VkD": {"feature_loss": "vkd"}, "hints": {"feature_loss": "hints"}}
LADDER = {
    ALONE: Recipe(),
    "selected weights": Recipe(selected=True),
    "KL from the ResNet": Recipe(teachers=(CONVOLUTIONAL,), options=OF_LOGITS["KL"]),
    **{name: Recipe(teachers=(HYBRID,), options=options) for name, options in OF_LOGITS.items()},
    "KL from both": Recipe(teachers=(CONVOLUTIONAL, HYBRID), options=OF_LOGITS["KL"]),
    **{f"KL + {name}": Recipe(teachers=(HYBRID,), options=OF_LOGITS["KL"] | own) for name, own in OF_MAPS.items()},
    DEFAULT: Recipe(teachers=(HYBRID,), options=OF_LOGITS["NKD"] | OF_MAPS["hints"], selected=True),  # of distill/run.py
}
SHARES = (0.5, 0.1, 0.0)  # of the training images that have labels


@dataclass(frozen=True)
class Training:
    """A training to run.

    recipe: as JSON values. share: of the training images that have labels. folder: with teachers and caches.
    teaching: how long and at which learning rate the teachers were trained.
    """

    name: str
    recipe: dict
    seed: int
    epochs: int
    share: float
    learning_rate: float
    folder: str
    teaching: str

    @property
    def key(self) -> str:
        labels = "" if self.share == 1 else f", labels {self.share:g}"
        taught = f" ({recipe_of(self)}; teachers of {self.teaching})" if self.name != ALONE else ""
        return f"{self.name}{taught}{labels}, seed {self.seed}, learning rate {self.learning_rate:g}, {self.epochs} epochs"


@dataclass(frozen=True)
class Teaching:
    """A teacher to train, or to ask about the images of a training of `epochs` epochs, if `seed` is given."""

    teacher: str
    epochs: int
    learning_rate: float
    folder: str
    teaching: str
    seed: int | None = None

    @property
    def key(self) -> str:
        asked = "" if self.seed is None else f", asked for {self.epochs} epochs of seed {self.seed}"
        return f"teacher {self.teacher} of {self.teaching}{asked}"


def benchmark_distill(arguments: argparse.Namespace) -> None:
    """Train the teachers, then the ladder; trainings that are in `arguments.output_file` are not repeated.

    Raises:
        OutputError: the picture would replace a file of somebody's own.
    """
    picture = picture_beside(arguments.output_file)
    report = begin_report(arguments, "torch", "transformers")
    report["num_seeds"] = len(arguments.seeds)
    done = report["trainings"]
    folder = arguments.output_file.with_suffix("")
    teach(arguments, folder, done, report)
    ladder = dict(LADDER)
    run_ladder(ladder, arguments, folder, done, report)
    ladder[BEST] = best_of(ladder, arguments, folder, done)
    report["best"] = asdict(ladder[BEST])
    trainings = run_ladder(ladder, arguments, folder, done, report)
    report["rows"] = rows_of(trainings, done)
    write_json(arguments.output_file, report)
    print(described(report["rows"]))
    plot_ladder(report["rows"], picture)
    print(f"-> {arguments.output_file} and its picture")


def teach(arguments: argparse.Namespace, folder: Path, done: dict, report: dict) -> None:
    """Train the teachers, and write what they say of the images of each seed and length."""
    rate, length = arguments.learning_rate / 2, arguments.teacher_epochs
    teachings = [Teaching(name, length, rate, str(folder), teaching_of(arguments)) for name in TEACHERS]
    run_all("teacher-worker", teachings, done, arguments, report)
    lengths = {CONVOLUTIONAL: (arguments.epochs,), HYBRID: (arguments.epochs, 2 * arguments.epochs)}
    asked = [
        replace(teaching, seed=seed, epochs=epochs)
        for teaching in teachings
        for seed in arguments.seeds
        for epochs in lengths[teaching.teacher]
    ]
    run_all("teacher-worker", asked, done, arguments, report)


def run_ladder(
    ladder: dict[str, Recipe], arguments: argparse.Namespace, folder: Path, done: dict, report: dict
) -> list[Training]:
    """All trainings of the ladder: every recipe, and the first and the best one with fewer labels and twice the steps."""
    trainings = []
    for seed in arguments.seeds:
        for name, recipe in ladder.items():
            own = training_of(name, recipe, seed, arguments, folder)
            trainings.append(own)
            if name in (ALONE, BEST):
                trainings += [replace(own, share=share) for share in SHARES if share or name == BEST]
                trainings.append(replace(own, epochs=2 * own.epochs))
    run_all("distill-worker", trainings, done, arguments, report)
    return trainings


def training_of(name: str, recipe: Recipe, seed: int, arguments: argparse.Namespace, folder: Path) -> Training:
    """A training of usual length with all labels."""
    rate, teaching = arguments.learning_rate, teaching_of(arguments)
    return Training(name, asdict(recipe), seed, arguments.epochs, 1.0, rate, str(folder), teaching)


def teaching_of(arguments: argparse.Namespace) -> str:
    return f"{arguments.teacher_epochs} epochs at {arguments.learning_rate / 2:g}"


def recipe_of(training: Training) -> Recipe:
    return Recipe(**training.recipe | {"teachers": tuple(training.recipe["teachers"])})


def best_of(ladder: dict[str, Recipe], arguments: argparse.Namespace, folder: Path, done: dict) -> Recipe:
    """What is best on the validation images of all seeds: a loss of logits, with maps and selected weights if they help."""

    def judged(name: str) -> float:
        own = [training_of(name, ladder[name], seed, arguments, folder) for seed in arguments.seeds]
        return float(np.mean([done[training.key]["validation"] for training in own]))

    logits = max(OF_LOGITS, key=judged)
    best = ladder[logits]
    if judged("KL from both") > judged("KL"):
        best = replace(best, teachers=tuple(TEACHERS))
    maps = max(OF_MAPS, key=lambda name: judged(f"KL + {name}"))
    if judged(f"KL + {maps}") > judged("KL"):
        best = replace(best, options=best.options | OF_MAPS[maps])
    return replace(best, selected=judged("selected weights") > judged(ALONE))


# -- workers -------------------------------------------------------------------------------------------------------------


def work_teacher(arguments: argparse.Namespace) -> None:
    """Train a teacher, or write its cache for a seed; prints figures as JSON."""
    own = Teaching(**arguments.teaching)
    teacher = teacher_folder(own, own.teacher)
    if own.seed is not None:
        cache = cache_folder(own, own.teacher)
        options = {"teacher": teacher, "teacher_cache": cache}
        print(json.dumps(cache_teacher(settings_of(cache, teacher, own.seed, own.epochs, own.learning_rate, **options))))
        return
    set_seed(0)
    with tempfile.TemporaryDirectory() as start:
        save_start(TEACHERS[own.teacher](), Path(start))
        options = {"save_total_limit": 1, "resume": (teacher / RECORD).is_file()}
        figures = finetune(settings_of(teacher, Path(start), 0, own.epochs, own.learning_rate, **options))
    parameters = sum(part.numel() for part in load_classifier(teacher, None).parameters())
    print(
        json.dumps({"test": figures["test_accuracy"], "validation": figures["validation_accuracy"], "parameters": parameters})
    )


def teacher_folder(own: Training | Teaching, teacher: str) -> Path:
    return Path(own.folder) / own.teaching / teacher


def cache_folder(own: Training | Teaching, teacher: str) -> Path:
    return Path(own.folder) / own.teaching / f"{teacher}, seed {own.seed}, {own.epochs} epochs"


def work_distill(arguments: argparse.Namespace) -> None:
    """Train the student by one recipe; prints figures as JSON."""
    own = Training(**arguments.training)
    recipe = recipe_of(own)
    set_seed(own.seed)
    with tempfile.TemporaryDirectory() as work_dir:
        start, trained = Path(work_dir) / "start", Path(work_dir) / "trained"
        save_start(make_student(), start)
        repeats = round(1 / own.share) if own.share and not recipe.teachers else 1  # as many steps with fewer images
        settings = settings_of(trained, start, own.seed, own.epochs, own.learning_rate, repeated_augmentation=repeats)
        settings = replace(settings, distillation=recipe.settings(**({} if own.share else {"label_weight": 0.0})))
        trained.mkdir()
        stream, found = find_training_images(settings)
        data = look_through(settings, stream, found, known=False)
        model = build_model(settings, data.class_names)
        if recipe.selected:
            select_weights(model, teacher_of(own, HYBRID, data.class_names).model)
        teacher = teachers_of(own, recipe, settings, data)
        examples = with_fewer_labels(data.examples["train"], own, recipe, data.class_names)
        data = replace(data, examples=data.examples | {"train": examples})
        figures = train_model(settings, model, data, teacher=teacher)
        by_epoch = validation_by_epoch(trained)
    print(
        json.dumps(
            {"validation": figures["validation_accuracy"], "test": figures["test_accuracy"], "validation_by_epoch": by_epoch}
        )
    )


def teacher_of(own: Training, name: str, class_names: list[str]) -> Classifier:
    return load_classifier(teacher_folder(own, name), class_names)


def teachers_of(
    own: Training, recipe: Recipe, settings: FinetuneSettings, data: TrainingData
) -> Teachers | TeacherCache | None:
    """What the recipe learns from: a cache where one teacher's logits are enough."""
    if not recipe.teachers:
        return None
    if len(recipe.teachers) == 1 and not recipe.uses_maps:
        (name,) = recipe.teachers
        cached = replace(settings, teacher=str(teacher_folder(own, name)), teacher_cache=str(cache_folder(own, name)))
        return open_cache(cached, data)
    return Teachers([teacher_of(own, name, data.class_names) for name in recipe.teachers])


def with_fewer_labels(examples: list[Example], own: Training, recipe: Recipe, class_names: list[str]) -> list[Example]:
    """The training images with the labels of a share of them; without a teacher, only these.

    Without any label, the classes are those that the teacher finds.
    """
    if own.share == 1:
        return examples
    if own.share == 0:
        teacher = teacher_of(own, recipe.teachers[0], class_names)
        found = classifier_logits(teacher, examples).argmax(axis=1)
        return [replace(example, label=int(label)) for example, label in zip(examples, found)]
    chosen = np.random.default_rng(0).permutation(len(examples))[: round(own.share * len(examples))]
    known = set(chosen.tolist())
    if not recipe.teachers:
        return [example for number, example in enumerate(examples) if number in known]
    return [example if number in known else replace(example, label=UNKNOWN) for number, example in enumerate(examples)]


# -- tables --------------------------------------------------------------------------------------------------------------


def rows_of(trainings: list[Training], done: dict[str, dict]) -> list[dict]:
    """Mean and interval of each recipe, share of labels and length, and of its difference to the student trained alone."""
    cases: dict[tuple, list[Training]] = {}
    for training in trainings:
        cases.setdefault((training.epochs, training.share, training.name), []).append(training)
    rows = []
    for (epochs, share, name), own in cases.items():
        tests = [done[training.key]["test"] for training in own]
        row = {"name": name, "epochs": epochs, "labels": share, "num_seeds": len(own), "recipe": own[0].recipe}
        row["validation"] = float(np.mean([done[training.key]["validation"] for training in own]))
        row["test"], row["interval"] = mean_and_interval(tests)
        alone = cases.get((epochs, share, ALONE))
        if alone and name != ALONE:
            differences = [test - done[other.key]["test"] for test, other in zip(tests, alone, strict=True)]
            row["gain"], row["gain_interval"] = mean_and_interval(differences)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["epochs"], -row["labels"]))


def described(rows: list[dict]) -> str:
    lines = ["", "| student | epochs | labels | validation, % | test, % | against alone, points |", "|---" * 6 + "|"]
    for row in rows:
        test, gain = shown(row["test"], row["interval"]), shown(row["gain"], row["gain_interval"]) if "gain" in row else ""
        first = f"| {row['name']} | {row['epochs']} | {row['labels']:.0%} | {100 * row['validation']:.1f} |"
        lines.append(f"{first} {test} | {gain} |")
    return "\n".join(lines)


def shown(value: float, interval: list[float] | None) -> str:
    bounds = " [{:.1f}, {:.1f}]".format(*(100 * bound for bound in interval)) if interval else ""
    return f"{100 * value:.1f}{bounds}"


def plot_ladder(rows: list[dict], path: Path) -> None:
    """The test accuracy of every row with its interval, the first at the top."""
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.32 * len(rows)), layout="constrained")
    colours = {key: f"C{number}" for number, key in enumerate(dict.fromkeys((row["epochs"], row["labels"]) for row in rows))}
    for number, row in enumerate(rows):
        spread = np.abs(np.array(row["interval"] or [row["test"]] * 2) - row["test"])[:, None]
        colour = colours[row["epochs"], row["labels"]]
        axes.errorbar(100 * row["test"], number, xerr=100 * spread, fmt="o", color=colour, capsize=3)
    names = [f"{row['name']}, {row['labels']:.0%} labels, {row['epochs']} epochs" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"accuracy on the test scenes, % (mean of {rows[0]['num_seeds']} seeds, 95 % interval)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
