"""The logits of a classifier or a program for images, and its size and cost."""

import numpy as np
import torch

from distill.compress.teachers import Classifier
from distill.data.examples import Example, to_tensor
from edge.compare import macs
from edge.device.runner import Runner


@torch.no_grad()
def classifier_logits(classifier: Classifier, examples: list[Example], batch_size: int = 64) -> np.ndarray:
    """Logits (n, K) of a classifier for images, without augmentation."""
    classifier.eval()
    rows = []
    for start in range(0, len(examples), batch_size):
        images = [to_tensor(example.source.load()) for example in examples[start : start + batch_size]]
        rows.append(classifier(torch.stack(images).float() / 255).numpy())
    return np.concatenate(rows)


def program_logits(runner: Runner, examples: list[Example]) -> np.ndarray:
    """Logits (n, K) of a program for images, without augmentation."""
    return np.stack([runner.logits(runner.manifest.input.pixel_values(example.source.load())) for example in examples])


def count_parameters(classifier: Classifier) -> int:
    """Number of parameters of the model."""
    return sum(parameter.numel() for parameter in classifier.model.parameters())


def count_macs(classifier: Classifier, image_size: int) -> int:
    """Multiply-accumulate operations for one image, as `edge.compare.macs` counts them."""
    return macs.count_macs(classifier, torch.zeros(1, 3, image_size, image_size))
