"""Boxes around objects: how annotations describe them, and how they move with their images."""

# M boxes of an image, each (class, left, top, right, bottom) in pixels

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.sources import DataError
from edge.device.image import UnreadableImageError
from edge.device.names import plain

CLASS_NAMES = ("category", "categories", "category_id", "label", "labels", "class")  # of the classes of boxes
BOX_NAMES = ("bbox", "bboxes", "boxes")
LEAST_VISIBLE = 0.3  # share of a box that a crop must keep
NO_BOX = -1  # the class of rows that fill up a batch
Objects = list[tuple[str, list[float]]]  # of an image: a class, and left, top, width and height of its box


def as_boxes(classes: Iterable[int], corners: Iterable[Iterable[float]]) -> np.ndarray:
    """(M, 5) from classes and (left, top, right, bottom)."""
    rows = [(number, *box) for number, box in zip(classes, corners, strict=True)]
    return np.array(rows, np.float32).reshape(-1, 5)


def corners_of(left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """A box as COCO describes it, by its corners."""
    return left, top, left + width, top + height


def check_boxes(boxes: np.ndarray, size: tuple[int, int], name: str) -> None:
    """Check boxes (M, 5) of an image of this (width, height).

    Raises:
        UnreadableImageError: one has no area inside of the image.
    """
    bad = areas(clipped(boxes, size)) <= 0
    if bad.any():
        box = ", ".join(f"{value:g}" for value in boxes[bad.argmax(), 1:])
        raise UnreadableImageError(
            f"{name} has a box without area inside of its {size[0]} x {size[1]} pixels: left, top, right, bottom {box}"
        )


def clipped(boxes: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Boxes (M, 5) cut to an image of this (width, height)."""
    cut = boxes.copy()
    cut[:, 1::2] = boxes[:, 1::2].clip(0, size[0])
    cut[:, 2::2] = boxes[:, 2::2].clip(0, size[1])
    return cut


def areas(boxes: np.ndarray) -> np.ndarray:
    """(M,) of boxes (M, 5); negative sides count as 0."""
    return np.maximum(boxes[:, 3] - boxes[:, 1], 0) * np.maximum(boxes[:, 4] - boxes[:, 2], 0)


def cropped(boxes: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int], mirrored: bool) -> np.ndarray:
    """Boxes (M, 5) after a crop (left, top, right, bottom) was resized to (width, height), and mirrored or not.

    Those of which less than 30 % is left are dropped.
    """
    left, top, right, bottom = box
    moved = boxes - np.array([0, left, top, left, top], np.float32)
    cut = clipped(moved, (right - left, bottom - top))
    cut = cut[areas(cut) >= LEAST_VISIBLE * np.maximum(areas(boxes), 1e-9)]
    cut[:, 1:] *= np.array([size[0] / (right - left), size[1] / (bottom - top)] * 2, np.float32)
    if mirrored:
        cut[:, [1, 3]] = size[0] - cut[:, [3, 1]]
    return cut


def as_centres(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(M, 5) as (class, centre x, centre y, width, height), in shares of an image of this (width, height)."""
    low, high = boxes[:, 1:3], boxes[:, 3:5]
    places = np.concatenate([(low + high) / 2, high - low], axis=1) / np.array([*size, *size], np.float32)
    return np.concatenate([boxes[:, :1], places], axis=1).astype(np.float32)


# -- annotations -------------------------------------------------------------------------------------------------------


def read_coco(file: Path) -> tuple[dict[str, Objects], list[str]]:
    """The objects of a COCO file by the names of their images, and all classes in the order of their numbers.

    Crowds are left out. Images without objects are there, with none.

    Raises:
        DataError: it is no such file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {own["id"]: plain(str(own["name"])) for own in content["categories"]}
        files = {own["id"]: plain(str(own["file_name"])) for own in content["images"]}
        objects: dict[str, Objects] = {name: [] for name in files.values()}
        for own in content["annotations"]:
            if not own.get("iscrowd", 0):
                objects[files[own["image_id"]]].append((names[own["category_id"]], four_numbers(own["bbox"])))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{file} must be a COCO file with images, annotations and categories: {error!r:.200}") from error
    return objects, [names[key] for key in sorted(names)]


def read_metadata(file: Path) -> tuple[dict[str, Objects], list[str]]:
    """The objects of a `metadata.jsonl`, `file_name` and `objects` in each line, by the names of their images; all classes.

    Raises:
        DataError: it is no such file.
    """
    objects: dict[str, Objects] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            objects[plain(str(row["file_name"]))] = objects_of(row["objects"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{file}, line {number}, must have file_name and objects: {error!r:.200}") from error
    return objects, sorted({name for own in objects.values() for name, _ in own})


def objects_of(cell: Any) -> Objects:
    """The objects in a cell: lists by name, or a list of objects, or either as JSON.

    Raises:
        ValueError: it has no boxes or no classes.
    """
    if isinstance(cell, str):
        cell = json.loads(cell)
    if isinstance(cell, dict):
        classes, boxes = _first_of(cell, CLASS_NAMES), _first_of(cell, BOX_NAMES)
        if len(classes) != len(boxes):
            raise ValueError(f"objects must have a class for each box, got {len(classes)} and {len(boxes)}")
        pairs = zip(classes, boxes)
    else:
        pairs = ((_first_of(own, CLASS_NAMES), _first_of(own, BOX_NAMES)) for own in cell or [])
    return [(plain(str(name)), four_numbers(box)) for name, box in pairs]


def _first_of(content: dict[str, Any], names: tuple[str, ...]) -> Any:
    found = next((name for name in names if name in content), None)
    if found is None:
        raise ValueError(f"objects must have {' or '.join(names)}, got {', '.join(content) or 'nothing'}")
    return content[found]


def four_numbers(box: Any) -> list[float]:
    """Left, top, width and height.

    Raises:
        ValueError: they are not four finite numbers.
    """
    numbers = [float(value) for value in box]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"a box must be four numbers, left, top, width and height, got {box!r:.80}")
    return numbers


def numbered(objects: Objects, class_names: list[str]) -> np.ndarray:
    """Objects as boxes (M, 5)."""
    number_of = {name: number for number, name in enumerate(class_names)}
    return as_boxes((number_of[name] for name, _ in objects), (corners_of(*box) for _, box in objects))
