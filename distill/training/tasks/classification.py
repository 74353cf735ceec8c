"""Image classification: one class per image."""

# B batch, H W image in pixels, K classes

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForImageClassification, EvalPrediction

from distill.compress.teachers import load_classifier
from distill.data.examples import UNKNOWN
from distill.data.normalisation import Normalisation
from distill.data.targets import CLASSES
from distill.data.transforms import BatchMix, BatchTransform, TransformSettings
from distill.training.tasks.task import Metric, Objective, ObjectiveContext, Output, Panels, Task, pictures_of
from edge.device.scores import calibration_error
from edge.device.temperature import fit_temperature


class ImageClassification(Objective):
    """Cross-entropy with smoothed and mixed labels; in evaluation with the plain label."""

    is_calibrated = True

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

    def augment(self, pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Classes (B,) become probabilities (B, K), which are mixed together with the images; those of `UNKNOWN` are 0."""
        known = (targets != UNKNOWN).unsqueeze(1)
        probabilities = nn.functional.one_hot(targets.clamp(min=0), len(self.class_names)) * known
        return self.mix(self.transform(pixels), probabilities.to(pixels.dtype))

    def learn(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor, crops: np.ndarray | None = None) -> Output:
        logits = model(pixel_values=self.normalise(pixels)).logits
        smoothing, weight = self.label_smoothing, self.class_weights
        if targets.is_floating_point():  # PyTorch would smooth the zeros of unknown classes too
            even = targets.sum(dim=1, keepdim=True) / targets.shape[1]
            targets, smoothing = targets.lerp(even, smoothing), 0.0
        loss = nn.functional.cross_entropy(logits.float(), targets, weight=weight, label_smoothing=smoothing)
        return Output(loss=loss, predictions=logits)

    def judge(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> Output:
        logits = model(pixel_values=self.normalise(pixels)).logits
        return Output(loss=nn.functional.cross_entropy(logits.float(), targets), predictions=logits)

    def draw(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[Panels]:
        confidence, predicted = model(pixel_values=self.normalise(pixels)).logits.float().softmax(dim=1).max(dim=1)
        panels = []
        for picture, guess, sure, label in zip(pictures_of(pixels), predicted.tolist(), confidence.tolist(), targets.tolist()):
            caption = f"{self.class_names[guess]} {sure:.0%}" + ("" if guess == label else f", is {self.class_names[label]}")
            panels.append(Panels(pictures=[picture], caption=caption, right=guess == label))
        return panels

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Top-1 and top-5 accuracy, the accuracy of the worst class, and the expected calibration error."""
        logits, labels = torch.as_tensor(prediction.predictions).float(), torch.as_tensor(prediction.label_ids)
        right = (logits.argmax(dim=1) == labels).double()
        top5 = {}
        if logits.shape[1] > 5:  # of five classes, the right one is always among the first five
            first = logits.topk(5, dim=1).indices
            top5 = {"top5_accuracy": float((first == labels[:, None]).any(dim=1).double().mean())}
        return {
            "accuracy": float(right.mean()),
            **top5,
            "worst_class_accuracy": min(self.details(prediction)["accuracy_by_class"].values()),
            "calibration_error": calibration_error(logits.softmax(dim=1).numpy(), labels.numpy()),
        }

    def details(self, prediction: EvalPrediction) -> dict[str, dict[str, float]]:
        """The accuracy of every class that occurs in the images."""
        right, labels = prediction.predictions.argmax(axis=1) == prediction.label_ids, prediction.label_ids
        return {
            "accuracy_by_class": {self.class_names[label]: float(right[labels == label].mean()) for label in np.unique(labels)}
        }

    def calibrate(self, prediction: EvalPrediction) -> dict[str, float]:
        """The temperature of the logits."""
        return {"calibration_temperature": fit_temperature(prediction.predictions, prediction.label_ids)}


def make_objective(context: ObjectiveContext) -> ImageClassification:
    return ImageClassification(
        context.processor, context.class_names, context.transforms, context.label_smoothing, context.class_weights
    )


IMAGE_CLASSIFICATION = Task(
    name="image-classification",
    auto_class=AutoModelForImageClassification,
    targets=CLASSES,
    make_objective=make_objective,
    judged_by=(
        Metric(name="accuracy", shown_as="validation"),
        Metric(name="top5_accuracy", fewest_classes=6),
        Metric(name="worst_class_accuracy"),
        Metric(name="calibration_error", higher_is_better=False),
    ),
    load_teacher=load_classifier,
    pipeline_tag="image-classification",
)
