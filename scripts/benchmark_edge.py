"""Programs for the device: compared with other engines, choices of students compared by their cost, and what int8 costs."""

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from benchmark_frontier import PICTURE, measure_frontier
from benchmark_grid import measure_grid
from benchmark_outputs import measured_here, picture_beside
from benchmark_programs import NUM_CROPS, closeness, make_program

from distill.data.finding import find_images
from distill.data.sources import FoundImages, ImageSource
from distill.data.targets import CLASSES
from distill.errors import require
from edge.compare.candidates import processor_of, random_classifier
from edge.compare.macs import count_macs
from edge.compare.peers import prepare_limits, prepare_peers, rows_of, with_limits
from edge.device.labelled import LabelledImage, evenly
from edge.device.runner import Runner
from edge.export.checkpoint import input_contract, load_checkpoint, model_outputs
from edge.export.export import ExportSettings, export
from edge.export.images import MAX_IMAGES, method_inputs
from edge.lower.recipes import RECIPES
from swin_hf.output_folders import write_json
from swin_hf.presets_swin_hf import PRESETS

RUNS_OF_OURS = ("fp32", "fp16", "int8", "int8-static", "int8-dynamic")


def benchmark_edge(arguments: argparse.Namespace) -> None:
    """Measure the chosen parts and add them to the report in `arguments.output_file`, which keeps its other parts.

    Raises:
        OutputError, SettingsError: a part cannot be measured or written.
    """
    check_parts(arguments)
    packages = ("torch", "executorch", "transformers", "torchao", "onnxruntime", "openvino", "timm")
    measured = measured_here(*packages) | {"threads": arguments.threads}
    report = json.loads(arguments.output_file.read_text()) if arguments.output_file.is_file() else {}
    for part in arguments.parts:
        with tempfile.TemporaryDirectory() as work_dir:
            report[part] = measured | EDGE_PARTS[part](arguments, Path(work_dir))
        write_json(arguments.output_file, report)
    print(f"-> {arguments.output_file}")


def check_parts(arguments: argparse.Namespace) -> None:
    """Refuse what a part cannot be measured with, before any work.

    Raises:
        OutputError, SettingsError: see `benchmark_edge`.
    """
    if "frontier" in arguments.parts:
        picture_beside(arguments.output_file, PICTURE)
    if "accuracy" in arguments.parts:
        without = [str(folder) for folder in arguments.checkpoints if not (folder / "data.json").is_file()]
        rule = "name folders that scripts/finetune.py wrote, with their data.json, for --parts accuracy"
        require(arguments.checkpoints and not without, "checkpoints", rule, ", ".join(without) or "none")


def measure_peers(arguments: argparse.Namespace, work_dir: Path) -> dict:
    """Measure a preset with random weights in our recipes and in every installed engine."""
    model = random_classifier(PRESETS[arguments.model](num_labels=1000))
    processor = processor_of(model.config)
    model.save_pretrained(work_dir / "checkpoint")
    processor.save_pretrained(work_dir / "checkpoint")
    made = {recipe: make_program(model, RECIPES[recipe], work_dir / f"{recipe}.pte") for recipe in RUNS_OF_OURS}
    height, width = model.config.image_height_width
    peers, left_out = prepare_peers(model, processor, work_dir / "checkpoint", work_dir, (height, width))
    limits = prepare_limits(["fp32", "int8"], work_dir)
    contenders = [replace(one.contender, name=f"ours, {recipe}") for recipe, one in made.items()]
    macs = count_macs(model, torch.zeros(1, 3, height, width))
    rows = with_limits(rows_of([*contenders, *peers, *limits], left_out, arguments.repeats, arguments.threads), limits, macs)
    close = {recipe: closeness(model, one) for recipe, one in made.items()}
    stock = {row["name"]: row.get("p50_ms") for row in rows}.get("transformers ExecutorchExporter, fp32")
    print(f"\n{arguments.model}: {macs / 1e9:.2f} G multiply-accumulates, {arguments.threads} threads\n")
    print("| program | p50, ms | p90, ms | alone, ms | of stock's exporter |\n|---|---|---|---|---|")
    for row in rows:
        if "p50_ms" not in row:
            print(f"| {row['name']} | left out: {row['skipped']} | | | |")
        else:
            ratio = f"{row['p50_ms'] / stock:.2f}" if stock else "-"
            print(f"| {row['name']} | {row['p50_ms']:.1f} | {row['p90_ms']:.1f} | {row['alone_ms']:.1f} | {ratio} |")
    for recipe, one in made.items():
        print(
            f"{recipe}: {one.size_bytes / 1e6:.2f} MB, {one.size_bytes / one.weight_bytes:.3f} of its weights, "
            f"{one.num_delegates} delegate(s), {close[recipe].sqnr_db:.1f} dB on {NUM_CROPS} crops of photographs"
        )
    facts = {
        recipe: {key: value for key, value in vars(one).items() if key != "contender"} | {"parity": asdict(close[recipe])}
        for recipe, one in made.items()
    }
    return {"model": arguments.model, "macs": macs, "rows": rows, "ours": facts}


def measure_accuracy(arguments: argparse.Namespace, work_dir: Path) -> dict:
    """Measure fine-tuned classifiers and their programs on the test images that scripts/finetune.py held out."""
    results = {}
    print("\n| checkpoint, recipe | model | program | difference in points | same class | n |\n|---|---|---|---|---|---|")
    for checkpoint in arguments.checkpoints:
        record = json.loads((checkpoint / "data.json").read_text())
        found = find_images(record["dataset"], CLASSES)
        train, test = (split_examples(found, record, split) for split in ("train", "test"))
        labels = np.array([label for _, label in test])
        model, processor = load_checkpoint(checkpoint)
        contract = input_contract(model.config, processor)
        inputs = method_inputs([LabelledImage(image.load(), None) for image, _ in test], contract, contract.one_image)
        names = [image.name for image, _ in test]
        expected = model_outputs(model, processor, inputs, names).argmax(axis=1)  # before the runtime starts its threads
        for recipe in arguments.recipes:
            out = work_dir / f"{checkpoint.name}-{recipe}"
            export(
                checkpoint, out, ExportSettings(recipe=recipe, dataset=[image.load() for image, _ in train], self_test=False)
            )
            runner = Runner(out)
            top = np.array([runner.logits(pixels).argmax() for pixels in inputs])
            figures = paired_difference(expected == labels, top == labels) | {"agreement": float((top == expected).mean())}
            results[f"{checkpoint.name}, {recipe}"] = figures
            print(
                f"| {checkpoint.name}, {recipe} | {figures['model']:.2%} | {figures['program']:.2%} | "
                f"{100 * figures['difference']:+.2f} [{100 * figures['low']:+.2f}, {100 * figures['high']:+.2f}] | "
                f"{figures['agreement']:.2%} | {len(labels)} |",
                flush=True,
            )
    return {"rows": results}


def split_examples(found: FoundImages, record: dict, split: str) -> list[tuple[ImageSource, int]]:
    """The images of a split that a fine-tuning recorded, with their class numbers; at most 128 training images."""
    source = split if split in found.images else found.whole
    numbers = record["split"][split]
    if split == "train":
        numbers = evenly(numbers, MAX_IMAGES)
    return [(found.images[source][number], found.labels[source][number]) for number in numbers]


def paired_difference(model_is_right: np.ndarray, program_is_right: np.ndarray) -> dict[str, float | int]:
    """Accuracies and their difference with its 95 % interval, for answers to the same images.

    The interval is that of Agresti and Min (2005, Statistics in Medicine 24:729), which adds half an image to each cell of the
    table, so that it has a width even if all answers are the same.
    """
    n = len(model_is_right)
    lost, won = int((model_is_right & ~program_is_right).sum()), int((~model_is_right & program_is_right).sum())
    centre = (won - lost) / (n + 2)
    spread = 1.96 * np.sqrt(won + lost + 1 - (won - lost) ** 2 / (n + 2)) / (n + 2)
    return {
        "num_images": n,
        "lost": lost,
        "won": won,
        "model": float(model_is_right.mean()),
        "program": float(program_is_right.mean()),
        "difference": (won - lost) / n,
        "low": float(centre - spread),
        "high": float(centre + spread),
    }


EDGE_PARTS = {
    "peers": measure_peers,
    "grid": measure_grid,
    "frontier": measure_frontier,
    "accuracy": measure_accuracy,
}
