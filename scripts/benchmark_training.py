"""Whole trainings: images per second and memory compared with the loop of transformers' example; two initialisations."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import datasets
import matplotlib
import numpy as np
import torch
from benchmark_models import stock_model
from benchmark_outputs import measured_here, picture_beside
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from distill.data.transforms import RandomCrop, TransformSettings
from distill.quiet import quieten_libraries
from distill.training.finetune import finetune
from distill.training.settings import parse_finetune_settings
from edge.device.environment import memory_of_this_process
from swin_hf import SwinHfForImageClassification
from swin_hf.output_folders import write_json
from swin_hf.presets_swin_hf import PRESETS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BENCHMARK = Path(__file__).with_name("benchmark.py")
CONTENDERS = {
    "example": "the loop of transformers' example, stock model",
    "example-ours": "the loop of transformers' example, our model",
    "ours-plain": "ours, crop and mirror as in the example",
    "ours": "ours, with RandAugment, erasing, mixup and CutMix",
}
PLAIN = ["--randaugment_ops", "0", "--color_jitter", "0", "--random_erasing", "0", "--mixup_alpha", "0", "--cutmix_alpha", "0"]
SETTINGS = ("model", "per_device_train_batch_size", "steps", "dataloader_num_workers", "bf16", "repeats")
WARMUP_STEPS = 3
NUM_VALIDATION_DIGITS = 270  # of 1,797; held out by the configuration "digits"
ONE_GPU = {"CUDA_VISIBLE_DEVICES": "0"} | os.environ


class StepTimes(TrainerCallback):
    """Records when each step ended."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter())


def benchmark_training(arguments: argparse.Namespace) -> None:
    """Train with all contenders in turn, each in its own process, and compare images per second and memory."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = measured_here("torch", "transformers", "accelerate", "kornia", device=device) | {
        "settings": {name: getattr(arguments, name) for name in SETTINGS},
        "contenders": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder) / "photographs"
        write_photographs(photographs, max(arguments.per_device_train_batch_size * 2, 64))
        runs: dict[str, list[dict[str, float]]] = {contender: [] for contender in CONTENDERS}
        for _ in range(arguments.repeats):
            for contender, results in runs.items():
                command = [sys.executable, str(BENCHMARK), "training-worker", contender, str(photographs), arguments.model]
                command += map(
                    str,
                    (
                        arguments.per_device_train_batch_size,
                        arguments.steps,
                        arguments.dataloader_num_workers,
                        int(arguments.bf16),
                    ),
                )
                done = subprocess.run(command, capture_output=True, text=True, env=ONE_GPU)
                if done.returncode:
                    raise RuntimeError(f"{contender} failed:\n{done.stderr[-3000:]}")
                results.append(json.loads(done.stdout.splitlines()[-1]))
    for contender, results in runs.items():
        figures = {name: median(result[name] for result in results) for name in results[0]}
        report["contenders"][contender] = {"what": CONTENDERS[contender], "runs": results, **figures}
    write_json(arguments.output_file, report)
    print(training_table(report))
    print(f"\n{report['machine']}, {report['versions']}, {report['date']}, {report['settings']} -> {arguments.output_file}")


def training_table(report: dict) -> str:
    """The contenders as rows of Markdown, with speeds relative to the example's."""
    rows = ["| contender | images/s | times the example | peak memory, MB |", "|---|---|---|---|"]
    example = report["contenders"]["example"]["images_per_second"]
    for figures in report["contenders"].values():
        speed = figures["images_per_second"]
        rows.append(f"| {figures['what']} | {speed:.2f} | {speed / example:.2f} | {figures['peak_megabytes']:.0f} |")
    return "\n".join(rows)


def work_training(arguments: argparse.Namespace) -> None:
    """Train with one contender and print images per second after the first steps, and peak memory, as JSON."""
    quieten_libraries()
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.contender.startswith("example"):
            train_like_the_example(arguments, folder, times)
        else:
            plain = PLAIN if arguments.contender == "ours-plain" else []
            options = ["--dataset", str(arguments.photographs), "--model", arguments.model, "--output_dir", folder]
            options += [
                "--max_steps",
                str(arguments.steps),
                "--per_device_train_batch_size",
                str(arguments.per_device_train_batch_size),
            ]
            options += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
            options += [
                "--dataloader_num_workers",
                str(arguments.dataloader_num_workers),
                "--bf16",
                str(bool(arguments.bf16)),
                *plain,
            ]
            options += ["--num_pictures", "0", "--logging_strategy", "steps", "--logging_steps", str(arguments.steps)]
            image_size = PRESETS[arguments.model]().image_size
            finetune(parse_finetune_settings([*options, "--image_size", str(image_size)]), callbacks=[times])
    seconds = times.seconds[-1] - times.seconds[WARMUP_STEPS - 1]
    speed = (len(times.seconds) - WARMUP_STEPS) * arguments.per_device_train_batch_size / seconds
    print(json.dumps({"images_per_second": round(speed, 3), "peak_megabytes": round(peak_megabytes(), 1)}))


def train_like_the_example(arguments: argparse.Namespace, folder: str, times: StepTimes) -> None:
    """Train as `examples/pytorch/image-classification/run_image_classification.py` of transformers does with its defaults.

    Its transforms are torchvision's; here they are Pillow's, which torchvision also uses to crop and resize PIL images.
    """
    set_seed(42)
    config = PRESETS[arguments.model](num_labels=2)
    if arguments.contender == "example-ours":
        model: PreTrainedModel = SwinHfForImageClassification(config)
    else:
        model = stock_model(config)
    crop = RandomCrop(TransformSettings(), config.image_size, seed=42)
    crop.resample = Image.Resampling.BILINEAR  # torchvision's default
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    counter = iter(range(sys.maxsize))

    def transform(rows: dict) -> dict:
        images = [crop(image.convert("RGB"), 0, next(counter))[0] for image in rows["image"]]
        pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in images]
        return {"pixel_values": [(own - mean) / std for own in pixels], "label": rows["label"]}

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        labels = torch.tensor([row["label"] for row in rows])
        return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}

    data = datasets.load_dataset("imagefolder", data_dir=str(arguments.photographs), cache_dir=folder)["train"]
    trainer_arguments = TrainingArguments(
        output_dir=folder,
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.per_device_train_batch_size,
        dataloader_num_workers=arguments.dataloader_num_workers,
        bf16=bool(arguments.bf16),
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    Trainer(
        model=model,
        args=trainer_arguments,
        train_dataset=data.with_transform(transform),
        data_collator=collate,
        callbacks=[times],
    ).train()


def write_photographs(folder: Path, count: int) -> None:
    """Write JPEG crops of about 400 x 300 pixels from scikit-learn's two photographs, one class each."""
    random = np.random.default_rng(0)
    for name, photograph in zip(("temple", "flower"), load_sample_images().images):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            width, height = random.integers(360, 440), random.integers(270, 330)
            left, top = random.integers(photograph.shape[1] - width), random.integers(photograph.shape[0] - height)
            Image.fromarray(photograph[top : top + height, left : left + width]).save(
                folder / name / f"{number}.jpg", quality=90
            )


def peak_megabytes() -> float:
    """Peak memory of this process: on the GPU if there is one, else the resident memory that Linux reports."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return memory_of_this_process("VmHWM") / 1e6


def compare_weight_inits(arguments: argparse.Namespace) -> None:
    """Train a Swin of width 24 on the digits with both values of `weight_init`, and write the curves as JSON and PNG."""
    plot = picture_beside(arguments.output_file)
    quieten_libraries()
    architecture = {"image_size": 32, "patch_size": 2, "window_size": 4}
    architecture |= {"embed_dim": 24, "depths": [1, 1, 2], "num_heads": [2, 3, 6]}
    curves: dict[str, list[list[float]]] = {"normal": [], "fan_in": []}
    for seed in arguments.seeds:
        for weight_init, results in curves.items():
            with tempfile.TemporaryDirectory() as folder:
                model = architecture | {"drop_path_rate": 0.0, "weight_init": weight_init}
                options = [
                    "--config",
                    "digits",
                    "--output_dir",
                    folder,
                    "--model_args",
                    json.dumps(model),
                    "--seed",
                    str(seed),
                ]
                options += ["--num_train_epochs", str(arguments.epochs), "--learning_rate", "0.001", "--ema_decay", "0"]
                options += ["--mixup_alpha", "0", "--label_smoothing_factor", "0", "--num_pictures", "0"]
                finetune(parse_finetune_settings(options))
                metrics = json.loads((Path(folder) / "metrics.json").read_text())
            results.append([row["eval_accuracy"] for row in metrics["history"] if "eval_accuracy" in row])
            print(f"{weight_init}, seed {seed}: {results[-1][-1]:.1%} of the validation images")
    report = measured_here("torch", "transformers") | {
        "architecture": architecture,
        "num_validation_images": NUM_VALIDATION_DIGITS,
        "validation_accuracy_by_epoch": curves,
    }
    write_json(arguments.output_file, report)
    plot_weight_inits(report, plot)
    print(f"-> {arguments.output_file} and {plot}")


def plot_weight_inits(report: dict, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    labels = {"normal": 'weight_init="normal": standard deviation 0.02', "fan_in": 'weight_init="fan_in": 1 / sqrt(inputs)'}
    for (weight_init, runs), colour in zip(report["validation_accuracy_by_epoch"].items(), ("C3", "C0")):
        for number, run in enumerate(runs):
            epochs = range(1, len(run) + 1)
            axes.plot(epochs, [100 * value for value in run], color=colour, label=labels[weight_init] if number == 0 else None)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation accuracy, % (n = {report['num_validation_images']})")
    axes.set_title(f"Swin of width {report['architecture']['embed_dim']} on digits, no teacher; one line per seed")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
