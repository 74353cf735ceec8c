"""What the stages do with models: train, evaluate and save them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill.compress.teachers import Classifier, Teachers, knows_classes
from distill.data.examples import Example
from distill.pipeline.measure import classifier_logits
from distill.pipeline.run_folder import Run
from distill.training.figures import accuracy_with_interval, as_agreement
from distill.training.finetune import build_model, train_model
from distill.training.models import ModelChoice
from distill.training.settings import FinetuneSettings
from distill.training.trainer import last_whole_checkpoint
from swin_hf.output_folders import OutputError


def is_used_unchanged(choice: ModelChoice, class_names: list[str]) -> bool:
    """Whether a teacher needs no training: a checkpoint of these classes whose config is not changed."""
    return not choice.is_preset and not choice.args and knows_classes(choice.name, class_names)


def train(settings: FinetuneSettings, run: Run, teacher: Teachers | None = None) -> None:
    """Train one model of the run, resuming an interrupted training, and print its figures."""
    folder, best = Path(settings.trainer.output_dir), settings.kind.best_by.name
    data, checkpoint = run.data(), None
    try:
        checkpoint = last_whole_checkpoint(folder)
    except OutputError as damage:
        print(f"      starting anew: {damage}", flush=True)
    announce = settings.model.flag == "teacher" or bool(settings.model.init_from)
    model = build_model(settings, data.class_names, announce)
    figures = train_model(settings, model, data, teacher=teacher, checkpoint=checkpoint)
    for left in folder.glob("checkpoint-*"):
        shutil.rmtree(left)
    for name in (f"validation_{best}", f"test_{best}"):
        if name in figures:
            shown = as_agreement(name) if data.labelled_by_teacher else name
            print(f"      {shown.replace('_', ' ')} {figures[name]:.1%}")


def save_classifier(folder: Path, classifier: Classifier) -> None:
    """Write an ordinary `from_pretrained` folder with its processor."""
    classifier.model.save_pretrained(folder)
    classifier.processor.save_pretrained(folder)


def evaluate(run: Run, classifier: Classifier | Callable[[list[Example]], np.ndarray]) -> dict[str, Any]:
    """The accuracy of a classifier, or of what gives logits (n, K) for images, on the test images."""
    data = run.data()
    test = data.examples["test"]
    logits = classifier_logits(classifier, test) if isinstance(classifier, Classifier) else classifier(test)
    labels = np.array([example.label for example in test])
    measured = accuracy_with_interval(logits.argmax(axis=1), labels)
    return measured.as_evaluation(run.settings.images, data.labelled_by_teacher)
