"""What is learned from a batch: classes of images or of pixels, or images from their unmasked parts."""

# B batch, H W image in pixels, K classes, P patches

import colorsys
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction

from distill.compress.teachers import Normalisation
from distill.data.transforms import IGNORED, BatchMix, BatchTransform
from distill.training.settings import TaskSettings, TransformSettings

NUM_CALIBRATION_BINS = 15
GOLDEN_RATIO = 0.618034


@dataclass(frozen=True, kw_only=True)
class TaskOutput:
    """loss: what is minimised. predictions: one row per image, for `metrics`. parts: of the loss, by name, to be logged."""

    loss: torch.Tensor
    predictions: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Panels:
    """Pictures (H, W, 3) in [0, 1] of one image and what was predicted for it; `right`: whether that is true."""

    pictures: list[np.ndarray]
    caption: str
    right: bool = True


class Task(nn.Module, ABC):
    """What a model learns from a batch of pixels (B, 3, H, W) in [0, 1] and targets, and how it is judged.

    metric_names: the figures of `metrics`, first the one by which the best checkpoint is told.
    """

    metric_names: tuple[str, ...]

    @abstractmethod
    def forward(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> TaskOutput:
        """Augmented if the model is in training mode."""

    @abstractmethod
    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Figures of an evaluation."""

    def details(self, prediction: EvalPrediction) -> dict[str, dict[str, float]]:
        """Figures of parts of an evaluation."""
        return {}

    def draw(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[Panels]:
        """What the model predicts for each image, as pictures; none by default."""
        return []


class ImageClassification(Task):
    """Cross-entropy with smoothed, mixed labels; in evaluation against the label as it is."""

    metric_names = ("accuracy", "top5_accuracy", "worst_class_accuracy", "calibration_error")

    def __init__(
        self,
        processor,
        class_names: list[str],
        transforms: TransformSettings,
        label_smoothing: float = 0.0,
        class_weights: torch.Tensor | None = None,
    ):
        super().__init__()
        self.normalise = Normalisation(processor)
        self.class_names, self.label_smoothing = class_names, label_smoothing
        self.transform, self.mix = BatchTransform(transforms), BatchMix(transforms)
        self.register_buffer("class_weights", class_weights)

    def forward(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> TaskOutput:
        if not model.training:
            logits = model(pixel_values=self.normalise(pixels)).logits
            return TaskOutput(loss=nn.functional.cross_entropy(logits.float(), targets), predictions=logits)
        probabilities = nn.functional.one_hot(targets, len(self.class_names)).to(pixels.dtype)
        pixels, probabilities = self.mix(self.transform(pixels), probabilities)
        logits = model(pixel_values=self.normalise(pixels)).logits
        smoothing, weight = self.label_smoothing, self.class_weights
        loss = nn.functional.cross_entropy(logits.float(), probabilities, weight=weight, label_smoothing=smoothing)
        return TaskOutput(loss=loss, predictions=logits)

    def draw(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[Panels]:
        confidence, predicted = model(pixel_values=self.normalise(pixels)).logits.float().softmax(dim=1).max(dim=1)
        panels = []
        for picture, guess, sure, label in zip(_pictures(pixels), predicted.tolist(), confidence.tolist(), targets.tolist()):
            caption = f"{self.class_names[guess]} {sure:.0%}" + ("" if guess == label else f", is {self.class_names[label]}")
            panels.append(Panels(pictures=[picture], caption=caption, right=guess == label))
        return panels

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Top-1 and top-5 accuracy, the worst class's, and the expected calibration error.

        Guo et al. 2017, arXiv:1706.04599, equation 3, with 15 bins.
        """
        logits, labels = torch.as_tensor(prediction.predictions).float(), torch.as_tensor(prediction.label_ids)
        probabilities = logits.softmax(dim=1)
        confidence, predicted = probabilities.max(dim=1)
        right = (predicted == labels).double()
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
        bins = (confidence * NUM_CALIBRATION_BINS).long().clamp(max=NUM_CALIBRATION_BINS - 1)
        gap = torch.zeros(NUM_CALIBRATION_BINS, dtype=torch.float64).index_add(0, bins, right - confidence.double())
        return {
            "accuracy": float(right.mean()),
            "top5_accuracy": float((top5 == labels[:, None]).any(dim=1).double().mean()),
            "worst_class_accuracy": min(self.details(prediction)["accuracy_by_class"].values()),
            "calibration_error": float(gap.abs().sum() / len(labels)),
        }

    def details(self, prediction: EvalPrediction) -> dict[str, dict[str, float]]:
        """The accuracy of every class that was evaluated."""
        right, labels = prediction.predictions.argmax(axis=1) == prediction.label_ids, prediction.label_ids
        return {
            "accuracy_by_class": {self.class_names[label]: float(right[labels == label].mean()) for label in np.unique(labels)}
        }


def _pictures(pixels: torch.Tensor) -> np.ndarray:
    """Images (B, 3, H, W) as (B, H, W, 3)."""
    return pixels.permute(0, 2, 3, 1).float().cpu().numpy()


def _at_size(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Logits (B, K, h, w) at (height, width), which some models give themselves."""
    if logits.shape[2:] == size:
        return logits
    return nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def class_colours(num_classes: int) -> np.ndarray:
    """A colour for each number of a mask (256, 3): 0, often the background, dark, the others hues far apart, no class grey."""
    colours = np.full((IGNORED + 1, 3), 0.5)
    colours[0] = 0.1
    for number in range(1, num_classes):
        colours[number] = colorsys.hsv_to_rgb(number * GOLDEN_RATIO % 1, 0.65, 0.95)
    return colours


def class_ious(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union (Jaccard 1912) of each class from a confusion matrix (K, K); NaN for one that is nowhere."""
    intersection = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """The mean over the classes that are in masks or predictions; 0 if there are none."""
    ious = class_ious(confusion)
    return float(np.nanmean(ious)) if not np.isnan(ious).all() else 0.0


class SemanticSegmentation(Task):
    """The model's own loss, its cross-entropy perhaps with weights of the classes.

    Predictions of an evaluation are confusion matrices (B, K, K), true classes in rows: it need not keep logits of all pixels.
    """

    metric_names = ("mean_iou", "pixel_accuracy")

    def __init__(
        self,
        processor,
        class_names: list[str],
        transforms: TransformSettings,
        class_weights: torch.Tensor | None = None,
    ):
        super().__init__()
        self.normalise, self.transform = Normalisation(processor), BatchTransform(transforms)
        self.class_names = class_names
        self.register_buffer("class_weights", class_weights)

    def forward(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> TaskOutput:
        if model.training:
            pixels, targets = self.transform(pixels, targets)
        output = model(pixel_values=self.normalise(pixels), labels=targets)
        logits, loss = _at_size(output.logits.float(), targets.shape[1:]), output.loss
        if not model.training:
            return TaskOutput(loss=loss, predictions=self.count_pixels(logits.argmax(dim=1), targets))
        if self.class_weights is not None:
            plain = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED)
            weighted = nn.functional.cross_entropy(logits, targets, weight=self.class_weights, ignore_index=IGNORED)
            loss = loss - plain + weighted  # what an auxiliary head adds stays
        return TaskOutput(loss=loss, predictions=logits)

    def draw(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[Panels]:
        logits = model(pixel_values=self.normalise(pixels)).logits.float()
        predicted = _at_size(logits, targets.shape[1:]).argmax(dim=1)
        ious = [mean_iou(counts) for counts in self.count_pixels(predicted, targets).cpu().numpy()]
        colours = class_colours(len(self.class_names))
        return [
            Panels(pictures=[picture, colours[mask], colours[guess]], caption=f"image, mask, prediction: mean IoU {iou:.2f}")
            for picture, mask, guess, iou in zip(_pictures(pixels), targets.cpu(), predicted.cpu(), ious)
        ]

    def count_pixels(self, predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Confusion matrices (B, K, K) of classes of pixels (B, H, W)."""
        batch_size, num_classes = len(targets), len(self.class_names)
        known = targets != IGNORED
        cells = torch.where(known, targets * num_classes + predicted, num_classes**2).flatten(1)
        counts = torch.zeros(batch_size, num_classes**2 + 1, dtype=torch.int32, device=cells.device)
        counts.scatter_add_(1, cells, torch.ones_like(cells, dtype=torch.int32))
        return counts[:, :-1].view(batch_size, num_classes, num_classes)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Mean intersection over union of the classes, and the share of pixels that are right."""
        confusion = prediction.predictions.sum(axis=0, dtype=np.int64)
        return {
            "mean_iou": mean_iou(confusion),
            "pixel_accuracy": float(confusion.trace() / confusion.sum()),
        }

    def details(self, prediction: EvalPrediction) -> dict[str, dict[str, float]]:
        """The intersection over union of every class that is in masks or predictions."""
        ious = class_ious(prediction.predictions.sum(axis=0, dtype=np.int64))
        return {"iou_by_class": {name: float(iou) for name, iou in zip(self.class_names, ious) if not np.isnan(iou)}}


class MaskedImageModeling(Task):
    """SimMIM (Xie et al. 2022, arXiv:2111.09886): the pixels of masked squares from the rest of the image."""

    metric_names = ("reconstruction_error",)

    def __init__(self, processor, patch_size: int, settings: TaskSettings):
        super().__init__()
        self.normalise = Normalisation(processor)
        self.patch_size, self.settings = patch_size, settings

    def forward(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> TaskOutput:
        random = None if model.training else torch.Generator().manual_seed(0)  # evaluations mask the same squares
        masked = self.sample_mask(*pixels.shape[:1], *pixels.shape[2:], random).to(pixels.device)
        loss = model(pixel_values=self.normalise(pixels), bool_masked_pos=masked.flatten(1)).loss
        return TaskOutput(loss=loss, predictions=loss.repeat(len(pixels)))

    def draw(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[Panels]:
        masked = self.sample_mask(*pixels.shape[:1], *pixels.shape[2:], torch.Generator().manual_seed(0)).to(pixels.device)
        output = model(pixel_values=self.normalise(pixels), bool_masked_pos=masked.flatten(1))
        hidden = masked.repeat_interleave(self.patch_size, 1).repeat_interleave(self.patch_size, 2)[:, None]
        guessed = torch.where(hidden, self.normalise.undo(output.reconstruction.float()), pixels)
        rows = zip(_pictures(pixels), _pictures(pixels.masked_fill(hidden, 0.5)), _pictures(guessed))
        return [Panels(pictures=list(row), caption="image, what was seen, prediction") for row in rows]

    def sample_mask(self, batch_size: int, height: int, width: int, random: torch.Generator | None = None) -> torch.Tensor:
        """Masks (B, rows, columns) of patches, each with the same number of whole squares (section 3.2)."""
        side = self.settings.mask_patch_size
        rows, columns = height // side, width // side
        num_masked = math.ceil(self.settings.mask_share * rows * columns)
        order = torch.rand(batch_size, rows * columns, generator=random).argsort(dim=1)
        squares = (order.argsort(dim=1) < num_masked).view(batch_size, rows, columns)
        patches = side // self.patch_size
        return squares.repeat_interleave(patches, 1).repeat_interleave(patches, 2)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return {"reconstruction_error": float(np.mean(prediction.predictions))}
