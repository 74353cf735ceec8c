"""What is a teacher worth on a folder of few images? A student trained alone and with a teacher, over several splits.

Teacher and student are new models; both see the training images of the split alone. A student with a teacher and one without
see the same augmented images, for the same steps. What counts is the difference of their test accuracies, over the splits.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmark_distill import HYBRID, LADDER, TEACHERS, make_student, shown
from benchmark_students import save_start
from benchmark_trainings import begin_report, mean_and_interval, run_all
from transformers import set_seed

from distill.compress.teachers import Teachers, load_classifier
from distill.compress.weight_selection import select_weights
from distill.public_names import public_name
from distill.training.finetune import build_model, find_training_images, look_through, train_model
from distill.training.settings import FinetuneSettings, parse_finetune_settings, settled
from swin_hf.output_folders import write_json

TEACHER, ALONE, TAUGHT = WHO = ("teacher", "alone", "with a teacher")
TEST_SHARE = 0.3  # of few images, so that a split says something
AUGMENTATION = {"crop_min_area": 0.5, "rotation_degrees": 15, "color_jitter": 0.3, "mixup_alpha": 0.2}
AUGMENTATION |= {"randaugment_ops": 0, "random_erasing": 0, "cutmix_alpha": 0}


@dataclass(frozen=True)
class Training:
    """A training to run. recipe: of the ladder of `distill`. folder: with the teachers of all splits."""

    who: str
    recipe: str
    dataset: str
    image_size: int
    split: int
    epochs: int
    learning_rate: float
    teacher_epochs: int
    folder: str

    @property
    def key(self) -> str:
        taught = f" ({LADDER[self.recipe]}, {self.teacher_epochs} epochs)" if self.who == TAUGHT else ""
        return (
            f"{self.who}{taught}, split {self.split} of {public_name(self.dataset)}, {self.image_size} pixels, "
            f"{self.epochs} epochs at {self.learning_rate:g}"
        )

    @property
    def teacher(self) -> Path:
        return Path(self.folder) / f"split {self.split}, {self.image_size} pixels, {self.teacher_epochs} epochs"


def benchmark_folder(arguments: argparse.Namespace) -> None:
    """Train teacher and students of every split; trainings that are in `arguments.output_file` are not repeated."""
    report = begin_report(arguments, "torch", "transformers")
    done = report["trainings"]
    students = [
        Training(
            who=who,
            recipe=arguments.distillation,
            dataset=str(arguments.dataset),
            image_size=arguments.image_size,
            split=split,
            epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            teacher_epochs=arguments.teacher_epochs,
            folder=str(arguments.output_file.with_suffix("")),
        )
        for split in arguments.splits
        for who in (ALONE, TAUGHT)
    ]
    as_teacher = {"who": TEACHER, "epochs": arguments.teacher_epochs, "learning_rate": arguments.learning_rate / 2}
    teachers = [replace(own, **as_teacher) for own in students if own.who == TAUGHT]
    run_all("folder-worker", teachers, done, arguments, report)
    run_all("folder-worker", students, done, arguments, report)
    report["result"] = result_of({who: [done[own.key] for own in [*teachers, *students] if own.who == who] for who in WHO})
    write_json(arguments.output_file, report)
    print(described(report["result"]))
    print(f"-> {arguments.output_file}")


def work_folder(arguments: argparse.Namespace) -> None:
    """One training; prints its figures as JSON."""
    own = Training(**arguments.training)
    set_seed(own.split)
    with tempfile.TemporaryDirectory() as work_dir:
        start = Path(work_dir) / "start"
        trained = own.teacher if own.who == TEACHER else Path(work_dir) / "trained"
        save_start(TEACHERS[HYBRID]() if own.who == TEACHER else make_student(), start)
        settings = settings_of(own, start, trained)
        shutil.rmtree(trained, ignore_errors=True)  # what an interrupted training left
        trained.mkdir(parents=True)
        stream, found = find_training_images(settings)
        data = look_through(settings, stream, found, known=False)
        model, teacher = build_model(settings, data.class_names), None
        if own.who == TAUGHT:
            recipe, classifier = LADDER[own.recipe], load_classifier(own.teacher, data.class_names)
            settings, teacher = replace(settings, distillation=recipe.settings()), Teachers([classifier])
            if recipe.selected:
                select_weights(model, classifier.model)
        figures = train_model(settings, model, data, teacher=teacher)
        counts = {split: len(examples) for split, examples in data.examples.items()}
    print(json.dumps({"test": figures["test_accuracy"], "images": counts, "num_classes": len(data.class_names)}))


def settings_of(own: Training, start: Path, trained: Path) -> FinetuneSettings:
    options = {"dataset": own.dataset, "image_size": own.image_size, "model": start, "output_dir": trained}
    options |= {"seed": own.split, "split_seed": own.split, "num_train_epochs": own.epochs}
    options |= {"learning_rate": own.learning_rate, "test_share": TEST_SHARE}
    options |= {"task": "image-classification", "ema_decay": 0.99, "global_batch_size": 32, "num_pictures": 0}
    options |= {"disable_tqdm": True} | AUGMENTATION
    return settled(parse_finetune_settings([word for name, value in options.items() for word in (f"--{name}", str(value))]))


def result_of(runs: dict[str, list[dict]]) -> dict:
    """Mean accuracies with their intervals, of the split by split difference too."""
    result = {"images": runs[ALONE][0]["images"], "num_classes": runs[ALONE][0]["num_classes"], "num_splits": len(runs[ALONE])}
    for who, own in runs.items():
        result[who], result[f"{who}, interval"] = mean_and_interval([run["test"] for run in own])
    gains = [taught["test"] - alone["test"] for taught, alone in zip(runs[TAUGHT], runs[ALONE], strict=True)]
    result["gain"], result["gain, interval"] = mean_and_interval(gains)
    return result


def described(result: dict) -> str:
    lines = [
        "",
        f"{result['num_classes']} classes, images {result['images']}, {result['num_splits']} splits",
        "| | test, % |",
        "|---|---|",
        *(f"| {who} | {shown(result[who], result[f'{who}, interval'])} |" for who in WHO),
        f"| difference, points | {shown(result['gain'], result['gain, interval'])} |",
    ]
    return "\n".join(lines)
