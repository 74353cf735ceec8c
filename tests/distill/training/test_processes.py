"""Trainings of several processes: the steps of one process, and figures of the saved model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import HELD_OUT, STILL, TINY
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from distill.data.finding import find_images
from distill.data.targets import CLASSES
from distill.training.finetune import finetune
from distill.training.settings import parse_finetune_settings
from swin_hf import SwinHfForImageClassification

# Gloo's threads abort a process now and then if they are there when Python ends.
TELLING_SCRIPT = """
import atexit, runpy, sys
from pathlib import Path

def tell():
    print("threads at the end:", [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")], flush=True)

atexit.register(tell)
sys.argv[0] = {script!r}
runpy.run_path({script!r}, run_name="__main__")
"""


def finetune_with_processes(number: int, dataset: Path, out: Path, config: dict, *arguments: str) -> None:
    settings = ["--dataset", str(dataset), "--output_dir", str(out), "--model_args", str(config), "--image_size", "16"]
    settings += [*STILL, "--global_batch_size", "8", "--use_cpu", "true", *arguments]
    if number == 1:
        finetune(parse_finetune_settings(settings))
        return
    script = out.with_suffix(".py")
    script.write_text(TELLING_SCRIPT.format(script=str(Path(__file__).parents[3] / "scripts" / "finetune.py")))
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
    command = [sys.executable, "-m", *launcher, str(script), *settings, "--ddp_backend", "gloo"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[:2000] + result.stderr[-2000:]
    if sys.platform == "linux":
        assert result.stdout.count("threads at the end: ") == number and "gloo" not in result.stdout, result.stdout


def judged_anew(out: Path, dataset: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the model that a training saved for the images of a split, and their labels."""
    model, processor = SwinHfForImageClassification.from_pretrained(out).eval(), AutoImageProcessor.from_pretrained(out)
    found = find_images(str(dataset), CLASSES)
    numbers = json.loads((out / "data.json").read_text())["split"][split]
    images = [found.images[found.whole][number].load() for number in numbers]
    labels = torch.tensor([found.labels[found.whole][number] for number in numbers])
    with torch.no_grad():
        logits = model(processor(images, return_tensors="pt")["pixel_values"]).logits
    return logits, labels


def test_two_processes_take_the_steps_of_one(image_folder, tmp_path):
    config = TINY | {"weight_init": "fan_in", "drop_path_rate": 0.0}
    # Not AdamW: it would amplify rounding errors in gradients that are zero, those of the keys' biases.
    arguments = ["--num_train_epochs", "2", *HELD_OUT, "--optim", "sgd", "--learning_rate", "0.1"]
    weights = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        finetune_with_processes(processes, image_folder, out, config, *arguments)
        assert json.loads((out / "metrics.json").read_text())["num_test_images"] == 10
        weights.append(load_file(out / "model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-5, rtol=1e-4)


def test_figures_of_two_processes_are_those_of_the_saved_model(image_folder, tmp_path):
    config, out = TINY | {"weight_init": "fan_in", "stage_blocks": ["conv", "window"], "norm": "batch"}, tmp_path / "out"
    arguments = ["--num_train_epochs", "3", "--validation_share", "0.25", "--test_share", "0.25"]
    arguments += ["--per_device_eval_batch_size", "6", "--ema_decay", "0", "--load_best_model_at_end", "false"]
    finetune_with_processes(2, image_folder, out, config, *arguments)
    logits, labels = judged_anew(out, image_folder, "test")
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["test_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
