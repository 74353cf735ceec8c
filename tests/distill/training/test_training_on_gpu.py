"""Trainings on one GPU in every precision: each task, with teachers, from a cache, resumed, and of a run."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import STILL, StopAfter, settings_for
from safetensors.torch import load_file
from test_detection import DETECT, HEADS, write_coco
from test_distillation import MIXED
from test_segmentation import SEGMENT
from transformers import TrainerCallback

from distill.errors import TrainingStopped
from distill.pipeline.pipeline import run_pipeline
from distill.pipeline.settings import parse_settings
from distill.precision import computes_in_bfloat16
from distill.training.cache_writing import cache_teacher
from distill.training.finetune import finetune
from distill.training.trainer import TaskTrainer

pytestmark = pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs one GPU")
PRECISIONS = {"fp32": ["--bf16", "false"], "fp16": ["--fp16", "true"]}
if computes_in_bfloat16("cuda"):
    PRECISIONS["bf16"] = []  # the default
ON_GPU = ["--use_cpu", "false", "--num_pictures", "0"]
SMALL = "{patch_size: 2, window_size: 4, embed_dim: 16, depths: [1, 1], num_heads: [2, 2], stage_blocks: null}"
TINY_RUN = ["--config", "digits", "--image_size", "16", "--per_device_train_batch_size", "8", "--num_pictures", "0"]
TINY_RUN += ["--teacher", "swin_edge_small", "--teacher_args", SMALL, "--student_args", SMALL, "--prune_steps", "1"]
TINY_RUN += ["--teacher_epochs", "1", "--student_epochs", "1", "--recover_epochs", "1", "--target", "params=0.8"]
TINY_RUN += ["--stages", "data,teacher,student,prune,recover"]


class CountSteps(TrainerCallback):
    """Counts the steps of a training."""

    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


@pytest.fixture(autouse=True)
def accelerators(monkeypatch) -> list[Accelerator]:
    """Those of all trainings of the test, in turn."""
    made, train = [], TaskTrainer.train

    def recorded(self, *args, **kwargs):
        made.append(self.accelerator)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(TaskTrainer, "train", recorded)
    return made


def trained(folder: Path, *options: str, callbacks=()) -> tuple[dict, dict[str, torch.Tensor]]:
    """Metrics and weights of a training on the GPU; the weights are finite numbers in float32 in every precision."""
    finetune(settings_for(folder, *ON_GPU, *options), callbacks)
    weights = load_file(folder / "out" / "model.safetensors")
    numbers = [weight for weight in weights.values() if weight.is_floating_point()]
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in numbers)
    return json.loads((folder / "out" / "metrics.json").read_text()), weights


def assert_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0.01, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_colours_are_learnt_in_every_precision(tmp_path, image_folder, precision, accelerators):
    options = ["--dataset", str(image_folder), "--num_train_epochs", "20", "--learning_rate", "0.002", *MIXED]
    metrics, _ = trained(tmp_path, *options, *PRECISIONS[precision])
    assert metrics["test_accuracy"] > 0.8
    assert [(own.device.type, own.mixed_precision) for own in accelerators] == [
        ("cuda", "no" if precision == "fp32" else precision)
    ]


def test_a_run_trains_on_the_gpu_after_it_recorded_its_settings(tmp_path, image_folder, accelerators):
    settings = parse_settings([*TINY_RUN, "--dataset", str(image_folder), "--output_dir", str(tmp_path / "run")])
    assert settings.training_values
    run_pipeline(settings)
    assert [own.device.type for own in accelerators] == ["cuda"] * 3  # teacher, student and recovery
    assert (tmp_path / "run" / "recovered" / "model.safetensors").is_file()


def test_a_gpu_takes_the_steps_of_a_cpu(tmp_path, image_folder, monkeypatch):
    """With gradient descent, as Adam would divide rounding errors by their own size."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = ["--dataset", str(image_folder), *STILL, "--optim", "sgd", "--learning_rate", "0.1", "--bf16", "false"]
    finetune(settings_for(tmp_path / "cpu", "--num_pictures", "0", *options))
    _, weights = trained(tmp_path / "gpu", *options)
    assert_close(weights, load_file(tmp_path / "cpu" / "out" / "model.safetensors"), atol=1e-4)


@pytest.mark.parametrize("kd_loss", ["kl", "nkd", "dist"])
@pytest.mark.parametrize("feature_loss", ["hints", "vkd"])
def test_a_teacher_in_bfloat16_teaches_logits_and_maps(tmp_path, image_folder, checkpoint, kd_loss, feature_loss):
    options = ["--dataset", str(image_folder), "--teacher", str(checkpoint), "--kd_loss", kd_loss]
    metrics, _ = trained(tmp_path, *options, "--feature_loss", feature_loss, *MIXED)
    assert {"kd_loss", "feature_loss"} <= {name for row in metrics["history"] for name in row}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_training_from_the_cache_is_that_with_the_teacher(tmp_path, image_folder, checkpoint, precision):
    options = ["--dataset", str(image_folder), "--teacher", str(checkpoint), "--feature_loss", "none", *MIXED]
    options += PRECISIONS[precision]
    _, online = trained(tmp_path / "online", *options)
    cached = ["--teacher_cache", str(tmp_path / "cache")]
    cache_teacher(settings_for(tmp_path, *ON_GPU, *options, *cached))
    _, offline = trained(tmp_path / "offline", *options, *cached)
    assert_close(offline, online, atol=1e-4)


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path, image_folder):
    options, seen = ["--dataset", str(image_folder), *MIXED], CountSteps()
    _, whole = trained(tmp_path / "whole", *options)
    with pytest.raises(TrainingStopped, match="stopped at step 4 of 6"):
        trained(tmp_path / "stopped", *options, callbacks=[StopAfter(4)])
    _, resumed = trained(tmp_path / "stopped", *options, "--resume", "true", callbacks=[seen])
    assert seen.steps == 2
    assert_close(resumed, whole, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head", ["uper", "light"])
def test_segmenters_train(tmp_path, mask_folder, head, precision):
    heads = ["--head_args", f"{{decode_head: {head}, hidden_size: 8}}"]
    metrics, _ = trained(tmp_path, "--dataset", str(mask_folder), *SEGMENT, *heads, *PRECISIONS[precision])
    assert 0 <= metrics["test_mean_iou"] <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("detector", HEADS)
def test_detectors_train(tmp_path, detector, precision):
    write_coco(tmp_path / "boxes", range(12))
    heads = ["--head_args", f"{{detector: {detector}, {HEADS[detector]}}}", "--image_size", "32"]
    metrics, _ = trained(tmp_path, "--dataset", str(tmp_path / "boxes"), *DETECT, *heads, *PRECISIONS[precision])
    assert 0 <= metrics["test_map"] <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_masked_images_train(tmp_path, image_folder, precision):
    options = ["--dataset", str(image_folder), "--task", "masked-image-modeling", "--mask_patch_size", "4"]
    metrics, _ = trained(tmp_path, *options, *STILL, *PRECISIONS[precision])
    assert metrics["test_loss"] > 0
