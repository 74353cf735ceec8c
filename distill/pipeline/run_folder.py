"""A run: its settings, its folder, and what its stages read there."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets

from distill.compress.teachers import Classifier, TeacherError, Teachers, load_classifier
from distill.data.examples import Example
from distill.data.finding import find_images
from distill.data.rows import rows_with_classes
from distill.data.sources import DataError, FoundImages
from distill.data.streaming import Stream, open_stream
from distill.data.targets import CLASSES, NOTHING
from distill.pipeline.settings import Settings
from distill.training.finetune import TrainingData
from edge.compare.candidates import ProgramCost


@dataclass(frozen=True)
class Run:
    """A run with these settings."""

    settings: Settings

    @property
    def folder(self) -> Path:
        return self.settings.run_dir

    @property
    def last_model(self) -> Path:
        """The folder of the model that becomes the program: the student, recovered if it was pruned."""
        return self.folder / ("recovered" if self.settings.prunes else "student")

    @cached_property
    def programs(self) -> dict[str, ProgramCost]:
        """What programs cost that were measured in search of a student, by the JSON of their shapes."""
        return {}

    @cached_property
    def found(self) -> FoundImages:
        """The images behind `--dataset`."""
        images = self.settings.images
        if self.settings.is_unlabelled:
            return find_images(images.dataset, NOTHING)
        if images.streaming:
            return self.stream.held_out
        return find_images(images.dataset, CLASSES, drop_small_classes=images.drop_small_classes)

    @cached_property
    def stream(self) -> Stream | None:
        """The stream to train on, if there is one; its held-out rows are stored in the run's folder."""
        if not self.settings.images.streaming:
            return None
        return open_stream(CLASSES, self.settings.images, self.folder)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes of the stored images."""
        return read_data_facts(self.folder / "data")["class_names"]

    def data(self) -> TrainingData:
        """The images that the data stage stored, and the stream if there is one."""
        facts, examples = read_data_facts(self.folder / "data"), stored_examples(self.folder / "data")
        return TrainingData(
            class_names=facts["class_names"],
            examples=examples,
            stream=self.stream,
            labelled_by_teacher=facts.get("labels") == "teacher",
        )

    def labeller(self) -> Classifier | None:
        """The teacher that finds the classes of the images, if they have none, with classes of its own.

        Raises:
            TeacherError: it has learned none.
        """
        choice = self.settings.teacher.choice
        if not self.settings.is_unlabelled:
            return None
        if choice.is_preset or choice.args:
            raise TeacherError(
                f"--dataset {self.settings.images.dataset} has no classes, so that --teacher must be a checkpoint that has "
                f"learned some, got {choice}; give one, or put the images into a folder for each class"
            )
        return load_classifier(choice.name, None)

    def classifier(self, folder: str) -> Classifier:
        """The classifier of an earlier stage, frozen and in eval mode, its outputs in the order of the data's classes."""
        return load_classifier(self.folder / folder, self.class_names)

    def teachers(self) -> Teachers:
        """The teacher of the run, and the others that teach together with it."""
        others = [load_classifier(name, self.class_names) for name in self.settings.teacher.others]
        return Teachers([self.classifier("teacher"), *others])


def read_data_facts(folder: Path) -> dict[str, Any]:
    """What the data stage recorded in a folder.

    Raises:
        DataError: its `data.json` is damaged.
    """
    file = folder / "data.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        names = facts["class_names"]
        if not all(isinstance(name, str) for name in names) or not isinstance(facts["skipped"], list):
            raise TypeError("wrong types")
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}); run the stage data again with --force --stages data") from error
    return facts


def stored_examples(folder: Path) -> dict[str, list[Example]]:
    """The images of each split that the data stage stored in a folder."""
    found = rows_with_classes(dict(datasets.load_from_disk(str(folder))), str(folder))
    return {
        split: [Example(source, label) for source, label in zip(sources, found.labels[split])]
        for split, sources in found.images.items()
    }
