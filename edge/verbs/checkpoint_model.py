"""A checkpoint as the commands see a program: pictures in, classes out."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from edge.device.explanation import heat
from edge.device.palette import palette_of
from edge.device.runner import NotFiniteError, Prediction, most_probable
from edge.device.segmentation import Segmentation, class_map_of
from edge.export.checkpoint import load_checkpoint, outputs_named
from swin_hf import SwinHfForImageClassification, SwinHfForSemanticSegmentation
from swin_hf.explain import as_seen
from swin_hf.explanations import class_maps


class CheckpointModel:
    """The model of a checkpoint folder with its image processor."""

    def __init__(self, folder: str | Path):
        """Load the checkpoint in `folder`.

        Raises:
            CheckpointError: it is missing, damaged, or not of ours.
        """
        self.folder = folder
        self.model, self.processor = load_checkpoint(Path(folder))
        self.labels = outputs_named(self.model)

    @property
    def is_classifier(self) -> bool:
        return isinstance(self.model, SwinHfForImageClassification)

    @property
    def is_segmenter(self) -> bool:
        return isinstance(self.model, SwinHfForSemanticSegmentation)

    @property
    def explains(self) -> bool:
        """Whether it can say what speaks for a class."""
        return self.is_classifier and isinstance(self.model.classifier, nn.Linear)

    @property
    def temperature(self) -> float:
        """By which logits are divided before the softmax."""
        return self.model.config.calibration_temperature

    @torch.no_grad()
    def logits_of(self, image: Image.Image) -> np.ndarray:
        """Logits (K,), or (K, h, w) of a segmenter.

        Raises:
            NotFiniteError: one is NaN or infinite.
        """
        logits = self.model(self._pixel_values(image)).logits[0].numpy()
        if not np.isfinite(logits).all():
            raise NotFiniteError(
                f"the outputs of the model in {self.folder} must be finite, got NaN or infinity; train it again"
            )
        return logits

    def classify(self, image: Image.Image, top_k: int = 5) -> list[Prediction]:
        """The `top_k` most probable classes, most probable first."""
        return most_probable(self.logits_of(image), self.temperature, self.labels, top_k)

    def segment(self, image: Image.Image) -> Segmentation:
        """The class of every pixel, at the size of the image."""
        class_map = class_map_of(self.logits_of(image), image.height, image.width)
        return Segmentation(class_map=class_map, labels=self.labels, palette=palette_of(len(self.labels)))

    def explain(self, image: Image.Image, label: str) -> Image.Image:
        """What speaks for a class, in red, and against it, in blue, over the image as the model sees it."""
        maps = class_maps(self.model, self._pixel_values(image))[0]
        return heat(maps[self.labels.index(label)].numpy(), as_seen(image, self.processor))

    def _pixel_values(self, image: Image.Image) -> torch.Tensor:
        return self.processor(image, return_tensors="pt")["pixel_values"]
