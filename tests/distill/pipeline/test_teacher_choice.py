"""Teachers and students of a run: presets, checkpoints with the same or other classes, streams, trackers."""

import json
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from conftest import PLAIN_PROCESSOR
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from distill.compress.teachers import TeacherError, Teachers
from distill.data.sources import DataError
from distill.errors import SettingsError
from distill.pipeline.forecast import forecasts
from distill.pipeline.pipeline import run_pipeline
from distill.pipeline.run_folder import Run
from distill.pipeline.settings import parse_settings
from distill.pipeline.stages import StageError
from distill.pipeline.steps import stages_of
from distill.pipeline.student_shape import found_for
from distill.pruning.targets import PruningError
from distill.training.models import ModelError
from distill.training.optimisation import LayerError
from distill.training.tasks.classification import ImageClassification
from edge.compare.candidates import ProgramCosts
from swin_hf import SwinHfForImageClassification
from swin_hf.presets_swin_hf import PRESETS

SMALL = "{patch_size: 2, window_size: 4, embed_dim: 16, depths: [1, 1], num_heads: [2, 2], stage_blocks: null}"
SHARED = ["--config", "digits", "--image_size", "16", "--per_device_train_batch_size", "8", "--use_cpu", "true"]
SHARED += ["--teacher_epochs", "1", "--student_epochs", "1", "--student_args", SMALL]


def run(dataset: Path, tmp_path: Path, *more: str) -> Path:
    folder = tmp_path / "run"
    run_pipeline(parse_settings([*SHARED, "--dataset", str(dataset), "--output_dir", str(folder), *more]))
    return folder


def test_a_teacher_that_knows_the_classes_is_used_unchanged(image_folder, checkpoint, tmp_path, capsys):
    folder = run(image_folder, tmp_path, "--teacher", str(checkpoint), "--stages", "data,teacher")
    assert f"{checkpoint} knows these classes: it is used unchanged" in capsys.readouterr().out
    before, after = load_file(checkpoint / "model.safetensors"), load_file(folder / "teacher" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    evaluation = json.loads((folder / "teacher" / "metrics.json").read_text())["evaluation"]
    assert evaluation["n"] == 12 and evaluation["metric"] == "accuracy" and evaluation["low"] <= evaluation["value"]


def test_a_teacher_of_other_classes_is_fine_tuned_first(image_folder, make_model, tmp_path, capsys):
    names = {0: "cat", 1: "dog", 2: "cow", 3: "hen"}
    make_model(id2label=names, num_labels=4).save_pretrained(tmp_path / "animals")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "animals")
    arguments = ["--teacher", str(tmp_path / "animals"), "--teacher_learning_rate", "1e-9", "--stages", "data,teacher"]
    folder = run(image_folder, tmp_path, *arguments)
    assert "animals is fine-tuned on these classes, which it does not know yet" in capsys.readouterr().out
    model = AutoModelForImageClassification.from_pretrained(folder / "teacher")
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    name = "swin.encoder.layers.1.blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(model.state_dict()[name], load_file(tmp_path / "animals" / "model.safetensors")[name])
    assert not list((folder / "teacher").glob("checkpoint-*"))


def test_several_teachers_teach_a_student(image_folder, checkpoint, make_model, tmp_path, monkeypatch):
    make_model(id2label={0: "red", 1: "green", 2: "blue"}).save_pretrained(tmp_path / "second")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "second")
    seen, forward = [], Teachers.forward
    monkeypatch.setattr(Teachers, "forward", lambda self, pixels: seen.append(len(self.classifiers)) or forward(self, pixels))
    arguments = ["--teacher", str(checkpoint), "--more_teachers", str(tmp_path / "second")]
    run(image_folder, tmp_path, *arguments, "--target", "macs=0.7", "--stages", "data,teacher,student,prune")
    assert set(seen) == {2}
    with pytest.raises(TeacherError, match="nowhere must be a checkpoint folder or Hub id"):
        run(image_folder, tmp_path / "other", *arguments[:3], str(tmp_path / "nowhere"))
    assert not (tmp_path / "other").exists()


def test_a_student_starts_with_weights_of_the_runs_teacher(image_folder, make_model, tmp_path, capsys):
    make_model(embed_dim=32, depths=[2, 2], id2label=dict(enumerate(("blue", "green", "red")))).save_pretrained(
        tmp_path / "wide"
    )
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "wide")
    arguments = ["--teacher", str(tmp_path / "wide"), "--student_init_from", "teacher", "--stages", "data,teacher,student"]
    run(image_folder, tmp_path, *arguments)
    assert "swin_edge_small starts with weights of teacher: 2 of 2 blocks" in capsys.readouterr().out
    first_stages = arguments[:2] + arguments[4:]
    for number, (start, is_expected) in enumerate(((["auto"], True), (["none"], False), ([], True))):
        flags = ["--student", "swin_tiny", *(["--student_init_from", *start] if start else [])]
        run(image_folder, tmp_path / str(number), *first_stages, *flags)
        assert ("starts with weights of teacher: 2 of 2" in capsys.readouterr().out) == is_expected
    narrow = ["--student_args", SMALL.replace("embed_dim: 16", "embed_dim: 64")]
    with pytest.raises(ModelError, match="--student_init_from teacher: the larger model must have every stage"):
        run(image_folder, tmp_path / "other", *arguments, *narrow)
    assert not (tmp_path / "other" / "run" / "teacher").exists()


@pytest.mark.parametrize("kind", ["narrow", "other blocks", "resnet"])
def test_a_student_starts_with_new_weights_where_its_teacher_does_not_fit(kind, image_folder, make_model, tmp_path, capsys):
    names = dict(enumerate(("blue", "green", "red")))
    if kind == "resnet":
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=names)
        teacher = ResNetForImageClassification(config)
    else:
        sizes = {"embed_dim": 8, "num_heads": [1, 2]} if kind == "narrow" else {"stage_blocks": ["conv", "window"]}
        teacher = make_model(**{"embed_dim": 32} | sizes, id2label=names)
    teacher.save_pretrained(tmp_path / "teacher")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "teacher")
    run(image_folder, tmp_path, "--teacher", str(tmp_path / "teacher"), "--stages", "data,teacher,student")
    assert "starts with weights" not in capsys.readouterr().out


def test_a_student_starts_with_weights_of_a_stock_teacher(image_folder, tmp_path, capsys):
    names = {0: "blue", 1: "green", 2: "red"}
    sizes = {"image_size": 16, "patch_size": 2, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    SwinForImageClassification(SwinConfig(**sizes, id2label=names)).save_pretrained(tmp_path / "stock")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "stock")
    arguments = ["--teacher", str(tmp_path / "stock"), "--student_init_from", "teacher", "--stages", "data,teacher,student"]
    run(image_folder, tmp_path, *arguments)
    assert "swin_edge_small starts with weights of teacher: 2 of 2 blocks" in capsys.readouterr().out


def test_a_student_of_another_kind_is_refused(image_folder, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "resnet")
    with pytest.raises(ModelError, match="--student .*resnet must be a Swin of ours to be exported, got ResNetFor"):
        run(image_folder, tmp_path, "--student", str(tmp_path / "resnet"), "--student_args", "{}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--teacher", "nobody/nothing"], TeacherError, "nobody/nothing must be a checkpoint folder or Hub id"),
        (
            ["--student", "nobody/nothing"],
            ModelError,
            "--student nobody/nothing must be a preset .*without the Hub, give a folder or a file of weights, or a preset",
        ),
        (["--teacher_args", "{depth: 3}"], (ModelError, SettingsError), "depth"),
        (["--student_args", "{windw_size: 3}"], (ModelError, SettingsError), "windw_size"),
        (["--dataset", "nowhere/at/all"], DataError, "is neither a folder nor"),
        (
            ["--teacher", "swin_tiny", "--teacher_args", "{num_heads: [3, 5, 7, 11]}"],
            ModelError,
            "--teacher swin_tiny cannot be built with .*num_heads",
        ),
        (
            ["--student_args", "{hidden_act: nope}"],
            ModelError,
            r"(?s)--student swin_edge_small cannot be built with .*got 'nope'",
        ),
        (["--metric_for_best_model", "acuracy"], SettingsError, "--metric_for_best_model must be one of accuracy"),
        (
            ["--global_batch_size", "7", "--gradient_accumulation_steps", "2"],
            SettingsError,
            "--global_batch_size must be a mult",
        ),
        (
            ["--target", "macs=0.01"],
            PruningError,
            "macs=0.01x cannot be met: the smallest model in reach",
        ),
        (["--frozen_stages", "2"], LayerError, "--frozen_stages must be below the 2 stages"),
        (["--class_names", "names.txt"], SettingsError, "unknown setting --class_names"),
    ],
)
def test_mistakes_are_named_before_any_work(image_folder, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        run(image_folder, tmp_path, *arguments)
    assert not (tmp_path / "run").exists()


def test_trainings_of_a_run_have_all_that_a_fine_tuning_has(image_folder, checkpoint, tmp_path, monkeypatch):
    mixed, augment = [], ImageClassification.augment

    def watched(self, pixels, targets):
        pixels, targets = augment(self, pixels, targets)
        mixed.append(bool(((targets > 0) & (targets < 1)).any()))
        return pixels, targets

    monkeypatch.setattr(ImageClassification, "augment", watched)
    arguments = [
        "--teacher",
        str(checkpoint),
        "--stages",
        "data,teacher,student",
        "--mixup_alpha",
        "0.5",
        "--ema_decay",
        "0.5",
    ]
    arguments += ["--layer_decay", "0.9", "--report_to", "tensorboard", "--num_pictures", "2"]
    folder = run(image_folder, tmp_path, *arguments)
    assert any(mixed)
    assert list((folder / "student").rglob("events.out.*")) and list((folder / "student" / "predictions").glob("*.png"))
    history = json.loads((folder / "student" / "metrics.json").read_text())["history"]
    assert any("kd_loss" in row and "task_loss" in row for row in history)


def test_a_student_is_found_for_a_target(image_folder, checkpoint, tmp_path, capsys):
    own = ["--teacher", str(checkpoint), "--student", "auto", "--stages"]
    common = ["--dataset", str(image_folder), "--output_dir", str(tmp_path / "run")]
    arguments = [*own, "data,shape,teacher,student"]
    with pytest.raises(PruningError, match="params=1000 cannot be met: the smallest model in reach costs"):
        run(image_folder, tmp_path, *arguments, "--target", "params=1K")
    capsys.readouterr()
    folder = run(image_folder, tmp_path, *arguments, "--target", "params=12K")
    out = capsys.readouterr().out
    assert out.index("] shape:") < out.index("params=12000 (params ") < out.index(": widths [") < out.index("] teacher:")
    student = SwinHfForImageClassification.from_pretrained(folder / "student")
    assert student.num_parameters() == pytest.approx(12000, rel=0.03)
    (forecast,) = forecasts(Run(parse_settings([*SHARED, *arguments, *common, "--target", "params=12K"])), ["student"])
    assert forecast.parameters == student.num_parameters()
    shape = json.loads((folder / "shape" / "student_shape.json").read_text())
    assert shape["stage_dims"] == student.config.stage_dims
    assert shape["costs"] == {"params": student.num_parameters()} and shape["targets"] == ["params=12000"]
    assert found_for(folder) == f"params=12000 (params {student.num_parameters():.4g})"
    assert "the largest of the family" not in out
    before = (folder / "student" / "model.safetensors").read_bytes()
    run(image_folder, tmp_path, *arguments, "--target", "params=12K", "--recipe", "fp32")
    assert (folder / "student" / "model.safetensors").read_bytes() == before  # a recipe changes no count
    with pytest.raises(StageError, match="reads .*shape, which was made with other settings; add shape to --stages"):
        run(image_folder, tmp_path, *own, "student", "--target", "params=13K")


def test_a_target_beyond_the_family_gives_its_largest_student_and_says_so(image_folder, tmp_path, capsys):
    folder = run(image_folder, tmp_path, "--student", "auto", "--stages", "data,shape", "--target", "params=500M")
    assert "this is the largest of the family: no student costs as much as the target" in capsys.readouterr().out
    shape = json.loads((folder / "shape" / "student_shape.json").read_text())
    assert shape["stage_dims"] == [24, 48]  # 1.5 times as wide


def test_a_student_that_was_found_must_fit_into_its_teacher_before_that_is_trained(image_folder, tmp_path, capsys):
    own = ["--student", "auto", "--student_init_from", "teacher", "--teacher", "swin_edge_small", "--teacher_args", SMALL]

    def found(target: str, stages: str) -> Path:
        return run(image_folder, tmp_path, *own, "--target", target, "--stages", stages)

    with pytest.raises(ModelError, match="--student_init_from teacher: the larger model must have every stage"):
        found("params=30K", "data,shape,teacher,student")
    out = capsys.readouterr().out
    assert "params=30000 (params " in out and "test accuracy" not in out
    assert not (tmp_path / "run" / "teacher").exists()
    found("params=12K", "data,teacher")
    assert "teacher  0.0 M parameters" in capsys.readouterr().out  # the forecast does without a student
    assert (found("params=12K", "data,shape,teacher,student") / "student" / "model.safetensors").is_file()


def test_a_student_that_was_found_starts_with_a_checkpoint_that_is_larger_than_it(image_folder, tmp_path):
    """And not than the preset that it is scaled from, which may be larger, or smaller than it."""
    wide = "{patch_size: 2, window_size: 4, embed_dim: 32, depths: [1, 1], num_heads: [2, 2], stage_blocks: null}"
    SwinHfForImageClassification(PRESETS["swin_edge_small"](**yaml.safe_load(SMALL), image_size=16)).save_pretrained(
        tmp_path / "narrow"
    )
    own = ["--student", "auto", "--student_args", wide, "--student_init_from", str(tmp_path / "narrow")]
    own += ["--teacher", "swin_edge_small", "--teacher_args", SMALL, "--stages", "data,shape,teacher,student"]
    with pytest.raises(ModelError, match="narrow: the larger model must have every stage"):
        run(image_folder, tmp_path, *own, "--target", "params=40K")
    assert not (tmp_path / "run" / "teacher").exists()
    folder = run(image_folder, tmp_path, *own, "--target", "params=11K")
    assert SwinHfForImageClassification.from_pretrained(folder / "student").config.stage_dims == [16, 32]


def test_a_shape_of_measured_programs_is_found_once_and_a_search_goes_on(image_folder, tmp_path, monkeypatch, capsys):
    opened, stop_after = [], [2]

    class Program:
        def turn(self, runs):
            return [1.0] * runs

        def close(self):
            pass

    def open_program(self, config):
        if len(opened) == stop_after[0]:
            raise KeyboardInterrupt
        opened.append(config.to_json_string())
        return Program(), 100 * sum(map(sum, config.block_mlp_dim))

    monkeypatch.setattr(ProgramCosts, "_open", open_program)
    arguments = ["--student", "auto", "--target", "size_mb=0.0104", "--stages", "data,shape"]
    with pytest.raises(KeyboardInterrupt):
        run(image_folder, tmp_path, *arguments)
    assert len(opened) == 2  # the smallest, before any work, and one more
    stop_after[0] = 20
    capsys.readouterr()
    folder = run(image_folder, tmp_path, *arguments)
    out = capsys.readouterr().out
    assert "looking whether size_mb=0.0104 can be met, by programs of this machine" in out
    assert out.count("tried a program of ") == len(opened) - 2 and "resuming an interrupted run" in out
    assert len(opened) == len(set(opened)) + 1  # the smallest is tried before each start
    shape = json.loads((folder / "shape" / "student_shape.json").read_text())
    assert shape["costs"]["size_mb"] == pytest.approx(0.0104, rel=0.03)
    assert sum(map(sum, shape["block_mlp_dim"])) == pytest.approx(104, rel=0.03)
    assert sorted(path.name for path in (folder / "shape").iterdir()) == ["stage.json", "student_shape.json"]
    assert [step.name for step in stages_of(Run(parse_settings([*SHARED, *arguments])))][:3] == ["data", "shape", "teacher"]
    before = len(opened)
    run(image_folder, tmp_path, *arguments)
    assert len(opened) == before


def test_blocks_are_pruned_from_a_greyscale_student(image_folder, tmp_path):
    student = SMALL.replace("[1, 1]", "[1, 2]")[:-1] + ", num_channels: 1}"
    arguments = [
        "--teacher",
        "swin_edge_small",
        "--teacher_args",
        SMALL,
        "--student_args",
        student,
        "--scopes",
        "blocks,hidden",
    ]
    folder = run(image_folder, tmp_path, *arguments, "--target", "params=0.8", "--stages", "data,teacher,student,prune")
    model = SwinHfForImageClassification.from_pretrained(folder / "pruned")
    assert model.config.num_channels == 1 and sum(model.config.depths) in (2, 3)
    # Pruning alone, over a student that is there: the target is checked first.
    with pytest.raises(PruningError, match="cannot be met"):
        run(image_folder, tmp_path, *arguments, "--stages", "prune", "--target", "params=0.001")


def test_a_run_trains_on_a_stream(parquet_folder, tmp_path):
    arguments = ["--streaming", "true", "--max_steps", "4", "--shuffle_buffer", "6"]
    for what in ("eval", "save", "logging"):
        arguments += [f"--{what}_strategy", "steps", f"--{what}_steps", "2"]
    arguments += ["--teacher", "swin_edge_small", "--teacher_args", SMALL, "--target", "macs=0.7"]
    arguments += ["--stages", "data,teacher,student,prune"]
    folder = run(parquet_folder, tmp_path, *arguments)
    stored = datasets.load_from_disk(str(folder / "data"))
    assert {split: len(rows) for split, rows in stored.items()} == {"train": 24, "validation": 4, "test": 5}
    model = AutoModelForImageClassification.from_pretrained(folder / "pruned")
    assert model.config.id2label == {0: "dark", 1: "mid", 2: "light"} and model.config.block_mlp_dim
    history = json.loads((folder / "student" / "metrics.json").read_text())["history"]
    assert max(row["step"] for row in history) == 4 and any("kd_loss" in row for row in history)
