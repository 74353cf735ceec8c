"""The seven stages of a run, from images to a report."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import datasets
import torch
from filelock import FileLock
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from distill.compress.distillation import Schedule, collate, distillation_loss, train
from distill.compress.pruning import PruningError, make_plan, measure_importance, prune
from distill.compress.teachers import Classifier, TeacherError, load_classifier
from distill.data.augmentation import RandomAffine
from distill.data.preparation import image_processor, prepare_data
from distill.data.sources import DataError, FoundImages, find_images
from distill.pipeline.report import make_report, read_table, write_report
from distill.pipeline.settings import Settings
from distill.pipeline.stages import Stage, StageError, file_listing, run_stages, stages_to_build
from distill.training.command_line import SettingsError
from distill.training.trainer import DivergenceError
from edge.deploy.form import DeployError
from edge.export.calibration import CalibrationError
from edge.export.checkpoint import CheckpointError
from edge.export.export import ExportError, ExportSettings, export
from edge.lower.lowering import LoweringError
from swin_hf import SwinHfConfig, SwinHfForImageClassification

EXPLAINED_ERRORS = (
    SettingsError,
    DataError,
    TeacherError,
    DivergenceError,
    StageError,
    PruningError,
    CheckpointError,
    CalibrationError,
    DeployError,
    LoweringError,
    ExportError,
    OSError,
)


class Pipeline:
    """Builds the stages of a run from its settings; every method that fills a folder is one stage."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.run_dir = settings.run_dir

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages in order, each with exactly the settings that its outcome depends on."""
        parts = {name: asdict(part) for name, part in vars(self.settings).items()}
        training = {name: parts[name] for name in ("augmentation", "training")}

        def stage(name: str, title: str, folder: str, inputs: tuple[str, ...], own: dict, build: Callable) -> Stage:
            return Stage(name=name, title=title, folder=folder, inputs=inputs, settings=own, build=build)

        data_settings = parts["data"] | {"files": outside_files(self.settings.data.dataset)}
        teacher, model = parts["teacher"], {"model": parts["model"]}
        if teacher["teacher"]:
            teacher_settings = {"teacher": teacher["teacher"], "files": outside_files(teacher["teacher"])}
            teacher_title = f"take {teacher['teacher']}"
        else:
            teacher_settings, teacher_title = training | model | {"own": teacher}, "train the large model"
        return [
            stage("data", "clean, resize and split the images", "data", (), data_settings, self.build_data),
            stage("teacher", teacher_title, "teacher", ("data",), teacher_settings, self.build_teacher),
            stage(
                "student",
                "distill the teacher into a small model",
                "student",
                ("data", "teacher"),
                training | model | {"own": parts["student"]},
                self.build_student,
            ),
            stage(
                "prune",
                "remove the least important heads and MLP channels",
                "pruned",
                ("data", "teacher", "student"),
                {"own": parts["prune"], "training": parts["training"]},
                self.build_pruned,
            ),
            stage(
                "recover",
                "distill again, to win back what pruning cost",
                "recovered",
                ("data", "teacher", "prune"),
                training | {"own": parts["recover"]},
                self.build_recovered,
            ),
            stage(
                "edge",
                "quantize, lower to ExecuTorch, and run the program",
                "edge",
                ("data", "recover"),
                parts["edge"],
                self.build_edge,
            ),
            stage(
                "report",
                "measure every step on the test images",
                "report",
                ("data", "teacher", "student", "prune", "recover", "edge"),
                parts["report"],
                self.build_report,
            ),
        ]

    def check(self) -> None:
        """Look at everything from outside the run, so that what is wrong with it is said before any work.

        Raises:
            StageError: a stage that is needed was not chosen and is not there.
            DataError: the data set is not there or cannot be used.
            TeacherError: `--teacher` is not an image classifier for these classes.
        """
        run, teacher = self.settings.run, self.settings.teacher.teacher
        to_build = stages_to_build(self.stages, run.stage_names, self.run_dir, run.force)
        class_names = self.labelled_images.class_names if "data" in to_build else None
        if teacher and "teacher" in to_build:
            load_classifier(teacher, class_names or self.class_names)

    def run(self) -> None:
        """Build the chosen stages that are not up to date."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(self.run_dir / ".lock", timeout=0):
            run_stages(self.stages, self.settings.run.stage_names, self.run_dir, self.settings.run.force)
            self.publish()

    # -- one method per stage ------------------------------------------------------------------------------------------

    def build_data(self, work_dir: Path) -> None:
        prepare_data(self.labelled_images, self.settings.data, work_dir)

    def build_teacher(self, work_dir: Path) -> None:
        own = self.settings.teacher
        if own.teacher:
            classifier = load_classifier(own.teacher, self.class_names)
            self._save(work_dir, classifier, {"source": own.teacher})
            return
        set_seed(self.settings.data.seed)
        model = SwinHfForImageClassification(
            self._config(own.teacher_embed_dim, own.teacher_depths, own.teacher_num_heads, own.teacher_drop_path)
        )
        self._train(model, work_dir, own.teacher_epochs, own.teacher_learning_rate, teacher=None)

    def build_student(self, work_dir: Path) -> None:
        own = self.settings.student
        set_seed(self.settings.data.seed)
        model = SwinHfForImageClassification(
            self._config(own.student_embed_dim, own.student_depths, own.student_num_heads, drop_path=0.0)
        )
        self._train(model, work_dir, own.student_epochs, own.student_learning_rate, self.load("teacher"))

    def build_pruned(self, work_dir: Path) -> None:
        own, batch_size = self.settings.prune, self.settings.training.batch_size
        set_seed(self.settings.data.seed)
        student, teacher = self.load("student"), self.load("teacher")
        student.requires_grad_(True)
        images = self.data["train"].shuffle(seed=self.settings.data.seed)

        def losses() -> Iterator[torch.Tensor]:
            for batch in range(max(min(own.prune_batches, len(images) // batch_size), 1)):
                rows = images.skip(batch * batch_size).take(min(batch_size, len(images)))
                inputs = collate(list(rows))
                pixels = inputs["pixels"].float() / 255
                kd_weight = self.settings.training.kd_weight
                yield distillation_loss(student(pixels), inputs["targets"], pixels, teacher, kd_weight)[0]

        importance = measure_importance(student.model, losses())
        plan = make_plan(importance, own.prune_heads, own.prune_mlp)
        figures = plan.removed_shares(importance)
        print(
            f"      removed {figures['removed_heads']:.0%} of the heads (asked {own.prune_heads:.0%}) and "
            f"{figures['removed_mlp']:.0%} of the MLP channels (asked {own.prune_mlp:.0%})"
        )
        self._save(work_dir, Classifier(prune(student.model, plan), image_processor(self.settings.data)), figures)

    def build_recovered(self, work_dir: Path) -> None:
        own = self.settings.recover
        set_seed(self.settings.data.seed)
        model = self.load("pruned").requires_grad_(True).model
        self._train(model, work_dir, own.recover_epochs, own.recover_learning_rate, self.load("teacher"))

    def build_edge(self, work_dir: Path) -> None:
        manifest = export(self.run_dir / "recovered", work_dir, ExportSettings(recipe=self.settings.edge.edge_recipe))
        parity = manifest.parity["program"]
        print(
            f"      {manifest.program['size_bytes'] / 1e3:.0f} kB, {manifest.program['num_delegates']} delegate(s), agrees "
            f"with the model on {parity['agreement']:.1%} of {parity['num_images']} training images"
        )

    def build_report(self, work_dir: Path) -> None:
        write_report(make_report(self.run_dir, self.settings.run_name, self.settings.report), work_dir)

    # -- what the stages share -----------------------------------------------------------------------------------------

    @cached_property
    def labelled_images(self) -> FoundImages:
        return find_images(self.settings.data.dataset, "image-classification")

    @property
    def data(self) -> datasets.DatasetDict:
        return datasets.load_from_disk(str(self.run_dir / "data"))

    @property
    def class_names(self) -> list[str]:
        return json.loads((self.run_dir / "data" / "data.json").read_text())["class_names"]

    def load(self, folder: str) -> Classifier:
        """The classifier of an earlier stage, frozen and in eval mode, its outputs in the order of the data's classes."""
        return load_classifier(self.run_dir / folder, self.class_names)

    def publish(self) -> None:
        """Copy what people look for, the samples and the report, to the top of the run folder."""
        samples, report = self.run_dir / "data" / "samples", self.run_dir / "report"
        if samples.is_dir():
            shutil.rmtree(self.run_dir / "samples", ignore_errors=True)
            shutil.copytree(samples, self.run_dir / "samples")
        for file in report.glob("report*"):
            shutil.copy2(file, self.run_dir / file.name)

    def closing_words(self) -> str:
        """The table and what to type next, as far as the run has come."""
        words = []
        if (self.run_dir / "report.json").is_file():
            words += ["", read_table(self.run_dir / "report.json"), "", f"Report: {self.run_dir / 'report.html'}"]
        samples = sorted((self.run_dir / "samples").glob("*_0.png"))
        if (self.run_dir / "edge" / "model.pte").is_file() and samples:
            sample = self.run_dir / "samples" / "7_0.png"
            words.append(f"Try: python -m edge run {self.run_dir / 'edge'} {sample if sample in samples else samples[0]}")
        return "\n".join(words)

    def _config(self, embed_dim: int, depths: list[int], num_heads: list[int], drop_path: float) -> SwinHfConfig:
        names = self.class_names
        return SwinHfConfig(
            image_size=self.settings.data.image_size,
            patch_size=self.settings.model.patch_size,
            window_size=self.settings.model.window_size,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            drop_path_rate=drop_path,
            weight_init="fan_in",  # these models are narrow, and none starts from a checkpoint
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )

    def _train(
        self,
        model: SwinHfForImageClassification,
        work_dir: Path,
        epochs: int,
        learning_rate: float,
        teacher: Classifier | None,
    ) -> None:
        classifier = Classifier(model, image_processor(self.settings.data))
        figures = train(
            classifier,
            self.data,
            self.settings.training,
            self.settings.execution,
            Schedule(epochs=epochs, learning_rate=learning_rate, seed=self.settings.data.seed),
            RandomAffine(self.settings.augmentation),
            work_dir,
            teacher,
        )
        print(f"      validation accuracy {figures['validation_accuracy']:.1%}")
        self._save(work_dir, classifier, figures)

    def _save(self, work_dir: Path, classifier: Classifier, figures: dict) -> None:
        """Write an ordinary `from_pretrained` folder with its processor and figures."""
        processor = classifier.processor
        classifier.model.save_pretrained(work_dir)
        processor.save_pretrained(work_dir)
        (work_dir / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")


def quieten_libraries() -> None:
    """Leave the terminal to the stages: no bars and hints for every small file that is read or written."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()


def outside_files(name: str) -> list[list]:
    """What a fingerprint keeps of a data set or checkpoint: its files if it is a folder here, else nothing but its name."""
    return file_listing(Path(name)) if Path(name).is_dir() else []
