"""Segmenters on the device: mean IoU of models and programs on the test digit scenes, latency, size and delegates."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from benchmark_outputs import measured_here
from benchmark_trainings import mean_and_interval
from tqdm import tqdm

from distill.data.finding import find_images
from distill.data.sources import FoundImages
from distill.data.targets import MASKS
from distill.data.transforms import IGNORED
from distill.public_names import public_name
from edge.device.bench import bench_in_turns
from edge.device.errors import ExplainedError
from edge.device.runner import Runner
from edge.device.segmentation import class_map_of, confusion_of, mask_scores, mean_iou
from edge.export.checkpoint import load_checkpoint
from edge.export.export import export
from edge.export.settings import ExportSettings
from swin_hf import SwinHfForSemanticSegmentation
from swin_hf.output_folders import write_json

DATASET = "digit-scenes"
RECIPES, CALIBRATED_ON = ("fp32", "int8"), 128
PARTS = 10  # of the test images, over which an interval is taken


def benchmark_segmenters(arguments: argparse.Namespace) -> None:
    """Export each checkpoint in each recipe, once more with class maps, and write figures as JSON and as a table.

    Raises:
        ExplainedError: a checkpoint is no segmenter of the digit scenes.
    """
    scenes, rows, folders = find_images(DATASET, MASKS), [], []
    for checkpoint in arguments.checkpoints:
        check_segmenter(checkpoint, scenes)
    with tempfile.TemporaryDirectory() as work_dir:
        for number, checkpoint in enumerate(arguments.checkpoints):
            model, processor = load_checkpoint(checkpoint)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            about = {"name": public_name(str(checkpoint)), "parameters": parameters}
            rows.append(about | {"form": "model, PyTorch"} | judge_model(model, processor, scenes))
            for recipe, class_map in [*((recipe, False) for recipe in RECIPES), (RECIPES[-1], True)]:
                folder = Path(work_dir) / f"{number}-{recipe}-{class_map}"
                images = [source.load() for source in scenes.images["train"][:CALIBRATED_ON]]
                settings = ExportSettings(recipe=recipe, dataset=images, class_map=class_map, self_test=False)
                program = export(checkpoint, folder, settings).program
                form = f"{recipe}{', class map' if class_map else ''}"
                rows.append(about | {"form": form} | program | judge_program(folder, scenes))
                folders.append((len(rows) - 1, folder))
        timed = bench_in_turns([folder for _, folder in folders], arguments.repeats, (arguments.threads,))
        for (at, _), program in zip(folders, timed["programs"]):
            rows[at]["p50_ms"] = program["latency"][0]["p50_ms"]
    report = measured_here("torch", "executorch", "transformers", "torchao") | {
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "rows": rows,
    }
    write_json(arguments.output_file, report)
    print(described(rows))
    print(f"-> {arguments.output_file}")


def check_segmenter(checkpoint: Path, scenes: FoundImages) -> None:
    """Refuse a checkpoint before any work.

    Raises:
        ExplainedError: it is no segmenter of ours, or of other classes.
    """
    model, _ = load_checkpoint(checkpoint)
    if not isinstance(model, SwinHfForSemanticSegmentation) or list(model.config.id2label.values()) != scenes.class_names:
        raise ExplainedError(f"{checkpoint} must be a segmenter of the classes {', '.join(scenes.class_names)}")


def judge_model(model: SwinHfForSemanticSegmentation, processor, scenes: FoundImages) -> dict:
    """Mean IoU of a model on the test scenes."""

    def segment(image) -> np.ndarray:
        logits = model(**processor(image, return_tensors="pt")).logits[0]
        return class_map_of(logits.numpy(), image.height, image.width)

    return judge(segment, scenes)


def judge_program(folder: Path, scenes: FoundImages) -> dict:
    """Mean IoU of a program on the test scenes."""
    runner = Runner(folder, num_threads=1)
    return judge(lambda image: runner.segment(image).class_map, scenes)


@torch.no_grad()
def judge(segment, scenes: FoundImages) -> dict:
    """Mean IoU over the test scenes, its 95 % interval over tenths of them, and the share of right pixels."""
    num_classes, images, masks = len(scenes.class_names), scenes.images["test"], scenes.masks["test"]
    counts = np.zeros((PARTS, num_classes, num_classes), np.int64)
    for number, (image, mask) in enumerate(tqdm(list(zip(images, masks)), desc="scenes", disable=None)):
        truth = np.asarray(mask.load_mask())
        counts[number % PARTS] += confusion_of(segment(image.load()), truth, num_classes, IGNORED)
    total, (_, interval) = counts.sum(axis=0), mean_and_interval([mean_iou(own) for own in counts])
    return {
        **mask_scores(total),
        "interval": interval,
        "num_images": len(images),
    }


def described(rows: list[dict]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| segmenter | | mean IoU | pixels | `.pte`, kB | p50, ms | delegates |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        program = ["", "", ""]
        if "p50_ms" in row:
            outside = "".join(f", {count} x {name}" for name, count in row["outside"].items())
            program = [f"{row['size_bytes'] / 1e3:.0f}", f"{row['p50_ms']:.2f}", f"{row['num_delegates']}{outside}"]
        cells = [row["name"], row["form"], f"{row['mean_iou']:.1%}", f"{row['pixel_accuracy']:.1%}", *program]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
