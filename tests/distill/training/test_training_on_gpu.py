"""Trainings on a GPU in mixed precision: of every task, with teachers, from a cache, resumed; skipped without a GPU."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import STILL, settings_for
from safetensors.torch import load_file
from test_detection import DETECT, HEADS, write_coco
from test_distillation import MIXED
from test_segmentation import SEGMENT

from distill.errors import TrainingStopped
from distill.training.cache_writing import cache_teacher
from distill.training.finetune import finetune
from distill.training.trainer import TaskTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PRECISIONS = {"fp32": ["--bf16", "false"], "bf16": ["--bf16", "true"], "fp16": ["--fp16", "true"]}
ON_GPU = ["--use_cpu", "false", "--num_pictures", "0"]


def trained(folder: Path, *options: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Metrics and weights of a training on the GPU; the weights are finite numbers in float32 in every precision."""
    finetune(settings_for(folder, *ON_GPU, *options))
    weights = load_file(folder / "out" / "model.safetensors")
    numbers = [weight for weight in weights.values() if weight.is_floating_point()]
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in numbers)
    return json.loads((folder / "out" / "metrics.json").read_text()), weights


def assert_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0.01, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_colours_are_learnt_in_every_precision(tmp_path, image_folder, precision):
    options = ["--dataset", str(image_folder), "--num_train_epochs", "20", "--learning_rate", "0.002", *MIXED]
    metrics, _ = trained(tmp_path, *options, *PRECISIONS[precision])
    assert metrics["test_accuracy"] > 0.8


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
    metrics, _ = trained(tmp_path, *options, "--feature_loss", feature_loss, *PRECISIONS["bf16"], *MIXED)
    assert {"kd_loss", "feature_loss"} <= {name for row in metrics["history"] for name in row}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_from_the_cache_is_that_with_the_teacher(tmp_path, image_folder, checkpoint, precision):
    options = ["--dataset", str(image_folder), "--teacher", str(checkpoint), "--feature_loss", "none", *MIXED]
    options += PRECISIONS[precision]
    _, online = trained(tmp_path / "online", *options)
    cached = ["--teacher_cache", str(tmp_path / "cache")]
    cache_teacher(settings_for(tmp_path, *ON_GPU, *options, *cached))
    _, offline = trained(tmp_path / "offline", *options, *cached)
    assert_close(offline, online, atol=1e-4)


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path, image_folder, monkeypatch):
    options = ["--dataset", str(image_folder), *PRECISIONS["bf16"], *MIXED]
    _, whole = trained(tmp_path / "whole", *options)
    step = TaskTrainer.training_step

    def stop_in_the_fourth_step(self, *args, **kwargs):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "training_step", stop_in_the_fourth_step)
        with pytest.raises(TrainingStopped, match="stopped at step 4 of 6"):
            trained(tmp_path / "stopped", *options)
    _, resumed = trained(tmp_path / "stopped", *options, "--resume", "true")
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
