"""Do explanations point at what they should? Maps against a random one and a centre, on digit scenes, whose boxes are known.

Pointing game (Zhang et al. 2018, arXiv:1608.00507): the share of images in which the largest value of the map lies in the box
of the digit. Deletion and insertion (Petsiuk et al. 2018, arXiv:1806.07421): the mean probability of the class while pixels
are blurred, the most important first, and while they come back into the blurred image. Images that the model has right count.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmark_outputs import measured_here
from benchmark_trainings import mean_and_interval
from PIL import Image, ImageFilter
from tqdm import tqdm

from distill.compress.teachers import Classifier, load_classifier
from distill.data.digit_scenes import DigitScenes
from distill.data.finding import find_images
from distill.data.targets import CLASSES
from distill.public_names import public_name
from edge.device.errors import ExplainedError
from swin_hf import SwinHfForImageClassification
from swin_hf.explanations import ExplanationError, attention_rollout, class_maps, grad_cam
from swin_hf.output_folders import write_json

DATASET = "digit-scenes"
STEPS = 16  # of deletion and insertion
BLUR = 8  # pixels
CLASS_MAP, GRAD_CAM, ROLLOUT, RANDOM, CENTRE = "class map", "Grad-CAM", "attention rollout", "random", "centre"


def benchmark_explain(arguments: argparse.Namespace) -> None:
    """Judge the maps of each checkpoint, write them as JSON and print a table.

    Raises:
        ExplainedError: a checkpoint is no classifier of ours for the digit scenes, or has too few images right.
    """
    report = measured_here("torch", "transformers") | {"num_images": arguments.num_images, "checkpoints": {}}
    for checkpoint in arguments.checkpoints:
        found = report["checkpoints"][public_name(str(checkpoint))] = judge_checkpoint(checkpoint, arguments.num_images)
        write_json(arguments.output_file, report)
        print(described(public_name(str(checkpoint)), found))
    print(f"-> {arguments.output_file}")


def judge_checkpoint(checkpoint: Path, num_images: int) -> dict:
    """Figures of every map, each with its mean and 95 % interval, and the differences from the centre, image by image."""
    scenes = find_images(DATASET, CLASSES)
    classifier, boxes = load_classifier(checkpoint, scenes.class_names), test_boxes(num_images)
    if not isinstance(classifier.model, SwinHfForImageClassification):
        raise ExplainedError(
            f"{checkpoint} must be a classifier of ours to be explained, got {type(classifier.model).__name__}"
        )
    scores: dict[str, dict[str, list[float]]] = {}
    random, used = np.random.default_rng(0), 0
    for source, label, box in tqdm(list(zip(scenes.images["test"], scenes.labels["test"], boxes)), disable=None):
        image = source.load()
        sharp, blurred = as_pixels(image), as_pixels(image.filter(ImageFilter.GaussianBlur(BLUR)))
        with torch.no_grad():
            if int(classifier(sharp).argmax()) != label:
                continue
        used += 1
        for name, values in maps_of(classifier, sharp, label, random).items():
            own = scores.setdefault(name, {"pointing": [], "deletion": [], "insertion": []})
            own["pointing"].append(float(points_into(values, box)))
            deletion, insertion = curves(classifier, sharp, blurred, values, label)
            own["deletion"].append(deletion)
            own["insertion"].append(insertion)
    if used < 2:
        raise ExplainedError(f"{checkpoint} must have two or more of {num_images} scenes right to be judged, got {used}")
    return {"num_images": used, "maps": {name: against_centre(own, scores[CENTRE]) for name, own in scores.items()}}


def test_boxes(num_images: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of the digits in the first test scenes."""
    builder = DigitScenes()
    builder.download_and_prepare()
    rows = builder.as_dataset(split="test")
    return [tuple(row["box"]) for row in rows.select(range(min(num_images, len(rows)))).select_columns("box")]


def as_pixels(image: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None]


def maps_of(classifier: Classifier, pixels: torch.Tensor, label: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Every map (H, W) of an image for its class, at the size of the image."""
    model, inputs = classifier.model, classifier.pixel_values(pixels)
    number = label if classifier.class_order is None else classifier.class_order[label]
    ways: dict[str, Callable[[], torch.Tensor]] = {
        CLASS_MAP: lambda: class_maps(model, inputs)[:, number],
        GRAD_CAM: lambda: grad_cam(model, inputs, torch.tensor([number])),
        ROLLOUT: lambda: attention_rollout(model, inputs),
    }
    size, found = pixels.shape[2:], {}
    for name, way in ways.items():
        try:
            values = way()[:, None]
        except ExplanationError:
            continue
        enlarged = torch.nn.functional.interpolate(values, size=size, mode="bilinear", align_corners=False)
        found[name] = enlarged[0, 0].numpy()
    rows, columns = np.indices(size)
    middle = [(side - 1) / 2 for side in size]
    noise = torch.from_numpy(random.random((1, 1, 8, 8)))
    found[RANDOM] = torch.nn.functional.interpolate(noise, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()
    found[CENTRE] = -np.hypot(rows - middle[0], columns - middle[1])
    return found


def points_into(values: np.ndarray, box: tuple[int, int, int, int]) -> bool:
    """Whether the largest value (H, W) lies in the box."""
    row, column = np.unravel_index(values.argmax(), values.shape)
    left, top, right, bottom = box
    return left <= column < right and top <= row < bottom


@torch.no_grad()
def curves(
    classifier: Classifier, sharp: torch.Tensor, blurred: torch.Tensor, values: np.ndarray, label: int
) -> tuple[float, float]:
    """The mean probability of the class during deletion and during insertion."""
    order = np.argsort(-values, axis=None, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    shares = np.linspace(0, 1, STEPS + 1)
    chosen = torch.from_numpy(place.reshape(values.shape) < shares[:, None, None] * len(order))[:, None]
    deleted, inserted = torch.where(chosen, blurred, sharp), torch.where(chosen, sharp, blurred)
    probabilities = classifier(torch.cat([deleted, inserted])).softmax(dim=1)[:, label].numpy()
    return tuple(float(np.trapezoid(half, shares)) for half in np.split(probabilities, 2))


def against_centre(own: dict[str, list[float]], centre: dict[str, list[float]]) -> dict[str, dict]:
    """Mean and interval of each figure, and of its difference from that of the centre on the same images."""
    figures = {}
    for name, values in own.items():
        mean, interval = mean_and_interval(values)
        difference, of_difference = mean_and_interval(list(np.subtract(values, centre[name])))
        figures[name] = {
            "mean": mean,
            "interval": interval,
            "difference_from_centre": difference,
            "interval_of_difference": of_difference,
        }
    return figures


def described(name: str, found: dict) -> str:
    """The figures of a checkpoint as a table in Markdown."""
    lines = [f"{name}, n = {found['num_images']}", "", "| | pointing game | deletion | insertion |", "|---|---|---|---|"]
    for title, figures in found["maps"].items():
        cells = []
        for figure in ("pointing", "deletion", "insertion"):
            own = figures[figure]
            half = (own["interval"][1] - own["interval"][0]) / 2
            cells.append(f"{own['mean']:.1%} ± {half:.1%}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)
