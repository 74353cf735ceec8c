"""Teachers, classifiers of images or pixels, each with its own resizing and normalisation of what a student gets."""

# B batch, H W image in pixels

import itertools
import math
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)

from distill.compress.feature_maps import WithMaps
from distill.data.normalisation import Normalisation, channels_of
from distill.precision import computes_in_bfloat16
from distill.published import loadable, why_not_loaded
from edge.device.errors import ExplainedError
from edge.device.names import plain
from swin_hf.configuration_swin_hf import class_names as names_of_classes
from swin_hf.weight_files import not_finite
from swin_hf.working_processor import require_working_processor


class TeacherError(ExplainedError):
    """A checkpoint cannot be a teacher for these classes; the message says why."""


class Classifier(nn.Module):
    """A classifier with its own preprocessing: pixels in [0, 1] of any size to logits in the order of the data's classes.

    Teacher and student get the same augmented pixels; each resizes and normalises them as its own processor does.
    """

    def __init__(self, model: PreTrainedModel, processor, class_order: list[int] | None = None):
        super().__init__()
        self.model = model
        self.processor = processor
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        self.size = (size.height or size.shortest_edge, size.width or size.shortest_edge)
        self.class_order = class_order
        self.normalise = Normalisation(processor)

    @property
    def class_names(self) -> list[str]:
        """The names of the model's classes, in the order of its own logits."""
        return distinct_names(self.model.config)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.ordered(self.model(pixel_values=self.pixel_values(pixels)).logits, pixels)

    def with_maps(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits, and the feature maps (B, C, h, w) of each resolution.

        Raises:
            FeatureError: the model has none.
        """
        model = WithMaps(self.model)
        return self.ordered(model(pixel_values=self.pixel_values(pixels)).logits, pixels), model.maps

    def hasten(self, device: torch.device) -> "Classifier":
        """Compute in bfloat16 on a GPU that does so itself, and channels last on a CPU; returns itself."""
        if computes_in_bfloat16(device.type):
            self.model.to(torch.bfloat16)
        if device.type == "cpu":
            self.model.to(memory_format=torch.channels_last)
        return self

    def pixel_values(self, pixels: torch.Tensor) -> torch.Tensor:
        """The model's input for pixels in [0, 1], in the type of its weights."""
        if tuple(pixels.shape[2:]) != self.size:
            pixels = nn.functional.interpolate(pixels, size=self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.normalise(pixels).to(self.model.dtype)

    def ordered(self, logits: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """The model's logits for pixels, in the order of the data's classes."""
        return (logits if self.class_order is None else logits[:, self.class_order]).float()


class Segmenter(Classifier):
    """A classifier of pixels: logits (B, K, H, W) for pixels (B, 3, H, W)."""

    def ordered(self, logits: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        ordered = super().ordered(logits, pixels)
        if ordered.shape[2:] == pixels.shape[2:]:
            return ordered
        return nn.functional.interpolate(ordered, pixels.shape[2:], mode="bilinear", align_corners=False)


class Teachers(nn.Module):
    """Several classifiers as one, whose probabilities are the mean of theirs; its logits are their logarithms."""

    def __init__(self, classifiers: list[Classifier]):
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)

    def hasten(self, device: torch.device) -> "Teachers":
        """`Classifier.hasten` for each; returns itself."""
        for classifier in self.classifiers:
            classifier.hasten(device)
        return self

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return mean_of([classifier(pixels) for classifier in self.classifiers])

    def with_maps(self, pixels: torch.Tensor) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """Logits and feature maps of each classifier.

        Raises:
            FeatureError: one has no maps.
        """
        logits, maps = zip(*(classifier.with_maps(pixels) for classifier in self.classifiers))
        return list(logits), list(maps)


def mean_of(logits: list[torch.Tensor]) -> torch.Tensor:
    """Logits (B, K) or (B, K, H, W) whose probabilities are the mean of those of several logits."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([own.log_softmax(dim=1) for own in logits]).logsumexp(dim=0) - math.log(len(logits))


def load_classifier(checkpoint: str | Path, class_names: list[str] | None) -> Classifier:
    """Load an image classifier from a folder or the Hub, its outputs in the order of `class_names`, or in its own for None.

    Raises:
        TeacherError: the checkpoint cannot be loaded, or its classes differ from the data's.
    """
    return _load(checkpoint, class_names, AutoModelForImageClassification, Classifier, "an image classifier")


def load_segmenter(checkpoint: str | Path, class_names: list[str] | None) -> Segmenter:
    """Load a model for semantic segmentation, like `load_classifier`.

    Raises:
        TeacherError: the checkpoint cannot be loaded, or its classes differ from the data's.
    """
    return _load(checkpoint, class_names, AutoModelForSemanticSegmentation, Segmenter, "a model for semantic segmentation")


def _load(
    checkpoint: str | Path, class_names: list[str] | None, auto_class: type, kind: type[Classifier], what: str
) -> Classifier:
    try:
        source = loadable(str(checkpoint))
        config = AutoConfig.from_pretrained(source)
        model, report = auto_class.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        taken = getattr(getattr(config, "backbone_config", None) or config, "num_channels", 3)
        made = channels_of(processor)
    except Exception as error:  # on values of a wrong type and damaged weights transformers and PyTorch raise anything
        raise TeacherError(
            f"{checkpoint} must be a checkpoint folder or Hub id of {what}: {why_not_loaded(checkpoint, error)}"
        ) from error
    model.config.return_dict = True
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise TeacherError(f"{checkpoint} lacks weights of {type(model).__name__}: {', '.join(missing[:5])}")
    if bad := not_finite(model.state_dict()):
        raise TeacherError(f"{checkpoint} must hold finite weights, got {bad}; take an earlier checkpoint of this model")
    if taken != made or taken not in (1, 3):
        raise TeacherError(
            f"{checkpoint} must take the images that its processor makes, of 3 channels or 1, got {taken} and {made}; correct "
            "num_channels, image_mean and image_std in its preprocessor_config.json"
        )
    require_working_processor(processor, taken, checkpoint, TeacherError)
    if not (processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size):
        raise TeacherError(
            f"{checkpoint} must have an image processor with a size, got none; correct preprocessor_config.json"
        )
    order = _class_order(config, class_names, checkpoint)
    return kind(model, processor, order).eval().requires_grad_(False)


def knows_classes(checkpoint: str | Path, class_names: list[str]) -> bool:
    """Whether a checkpoint is an image classifier of exactly these classes, in any order.

    Raises:
        TeacherError: there is no such checkpoint.
    """
    try:
        config = AutoConfig.from_pretrained(loadable(str(checkpoint)))
        _class_order(config, class_names, checkpoint)
    except TeacherError:
        return False
    except Exception as error:  # on values of a wrong type transformers raises anything
        raise TeacherError(
            f"{checkpoint} must be a checkpoint folder or Hub id: {why_not_loaded(checkpoint, error)}"
        ) from error
    return any(name.endswith("ForImageClassification") for name in config.architectures or [])


def distinct_names(config: PreTrainedConfig) -> list[str]:
    """The names of a classifier's classes; of several of one name, such as the two cranes of ImageNet, the later are numbered.

    Raises:
        ValueError: `id2label` does not name the classes.
    """
    names: list[str] = []
    for name in map(plain, names_of_classes(config)):
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        names.append(name if name not in names else next(own for own in numbered if own not in names))
    return names


def _class_order(config: PreTrainedConfig, class_names: list[str] | None, checkpoint: str | Path) -> list[int] | None:
    """The index of each of the data's classes in the model's output; None if the order is the same, or any will do."""
    try:
        model_names = distinct_names(config)
    except ValueError as error:
        raise TeacherError(f"{checkpoint}: {error}") from error
    if class_names is None:
        return None
    unnamed = model_names == [f"LABEL_{index}" for index in range(len(model_names))]
    if model_names == class_names or (unnamed and len(model_names) == len(class_names)):
        return None
    if sorted(model_names) == sorted(class_names):
        return [model_names.index(name) for name in class_names]
    raise TeacherError(
        f"{checkpoint} knows {len(model_names)} classes ({', '.join(model_names[:5])}, ...), the data has {len(class_names)} "
        f"({', '.join(class_names[:5])}, ...); fine-tune it on these classes first, or learn from its features alone with "
        "--kd_loss none --feature_loss hints"
    )
