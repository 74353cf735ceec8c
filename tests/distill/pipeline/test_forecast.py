"""What a run says of its trainings before the first of them."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from test_teacher_choice import SHARED

from distill.errors import SettingsError
from distill.pipeline.forecast import Forecast, _seconds_of, describe, forecasts, seconds_per_inference, seconds_per_step
from distill.pipeline.pipeline import run_pipeline
from distill.pipeline.run_folder import Run
from distill.pipeline.settings import parse_settings
from distill.training.models import PRETRAINED, ModelChoice
from swin_hf import SwinHfImageProcessorPil

TEACHER = "{patch_size: 2, window_size: 4, embed_dim: 16, depths: [1, 1], num_heads: [2, 2]}"


def test_trainings_are_counted_before_they_begin(image_folder, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("distill.pipeline.forecast.seconds_per_step", lambda model, run: 0.75)
    monkeypatch.setattr("distill.pipeline.forecast.seconds_per_inference", lambda classifier, run: 0.5)
    arguments = [*SHARED, "--dataset", str(image_folder), "--output_dir", str(tmp_path / "run")]
    arguments += ["--target", "macs=0.7", "--recover_epochs", "3"]
    fresh = [*arguments, "--teacher", "swin_tiny", "--teacher_args", TEACHER, "--student_epochs", "2"]
    run_pipeline(parse_settings([*fresh, "--stages", "data"]))
    run, state = Run(parse_settings(fresh)), torch.get_rng_state()
    images = len(run.data().examples["train"])
    found = {own.stage: own for own in forecasts(run, ["teacher", "student", "prune", "recover"])}
    assert torch.equal(torch.get_rng_state(), state)
    assert {stage: own.seconds for stage, own in found.items()} == {
        "teacher": images * 0.75,
        "student": images * (0.75 + 0.25) * 2,  # its own step, and the forward third of the teacher's
        "recover": images * (0.75 + 0.25) * 3,
    }
    assert found["student"].parameters == found["recover"].parameters < 50_000
    known = Run(parse_settings([*arguments, "--teacher", str(checkpoint)]))
    (student,) = forecasts(known, ["teacher", "student"])  # the teacher is used unchanged
    assert (student.stage, student.seconds) == ("student", images * (0.75 + 0.5))
    capsys.readouterr()
    run_pipeline(parse_settings([*fresh, "--stages", "teacher"]))
    told = capsys.readouterr().out
    assert told.index("to be trained here, on the CPU") < told.index("is trained from scratch")
    assert f"1 epochs of {images} images: about {round(images * 0.75)} s" in told


def test_a_step_that_other_work_stopped_does_not_count(monkeypatch):
    clock = itertools.accumulate(itertools.cycle((0.0, 9.0, 0.0, 0.25, 0.0, 40.0)))  # from a reading to the next
    monkeypatch.setattr("distill.pipeline.forecast.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert _seconds_of(lambda: None, torch.device("cpu")) == 0.25


def test_a_long_run_without_a_gpu_names_what_suits_it():
    long = [Forecast(stage="teacher", parameters=21_000_000, epochs=30, images=150, seconds=7300.0)]
    assert "teacher  21.0 M parameters, 30 epochs of 150 images: about 2 h 1 min" in describe(
        long, "the CPU, 2 threads", "photos"
    )
    assert "--config small" in describe(long, "the CPU, 2 threads", "photos")
    assert "--config small" not in describe(long, "the CPU, 2 threads", "small")
    assert "--config small" not in describe(long, "cuda, NVIDIA", "photos")


def test_pre_trained_models_have_short_names():
    assert ModelChoice.parse("teacher", "tiny_vit_21m_pretrained", "").name == PRETRAINED["tiny_vit_21m_pretrained"]
    assert parse_settings(["--config", "small", "--dataset", "photos"]).student.choice.name.startswith("timm/tiny_vit_5m_224")
    with pytest.raises(SettingsError, match="did you mean tiny_vit_21m_pretrained"):
        ModelChoice.parse("teacher", "tiny_vit_21m_pretraned", "")


@pytest.mark.parametrize("channels", [1, 3])
def test_steps_are_timed_for_what_models_take(image_folder, make_model, tmp_path, channels):
    name = tmp_path / "teacher"
    make_model(id2label={0: "blue", 1: "green", 2: "red"}, num_channels=channels, image_size=32).save_pretrained(name)
    grey = {"num_channels": 1, "image_mean": [0.5], "image_std": [0.5]} if channels == 1 else {}
    SwinHfImageProcessorPil(size={"height": 32, "width": 32}, **grey).save_pretrained(name)
    arguments = [*SHARED, "--dataset", str(image_folder), "--output_dir", str(tmp_path / "run"), "--teacher", str(name)]
    run_pipeline(parse_settings([*arguments, "--stages", "data"]))
    run = Run(parse_settings(arguments))
    assert 0 < seconds_per_step(make_model(num_channels=channels), run) < 60
    assert 0 < seconds_per_inference(run.classifier(str(name)), run) < 60
