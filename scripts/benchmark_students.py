"""Which architecture should a student have? Accuracy measured here against the latency of int8 programs, on digit scenes.

Every model starts from random weights and is trained with the same images, augmentation and number of steps, by the same
optimiser. Its learning rate was settled by whole trainings from the first seed, which --settle_rates repeats: the rate is
doubled, or halved, as long as that gains a point on the validation images. Accuracies are those of the test images.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from benchmark_edge import split_examples
from benchmark_outputs import picture_beside
from benchmark_programs import lower_ordinarily, make_program, photograph_crops, size_of
from benchmark_trainings import begin_report, mean_and_interval, run_all
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    set_seed,
)

from distill.data.finding import find_images
from distill.data.targets import CLASSES
from distill.pipeline.other_runs import on_the_frontier
from distill.training.finetune import METRICS, finetune
from distill.training.settings import FinetuneSettings, parse_finetune_settings, settled
from edge.compare.candidates import program_contender, random_classifier
from edge.compare.engines import open_executorch
from edge.compare.peers import rows_of
from edge.device.errors import ExplainedError
from edge.device.labelled import LabelledImage
from edge.export.checkpoint import input_contract
from edge.lower.recipes import RECIPES
from swin_hf import SwinHfConfig, SwinHfForImageClassification, SwinHfImageProcessorPil
from swin_hf.output_folders import write_json

SIDE, NUM_CLASSES = 64, 10
WORTH_A_TRIAL = 0.01  # of accuracy on 1,000 validation images, about its standard error
DATASET, CONFIG = "digit-scenes", "digit_scenes_classes"
PURE, HYBRID, CHANGED, RESNET, MOBILENET = "pure Swin", "hybrid", "the middle hybrid", "ResNet", "MobileNetV2"
STYLES = {  # colour and mark
    **{PURE: ("C3", "v"), HYBRID: ("C0", "s"), CHANGED: ("C9", "D")},
    **{RESNET: ("C7", "o"), MOBILENET: ("C1", "^")},
}
PROCESSOR = SwinHfImageProcessorPil(size={"height": SIDE, "width": SIDE})


@dataclass(frozen=True)
class Student:
    """A model to train; `build` makes it with new weights. learning_rate: as settled, or the first to be tried."""

    kind: str
    size: str
    learning_rate: float
    build: Callable[[], PreTrainedModel]

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.size}"


def swin(dims: list[int], depths: list[int], **choices) -> SwinHfForImageClassification:
    """A Swin with shifted windows of 4 x 4, which span the map of the third stage, and heads of 16 to 32 channels."""
    sizes = {"embed_dim": dims[0], "stage_dims": dims, "depths": depths, "num_heads": [max(dim // 32, 2) for dim in dims]}
    training = {"weight_init": "fan_in", "zero_init_residual": True, "drop_path_rate": 0.0}
    return SwinHfForImageClassification(
        SwinHfConfig(**{"image_size": SIDE, "window_size": 4, "num_labels": NUM_CLASSES} | sizes | training | choices)
    )


def hybrid(dims: list[int], depths: list[int], **choices) -> SwinHfForImageClassification:
    """As the presets for phones: convolutions where the map is large, windows where it is small.

    The windows span the map, and heads have 64 channels: of so small a map, the operations are few and their number counts.
    """
    convolutions = {"stem": "conv", "downsample": "conv", "local_conv": 3, "stage_blocks": ["conv", "window", "window"]}
    windows = {"stage_windows": [4, 8, 4], "num_heads": [max(dim // 64, 1) for dim in dims], "shift_windows": False}
    return swin(dims, depths, **convolutions | windows | {"norm_after_pooling": True} | choices)


def middle_hybrid(**choices) -> SwinHfForImageClassification:
    return hybrid(**{"dims": [16, 32, 64], "depths": [4, 1, 2]} | choices)


def resnet(widths: list[int], depths: list[int]) -> ResNetForImageClassification:
    """transformers' ResNet of basic blocks, with all of its stages: maps of 16, 8, 4 and 2 positions a side."""
    sizes = {"embedding_size": widths[0], "hidden_sizes": widths, "depths": depths, "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_labels=NUM_CLASSES, downsample_in_first_stage=False, **sizes))


class MobileNet(MobileNetV2ForImageClassification):
    """transformers' MobileNetV2 with torchvision's momentum in batch normalisation.

    transformers gives it TensorFlow's decay, 0.997, as PyTorch's momentum: its statistics are those of the last batch.
    """

    def __init__(self, config: MobileNetV2Config):
        super().__init__(config)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.1


AutoModelForImageClassification.register(MobileNetV2Config, MobileNet, exist_ok=True)  # for the trainings


def mobilenet(multiplier: float, stride: int) -> MobileNet:
    """A MobileNetV2 with a smaller stride, as its own 32 leaves 2 x 2 positions, and torchvision's new weights."""
    sizes = {"depth_multiplier": multiplier, "output_stride": stride, "image_size": SIDE}
    model = MobileNet(MobileNetV2Config(num_labels=NUM_CLASSES, classifier_dropout_prob=0.0, tf_padding=False, **sizes))
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
    return model


STUDENTS = [
    Student(PURE, "widths 24 to 96", 1e-3, lambda: swin([24, 48, 96], [1, 1, 2])),
    Student(PURE, "widths 32 to 128", 5e-4, lambda: swin([32, 64, 128], [1, 1, 2])),
    Student(HYBRID, "widths 16 to 64, depths 2-1-2", 4e-3, lambda: hybrid([16, 32, 64], [2, 1, 2])),
    Student(HYBRID, "widths 16 to 64, depths 4-1-2", 4e-3, lambda: middle_hybrid()),
    Student(HYBRID, "widths 24 to 96, depths 4-1-2", 2e-3, lambda: hybrid([24, 48, 96], [4, 1, 2])),
    Student(CHANGED, "depths 4-1-1", 4e-3, lambda: middle_hybrid(depths=[4, 1, 1])),
    Student(CHANGED, "ReLU", 4e-3, lambda: middle_hybrid(hidden_act="relu")),
    Student(CHANGED, "BatchNorm", 4e-3, lambda: middle_hybrid(norm="batch")),
    Student(RESNET, "widths 16 to 128", 4e-3, lambda: resnet([16, 32, 64, 128], [1, 1, 1, 1])),
    Student(RESNET, "widths 32 to 256", 1.6e-2, lambda: resnet([32, 64, 128, 256], [1, 1, 1, 1])),
    Student(RESNET, "widths 32 to 256, twice as deep", 2e-3, lambda: resnet([32, 64, 128, 256], [2, 2, 2, 2])),
    Student(MOBILENET, "multiplier 0.25, stride 16", 4e-3, lambda: mobilenet(0.25, 16)),
    Student(MOBILENET, "multiplier 0.35, stride 16", 2e-3, lambda: mobilenet(0.35, 16)),
]
BY_NAME = {student.name: student for student in STUDENTS}
MIDDLE = f"{HYBRID}, widths 16 to 64, depths 4-1-2"  # whose learning rate its changes share


@dataclass(frozen=True)
class Training:
    """A training to run: of a student, by name, from a seed."""

    student: str
    seed: int
    learning_rate: float
    epochs: int

    @property
    def key(self) -> str:
        return f"{self.student}, seed {self.seed}, learning rate {self.learning_rate:g}, {self.epochs} epochs"


def benchmark_students(arguments: argparse.Namespace) -> None:
    """Train, quantize, run and time all students. Trainings that are in `arguments.output_file` are not repeated.

    Raises:
        OutputError: the picture would replace a file of somebody's own.
    """
    picture = picture_beside(arguments.output_file)
    report = begin_report(arguments, "torch", "executorch", "transformers", "torchao")
    done, students = report["trainings"], [BY_NAME[name] for name in arguments.students]
    rates = {student.name: student.learning_rate for student in students}
    if arguments.settle_rates:
        rates = settled_rates(arguments, done, report)
    trainings = [
        Training(student.name, seed, rates[student.name], arguments.epochs) for seed in arguments.seeds for student in students
    ]
    run_all("student-worker", trainings, done, arguments, report)
    with tempfile.TemporaryDirectory() as work_dir:
        rows = timed(arguments, Path(work_dir))
    for row in rows:
        runs = [done[training.key] for training in trainings if training.student == row["name"]]
        row |= {"learning_rate": rates[row["name"]], "num_seeds": len(runs)}
        row["validation_by_epoch"] = np.mean([run["validation_by_epoch"] for run in runs], axis=0).round(4).tolist()
        for figure in ("model", "program"):
            row[figure], row[f"{figure}_interval"] = mean_and_interval([run[figure] for run in runs])
    report["rows"] = rows
    write_json(arguments.output_file, report)
    print(described(rows))
    plot_students(rows, picture)
    print(f"-> {arguments.output_file} and its picture")


def settled_rates(arguments: argparse.Namespace, done: dict[str, dict], report: dict) -> dict[str, float]:
    """The learning rate of each student: the best on the validation images of those that `rates_to_try` finds."""
    students = [BY_NAME[name] for name in arguments.students]
    source = {student.name: MIDDLE if student.kind == CHANGED else student.name for student in students}
    tried: dict[str, dict[float, float]] = {name: {} for name in source.values()}
    while trials := [
        Training(name, arguments.seeds[0], rate, arguments.epochs)
        for name, accuracies in tried.items()
        for rate in rates_to_try(accuracies, BY_NAME[name].learning_rate)
    ]:
        run_all("student-worker", trials, done, arguments, report)
        for training in trials:
            tried[training.student][training.learning_rate] = done[training.key]["validation"]
    best = {name: max(accuracies, key=accuracies.get) for name, accuracies in tried.items()}
    return {name: best[own] for name, own in source.items()}


def rates_to_try(accuracies: dict[float, float], first: float) -> list[float]:
    """Learning rates to try next: half and twice the first one, and further on in a direction that gains a point each time."""
    if not accuracies:
        return [first]
    best = max(accuracies, key=accuracies.get)
    if best == first:
        return [rate for rate in (best / 2, best * 2) if rate not in accuracies]
    factor = 2 if best > first else 0.5
    gains = accuracies[best] - accuracies[best / factor] >= WORTH_A_TRIAL
    return [rate for rate in [best * factor] if gains and rate not in accuracies]


def work_student(arguments: argparse.Namespace) -> None:
    """One training, its int8 program, and the accuracy of both, printed as JSON."""
    training = Training(**arguments.training)
    set_seed(training.seed)
    model = BY_NAME[training.student].build()
    with tempfile.TemporaryDirectory() as folder:
        start, trained = Path(folder) / "start", Path(folder) / "trained"
        save_start(model, start)
        figures = finetune(settings_of(trained, start, training.seed, training.epochs, training.learning_rate))
        print(json.dumps(judged(type(model), trained, figures)))


def judged(kind: type[PreTrainedModel], trained: Path, figures: dict[str, float]) -> dict:
    """The accuracies of a training, whose folder this is, and of its int8 program, as JSON values."""
    model = kind.from_pretrained(trained).eval()
    found, record = find_images(DATASET, CLASSES), json.loads((trained / "data.json").read_text())
    train, test = (split_examples(found, record, split) for split in ("train", "test"))
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "model.pte"
        make_student_program(model, [LabelledImage(image.load(), None) for image, _ in train], program)
        run = open_executorch(str(program), 1, {})
        inputs = student_inputs(model, [LabelledImage(image.load(), None) for image, _ in test])
        right = [int(run(x.numpy())[0].argmax()) == label for x, (_, label) in zip(inputs, test)]
    return {
        "validation": figures["validation_accuracy"],
        "validation_by_epoch": validation_by_epoch(trained),
        "model": figures["test_accuracy"],
        "program": float(np.mean(right)),
        "num_test_images": len(right),
    }


def settings_of(folder: Path, start: Path, seed: int, epochs: int, learning_rate: float, **more: object) -> FinetuneSettings:
    """The settings of a training on the scenes; `more` by the names of flags."""
    options = {"model": start, "output_dir": folder, "seed": seed, "num_train_epochs": epochs, "learning_rate": learning_rate}
    options |= {"num_pictures": 0, "disable_tqdm": True} | more
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return settled(parse_finetune_settings(["--config", CONFIG, *flags]))


def save_start(model: PreTrainedModel, folder: Path) -> None:
    """Write the model that a training starts with."""
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)


def validation_by_epoch(trained: Path) -> list[float]:
    """The accuracies on the validation images, from the folder of a finished training."""
    history = json.loads((trained / METRICS).read_text())["history"]
    return [row["eval_accuracy"] for row in history if "eval_accuracy" in row]


class Logits(nn.Module):
    """A classifier of transformers that returns its logits alone."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


def student_inputs(model: PreTrainedModel, images: list[LabelledImage]) -> list[torch.Tensor]:
    """Inputs (1, 3, H, W) of a model's program: pixels in [0, 1] for ours, normalised ones for the others."""
    if isinstance(model, SwinHfForImageClassification):
        contract = input_contract(model.config, PROCESSOR)
        return [torch.from_numpy(contract.pixel_values(image.image)) for image in images]
    return [PROCESSOR(image.image, return_tensors="pt")["pixel_values"] for image in images]


def make_student_program(model: PreTrainedModel, calibration: list[LabelledImage], file: Path) -> int:
    """An int8 program of a model, ours by the recipe `int8`, the others' by XNNPACK's quantizer; returns its bytes."""
    if isinstance(model, SwinHfForImageClassification):
        return make_program(model, RECIPES["int8"], file, calibration).size_bytes
    return lower_ordinarily(Logits(model), student_inputs(model, calibration), file)


def timed(arguments: argparse.Namespace, work_dir: Path) -> list[dict]:
    """Sizes and latencies of the students' programs, which do not depend on the weights; the fastest first.

    Each is timed with one thread and with all, and has the latency of the better: small maps are not worth the sharing.
    """
    contenders, sizes = [], {}
    for number, student in enumerate(BY_NAME[name] for name in arguments.students):
        set_seed(0)
        model, file = student.build().eval(), work_dir / f"{number}.pte"
        if isinstance(model, SwinHfForImageClassification):
            model = random_classifier(model.config)
        sizes[student.name] = size_of(model, SIDE) | {"size_bytes": make_student_program(model, photograph_crops(), file)}
        contenders.append(program_contender(student.name, file, (1, 3, SIDE, SIDE)))
    fastest: dict[str, dict] = {}
    for threads in {1, arguments.threads}:
        for row in rows_of(contenders, {}, arguments.repeats, threads):
            if "p50_ms" not in row:
                raise ExplainedError(f"the program of {row['name']} cannot be timed: {row['skipped']}")
            if row["name"] not in fastest or row["p50_ms"] < fastest[row["name"]]["p50_ms"]:
                fastest[row["name"]] = row | sizes[row["name"]]
    return sorted(fastest.values(), key=lambda row: row["p50_ms"])


def described(rows: list[dict]) -> str:
    lines = ["", "| model | int8, ms | threads | K parameters | M MACs | learning rate | model, % | int8 program, % |"]
    lines.append("|---" * 8 + "|")
    for row in rows:
        bounds = row["program_interval"]
        interval = " [{:.1f}, {:.1f}]".format(*(100 * bound for bound in bounds)) if bounds else ""
        lines.append(
            f"| {row['name']} | {row['p50_ms']:.3f} | {row['threads']} | {row['parameters'] / 1e3:.0f} | "
            f"{row['macs'] / 1e6:.1f} | "
            f"{row['learning_rate']:g} | {100 * row['model']:.1f} | {100 * row['program']:.1f}{interval} |"
        )
    return "\n".join(lines)


def plot_students(rows: list[dict], path: Path) -> None:
    """Accuracy of the int8 programs against their latency, with the line of the convolutional networks; and as trained."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=(3, 2), layout="constrained")
    plot_latencies(rows, left)
    for kind in STYLES:
        of_kind = [row for row in rows if BY_NAME[row["name"]].kind == kind]
        if not of_kind:
            continue
        row = max(of_kind, key=lambda row: row["program"])
        curve = 100 * np.array(row["validation_by_epoch"])
        right.plot(np.arange(1, len(curve) + 1), curve, color=STYLES[kind][0], label=row["name"])
    right.set(xlabel="epoch", ylabel="accuracy on the validation scenes, %")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_latencies(rows: list[dict], axes: Axes) -> None:
    rivals = [(row["p50_ms"], 100 * row["program"]) for row in rows if BY_NAME[row["name"]].kind in (RESNET, MOBILENET)]
    line = np.array(on_the_frontier(rivals)).reshape(-1, 2)
    axes.plot(*line.T, color="0.8", zorder=0, label="the line of the convolutional networks")
    for kind, (colour, marker) in STYLES.items():
        of_kind = [row for row in rows if BY_NAME[row["name"]].kind == kind]
        if not of_kind:
            continue
        means = np.array([row["program"] for row in of_kind])
        spread = np.abs(np.array([row["program_interval"] or [row["program"]] * 2 for row in of_kind]).T - means)
        latencies = [row["p50_ms"] for row in of_kind]
        axes.errorbar(latencies, 100 * means, 100 * spread, fmt=marker, color=colour, capsize=3, label=kind)
    axes.set(xscale="log", xlabel="latency of the int8 program, ms (median)", ylabel="accuracy on the test scenes, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
