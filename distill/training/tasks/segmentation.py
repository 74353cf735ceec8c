"""Semantic segmentation: one class per pixel."""

# B batch, H W image in pixels, K classes

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation, EvalPrediction

from distill.compress.teachers import load_segmenter
from distill.data.normalisation import Normalisation
from distill.data.targets import MASKS
from distill.data.transforms import IGNORED, BatchTransform, TransformSettings
from distill.errors import require
from distill.training.tasks.task import Metric, Objective, ObjectiveContext, Output, Panels, Task, pictures_of
from edge.device.palette import coloured, palette_of
from edge.device.segmentation import class_ious, mask_scores, mean_iou
from swin_hf import SwinHfConfig, SwinHfForSemanticSegmentation, SwinHfUperNetConfig
from swin_hf.configuration_swin_hf import named_classes
from swin_hf.segmentation_heads_swin_hf import resized
from swin_hf.segmentation_swin_hf import AUXILIARY_STAGE


class SemanticSegmentation(Objective):
    """The model's own loss, with class weights in its cross-entropy if there are any.

    takes_weights: whether the model itself takes class weights, as ours does.

    Predictions of an evaluation are confusion matrices (B, K, K), true classes in rows: it need not keep logits of all pixels.
    """

    def __init__(
        self,
        processor,
        class_names: list[str],
        transforms: TransformSettings,
        class_weights: torch.Tensor | None = None,
        takes_weights: bool = False,
    ):
        super().__init__()
        self.takes_weights = takes_weights
        self.normalise, self.transform = Normalisation(processor), BatchTransform(transforms)
        self.class_names = class_names
        self.register_buffer("class_weights", class_weights)

    def augment(self, pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(pixels, targets)

    def learn(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor, crops: np.ndarray | None = None) -> Output:
        own = self.class_weights is not None and self.takes_weights
        loss, logits = self._loss_and_logits(model, pixels, targets, {"class_weights": self.class_weights} if own else {})
        if self.class_weights is not None and not own:
            plain = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED)
            weighted = nn.functional.cross_entropy(logits, targets, weight=self.class_weights, ignore_index=IGNORED)
            loss = loss - plain + weighted  # keeps what an auxiliary head adds
        return Output(loss=loss, predictions=logits)

    def judge(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> Output:
        loss, logits = self._loss_and_logits(model, pixels, targets, {})
        return Output(loss=loss, predictions=self.count_pixels(logits.argmax(dim=1), targets))

    def _loss_and_logits(
        self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor, weights: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(pixel_values=self.normalise(pixels), labels=targets, **weights)
        return output.loss, resized(output.logits.float(), targets.shape[1:])

    def draw(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[Panels]:
        logits = model(pixel_values=self.normalise(pixels)).logits.float()
        predicted = resized(logits, targets.shape[1:]).argmax(dim=1)
        ious = [mean_iou(counts) for counts in self.count_pixels(predicted, targets).cpu().numpy()]
        palette = palette_of(len(self.class_names))

        def shown(classes: torch.Tensor) -> np.ndarray:
            return coloured(classes.numpy(), palette) / 255

        return [
            Panels(
                pictures=[picture, shown(mask), shown(guess)],
                caption=f"image, mask, prediction: mean IoU {iou:.2f}",
            )
            for picture, mask, guess, iou in zip(pictures_of(pixels), targets.cpu(), predicted.cpu(), ious)
        ]

    def count_pixels(self, predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Confusion matrices (B, K, K) from the classes of pixels (B, H, W)."""
        batch_size, num_classes = len(targets), len(self.class_names)
        known = targets != IGNORED
        cells = torch.where(known, targets * num_classes + predicted, num_classes**2).flatten(1)
        counts = torch.zeros(batch_size, num_classes**2 + 1, dtype=torch.int32, device=cells.device)
        counts.scatter_add_(1, cells, torch.ones_like(cells, dtype=torch.int32))
        return counts[:, :-1].view(batch_size, num_classes, num_classes)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Mean intersection over union of the classes, and the share of correct pixels."""
        return mask_scores(prediction.predictions.sum(axis=0, dtype=np.int64))

    def details(self, prediction: EvalPrediction) -> dict[str, dict[str, float]]:
        """The intersection over union of every class that occurs in masks or predictions."""
        ious = class_ious(prediction.predictions.sum(axis=0, dtype=np.int64))
        return {"iou_by_class": {name: float(iou) for name, iou in zip(self.class_names, ious) if not np.isnan(iou)}}


def segmenter_over(config: SwinHfConfig, class_names: list[str], head: dict[str, Any]) -> SwinHfForSemanticSegmentation:
    """A new segmenter on the feature maps of all stages of a Swin.

    head: fields of `SwinHfUperNetConfig`.

    Raises:
        SettingsError: there is no such field.
    """
    config.set_output_features_output_indices(out_features=config.stage_names[1:], out_indices=None)
    head = {"use_auxiliary_head": len(config.depths) > AUXILIARY_STAGE} | head
    unknown = set(head) - set(SwinHfUperNetConfig().to_dict())
    require(not unknown, "head_args", "be fields of SwinHfUperNetConfig", ", ".join(sorted(unknown)))
    return SwinHfForSemanticSegmentation(SwinHfUperNetConfig(backbone_config=config, **named_classes(class_names), **head))


def make_objective(context: ObjectiveContext) -> SemanticSegmentation:
    ours = isinstance(context.config, SwinHfUperNetConfig)
    return SemanticSegmentation(context.processor, context.class_names, context.transforms, context.class_weights, ours)


SEMANTIC_SEGMENTATION = Task(
    name="semantic-segmentation",
    auto_class=AutoModelForSemanticSegmentation,
    targets=MASKS,
    make_objective=make_objective,
    judged_by=(Metric(name="mean_iou", shown_as="validation mIoU"), Metric(name="pixel_accuracy")),
    load_teacher=load_segmenter,
    pipeline_tag="image-segmentation",
    over_backbone=segmenter_over,
)
