"""How well a checkpoint or a program does on labelled images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from edge.device.labelled import ImageReader, LabelledImage
from edge.device.masks import open_masked
from edge.device.names import file_stem
from edge.device.predict import Predictor
from edge.device.printable import printable
from edge.device.runner import about_image, softmax
from edge.device.scores import by_class, calibration_error, confusions, largest_class_share, negative_log_likelihood
from edge.device.scores import wilson_interval as interval
from edge.device.segmentation import class_ious, mask_scores
from edge.device.verify import SPLITS, VerificationError, masks_against, read_images, readable_masks, why_unlabelled
from edge.export.images import open_images

MOST_SHOWN = 10  # classes and confusions


def evaluate(model: Predictor, dataset: Path, mistakes: Path | None = None) -> dict:
    """The figures of a classifier or a segmenter on a folder of images or a saved data set, as JSON values.

    Of a folder or data set with splits, `test` is taken, or else `validation`. Labels are those of class folders, of names
    `<label>_<n>` or of the data set; masks lie in a folder `masks` beside `images`.
    mistakes: a new folder for the images that a classifier gets wrong, as the model is given them: upright, in RGB.

    Raises:
        VerificationError: no image can be read or is labelled, or the model is a backbone.
        NotFiniteError: the model puts out NaN or infinity; the message names the image.
    """
    if model.is_segmenter:
        if mistakes is not None:
            raise VerificationError("--mistakes is for classifiers, got a segmenter")
        return _evaluate_segmenter(model, dataset)
    if not model.is_classifier:
        raise VerificationError("the model must be a classifier or a segmenter to be evaluated, got a backbone")
    if mistakes is not None and mistakes.exists() and any(mistakes.iterdir()):
        raise VerificationError(f"--mistakes must be a new or empty folder, got {mistakes}")
    return _evaluate_classifier(model, dataset, mistakes)


def _evaluate_classifier(model: Predictor, dataset: Path, mistakes: Path | None) -> dict:
    readers = open_images(dataset, model.labels, SPLITS)
    logits, labels, wrong, others, num_read = [], [], [], [], 0
    for image in _read(readers, dataset):
        num_read += 1
        if image.label not in model.labels:
            others.append(image.name)
            continue
        with about_image(image.name):
            logits.append(model.logits_of(image.image))
        labels.append(model.labels.index(image.label))
        guess = int(logits[-1].argmax())
        if guess != labels[-1]:
            row = {"image": image.name, "label": image.label, "predicted": model.labels[guess]}
            row["probability"] = float(softmax(logits[-1].astype(np.float64) / model.temperature)[guess])
            if mistakes is not None:
                row["picture"] = str(_keep(image.image, mistakes, row, len(wrong)))
            wrong.append(row)
    if not labels:
        raise VerificationError(
            f"dataset must hold images in class folders, or with names like <label>_<n>.png, got none of a known label in "
            f"{dataset}; the labels are {', '.join(model.labels[:5])}{', ..' if len(model.labels) > 5 else ''}"
        )
    counts = {"num_images": num_read, "num_unreadable": len(readers) - num_read, "num_labelled": len(labels)}
    figures = counts | _figures(np.stack(logits), np.array(labels), model) | {"mistakes": wrong}
    return figures | ({"unlabelled": why_unlabelled(others, num_read, model.labels)} if others else {})


def _figures(logits: np.ndarray, labels: np.ndarray, model: Predictor) -> dict:
    scaled, predicted, n = logits.astype(np.float64) / model.temperature, logits.argmax(axis=1), len(labels)
    right = int((predicted == labels).sum())
    low, high = interval(right, n)
    figures = {"accuracy": right / n, "low": low, "high": high, "largest_class_share": largest_class_share(labels)}
    if logits.shape[1] > 5:
        best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        figures["top_5_accuracy"] = float((best == labels[:, None]).any(axis=1).mean())
    return figures | {
        "nll": negative_log_likelihood(scaled, labels),
        "calibration_error": calibration_error(softmax(scaled), labels),
        "classes": by_class(predicted, labels, model.labels),
        "confusions": confusions(predicted, labels, model.labels),
    }


def _evaluate_segmenter(model: Predictor, dataset: Path) -> dict:
    K = len(model.labels)
    masks = readable_masks(open_masked(dataset, SPLITS), dataset, K, require_masks=True)
    confusion = masks_against(model.segment, masks, K)
    rows = [
        {"label": label, "iou": float(iou), "share": float(share)}
        for label, iou, share in zip(model.labels, class_ious(confusion), confusion.sum(axis=1) / confusion.sum())
        if np.isfinite(iou)
    ]
    counts = {"num_images": len(masks.readers), "num_unreadable": masks.num_unreadable}
    return counts | mask_scores(confusion) | {"classes": sorted(rows, key=lambda row: row["iou"])}


def _read(readers: list[ImageReader], dataset: Path) -> Iterator[LabelledImage]:
    return (image for _, image in read_images(readers, dataset))


def _keep(image: Image.Image, folder: Path, row: dict, number: int) -> Path:
    """Save a picture in the folder of its true class, named after the class that it was taken for."""
    file = folder / file_stem(row["label"]) / f"{file_stem(row['predicted'])}_{number}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file


def describe(figures: dict) -> str:
    """The figures of `evaluate` as text."""
    lines = [
        f"{figures['num_images']} images" + (f", {figures['num_unreadable']} unreadable" * bool(figures["num_unreadable"]))
    ]
    if "mean_iou" in figures:
        lines.append(f"mean IoU {figures['mean_iou']:.1%}, right pixels {figures['pixel_accuracy']:.1%}")
        lines += [f"  {row['iou']:7.1%}  {printable(row['label'])}" for row in figures["classes"][:MOST_SHOWN]]
        return "\n".join(lines)
    n = figures["num_labelled"]
    if "unlabelled" in figures:
        lines.append(f"not counted: {printable(figures['unlabelled'])}")
    accuracy = f"accuracy {figures['accuracy']:.1%} [{figures['low']:.1%}, {figures['high']:.1%}] of n = {n}"
    if "top_5_accuracy" in figures:
        accuracy += f", among the first five {figures['top_5_accuracy']:.1%}"
    lines += [
        accuracy,
        f"always naming the largest class would give {figures['largest_class_share']:.1%}",
        f"calibration error {figures['calibration_error']:.1%}, negative log-likelihood {figures['nll']:.3f}",
    ]
    if imperfect := [row for row in figures["classes"] if row["accuracy"] < 1]:
        lines.append("the classes with the lowest accuracy:")
        lines += [f"  {row['accuracy']:7.1%} of {row['n']:4d}  {printable(row['label'])}" for row in imperfect[:MOST_SHOWN]]
    if figures["confusions"]:
        lines += ["the most frequent mistakes:"]
        for row in figures["confusions"][:MOST_SHOWN]:
            lines.append(f"  {row['count']:4d} x {printable(row['label'])} taken for {printable(row['predicted'])}")
    return "\n".join(lines)
