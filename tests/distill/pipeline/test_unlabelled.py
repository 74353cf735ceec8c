"""Images without classes: the teacher finds them, and agreements take the place of accuracies up to the report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN_PROCESSOR
from PIL import Image

from distill.compress.teachers import TeacherError, load_classifier
from distill.data.examples import to_tensor
from distill.data.finding import has_no_classes
from distill.errors import SettingsError
from distill.pipeline.pipeline import run_pipeline
from distill.pipeline.report import read_report
from distill.pipeline.report_pages import table
from distill.pipeline.run_folder import Run, stored_examples
from distill.pipeline.settings import parse_settings
from distill.pipeline.steps import stages_of
from swin_hf.model_card import read_metrics

SMALL = "{patch_size: 2, window_size: 4, embed_dim: 16, depths: [1, 1], num_heads: [2, 2], stage_blocks: null}"
SHARED = ["--image_size", "16", "--per_device_train_batch_size", "8", "--use_cpu", "true", "--dataloader_num_workers", "0"]
SHARED += ["--student", "swin_edge_small", "--student_args", SMALL, "--student_epochs", "1", "--target", "macs=0.7"]
SHARED += ["--recover_epochs", "1"]


@pytest.fixture
def unlabelled(tmp_path) -> Path:
    """Thirty images in one folder."""
    random, folder = np.random.default_rng(0), tmp_path / "unlabelled"
    folder.mkdir()
    for number in range(30):
        coarse = Image.fromarray(random.integers(0, 255, (3, 4, 3), np.uint8))
        coarse.resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def settings_of(dataset: Path, teacher: Path | str, tmp_path: Path, *more: str):
    arguments = ["--dataset", str(dataset), "--teacher", str(teacher), "--output_dir", str(tmp_path / "run"), *SHARED, *more]
    return parse_settings(arguments)


def test_a_folder_and_a_teacher_are_enough(unlabelled, checkpoint, tmp_path, capsys):
    settings = settings_of(unlabelled, checkpoint, tmp_path, "--repeats", "10")
    assert settings.distillation.label_weight == 0 and settings.transforms.mixup_alpha == 1  # unlabelled.yaml
    words = run_pipeline(settings)
    folder, said = tmp_path / "run", capsys.readouterr().out + words
    assert "the images have no classes: the teacher finds" in said and "of its 3 in them" in said
    assert "agreement with the teacher" in said and "accuracy" not in said
    teacher = load_classifier(checkpoint, ["blue", "green", "red"])
    for examples in stored_examples(folder / "data").values():
        for example in examples:
            with torch.no_grad():
                logits = teacher(to_tensor(example.source.load())[None].float() / 255)
            assert logits.argmax() == example.label
    report = read_report(folder / "report.json")
    assert report.rows[0].step == "teacher" and report.rows[0].accuracy == 1
    assert all(row.accuracy == row.agreement for row in report.rows)
    assert "agreement with the teacher" in table(report)[0] and "accuracy" not in table(report)[0]
    for name in ("report.md", "report.html"):
        assert "agreement with the teacher is given with its" in (folder / name).read_text()
    for stage in ("teacher", "student", "pruned", "recovered", "edge"):
        numbers, evaluation = read_metrics(folder / stage / "metrics.json")
        assert evaluation.metric == "teacher_agreement" and evaluation.low is not None
        assert evaluation.row[0].startswith("teacher agreement, ") and "%" in evaluation.row[1]
        assert not any("accuracy" in name for name in numbers)
        assert "accuracy" not in (folder / stage / "metrics.json").read_text()
    assert json.loads((folder / "edge" / "edge.json").read_text())["accuracy"] == {}
    assert not report.probabilities  # the teacher's own classes say nothing about them
    assert json.loads((folder / "data" / "data.json").read_text())["class_names"] == ["blue", "green", "red"]


def test_classes_are_found_again_if_the_teacher_is_another(unlabelled, checkpoint, make_model, tmp_path):
    arguments = [unlabelled, checkpoint, tmp_path, "--stages", "data"]
    run_pipeline(settings_of(*arguments))
    first = [example.label for example in stored_examples(tmp_path / "run" / "data")["train"]]
    make_model(id2label=dict(enumerate(("blue", "green", "red")))).save_pretrained(checkpoint)
    run_pipeline(settings_of(*arguments))
    assert [example.label for example in stored_examples(tmp_path / "run" / "data")["train"]] != first


def test_given_classes_can_be_left_unused(image_folder, checkpoint, tmp_path, capsys):
    run_pipeline(settings_of(image_folder, checkpoint, tmp_path, "--labels", "teacher", "--stages", "data"))
    assert "the images have no classes" in capsys.readouterr().out
    assert Run(settings_of(image_folder, checkpoint, tmp_path, "--labels", "teacher")).data().labelled_by_teacher
    assert not settings_of(image_folder, checkpoint, tmp_path).is_unlabelled


def test_which_folders_have_no_classes(unlabelled, image_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert has_no_classes(str(unlabelled))
    assert not any(has_no_classes(str(folder)) for folder in (image_folder, tmp_path / "empty", tmp_path / "nowhere"))
    assert not has_no_classes("digits")


def test_classes_of_one_name_are_told_apart(unlabelled, make_model, tmp_path):
    make_model(id2label={0: "crane", 1: "crane", 2: "tench"}).save_pretrained(tmp_path / "birds")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "birds")
    run_pipeline(settings_of(unlabelled, tmp_path / "birds", tmp_path, "--stages", "data,teacher"))
    assert Run(settings_of(unlabelled, tmp_path / "birds", tmp_path)).class_names == ["crane", "crane (2)", "tench"]


def numbered_from_one(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"id2label": {"1": "a", "2": "b", "3": "c"}}))


def test_a_teacher_that_misnames_its_classes_is_explained(unlabelled, checkpoint, tmp_path):
    numbered_from_one(checkpoint)
    with pytest.raises(TeacherError, match="id2label must name the classes 0 to 2"):
        run_pipeline(settings_of(unlabelled, checkpoint, tmp_path))


def test_images_outside_of_class_folders_count_too(image_folder, checkpoint, tmp_path):
    loose = image_folder / "loose.png"
    shutil.copy(next(image_folder.rglob("*.png")), loose)
    Image.open(loose).rotate(90).save(loose)
    settings = [image_folder, checkpoint, tmp_path, "--labels", "teacher", "--stages", "data"]
    files = stages_of(Run(settings_of(*settings)))[0].settings["files"]
    assert "loose.png" in {name for name, *_ in files} and len(files) == len(list(image_folder.rglob("*.png")))


def test_a_teacher_without_classes_is_refused(unlabelled, checkpoint, tmp_path):
    with pytest.raises(TeacherError, match="has no classes, so that --teacher must be a checkpoint that has learned some"):
        run_pipeline(settings_of(unlabelled, "swin_tiny", tmp_path))
    with pytest.raises(TeacherError, match="nowhere must be a checkpoint folder or Hub id"):
        run_pipeline(settings_of(unlabelled, tmp_path / "nowhere", tmp_path))
    assert not (tmp_path / "run").exists()
    with pytest.raises(SettingsError, match="--labels must be one of auto, given, teacher, got 'none'"):
        settings_of(unlabelled, checkpoint, tmp_path, "--labels", "none")
    with pytest.raises(SettingsError, match="--labels must be given where there is a stream"):
        stream = ["--streaming", "true", "--max_steps", "2", "--eval_strategy", "steps", "--save_strategy", "steps"]
        settings_of(unlabelled, checkpoint, tmp_path, *stream, "--logging_strategy", "steps")
