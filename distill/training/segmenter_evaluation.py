"""How good a segmenter is: mean IoU on images at their own size, as on ADE20K (Zhou et al. 2017, arXiv:1608.05442)."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from distill.compress.teachers import Segmenter, load_segmenter
from distill.data.finding import find_images
from distill.data.sources import SPLITS
from distill.data.splits import ImageSettings, prepare_splits
from distill.data.targets import MASKS
from distill.data.transforms import IGNORED
from distill.errors import SettingsError, require
from distill.training.command_line import CommandLine
from distill.training.settings import CONFIG_DIR
from edge.device.image import UnreadableImageError
from edge.device.segmentation import class_ious, confusion_of, mask_scores
from swin_hf.dense_inference import class_probabilities

EVALUATED = (*SPLITS, "all")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is evaluated, and how it looks at the images."""

    heading = "evaluation"

    model: str = field(default="", metadata={"help": "A checkpoint folder or a Hub id of a segmenter."})
    split: str = field(default="test", metadata={"help": f"One of {', '.join(EVALUATED)}; as a training would divide them."})
    shorter_side: int = field(
        default=0,
        metadata={"help": "Resize images to this shorter side, in pixels. Default: to the size of the model's processor."},
    )
    window: int = field(default=0, metadata={"help": "Look at square windows of this side, in pixels. Default: the image."})
    stride: int = field(default=0, metadata={"help": "Pixels between windows. Default: 2/3 of the window."})
    scales: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Take the mean over these scales."})
    flip: bool = field(default=False, metadata={"help": "Take the mean with the mirror image."})
    device: str = field(default="", metadata={"help": "cpu, cuda, .. Default: a GPU, if there is one."})

    def __post_init__(self):
        require(bool(self.model), "model", "name a checkpoint folder or a Hub id of a segmenter", "nothing")
        require(self.split in EVALUATED, "split", f"be one of {', '.join(EVALUATED)}", self.split)
        for name in ("shorter_side", "window", "stride"):
            require(getattr(self, name) >= 0, name, "be 0 or more", getattr(self, name))
        require(self.stride <= self.window, "stride", "come with a --window that is no smaller", self.stride)
        require(bool(self.scales) and min(self.scales) > 0, "scales", "be positive", self.scales)

    @property
    def window_size(self) -> tuple[int, int] | None:
        return (self.window, self.window) if self.window else None

    @property
    def stride_size(self) -> tuple[int, int] | None:
        return (self.stride, self.stride) if self.stride else None


def parse_evaluation_settings(argv: list[str] | None = None) -> tuple[EvaluationSettings, ImageSettings]:
    """Read the command line.

    Raises:
        SettingsError: unknown key, wrong type, or a value out of range.
    """
    command_line = CommandLine(
        program="python scripts/evaluate_segmenter.py",
        description="Mean IoU of a segmenter on images with masks, each at its own size.",
        folder=CONFIG_DIR,
        parts=[EvaluationSettings, ImageSettings],
    )
    settings, images = command_line.parse(argv)
    return settings, images


def evaluate_segmenter(settings: EvaluationSettings, images: ImageSettings) -> dict[str, float | int | dict[str, float]]:
    """Mean IoU, pixel accuracy and the IoU of each class that occurs.

    Raises:
        DataError: there are no images with masks.
        TeacherError: the checkpoint is no segmenter of their classes.
        SettingsError: the data set was not named, or is streamed.
    """
    images.require_dataset()
    if images.streaming:
        raise SettingsError("--streaming must be false for an evaluation, which looks at images once")
    found = find_images(images.dataset, MASKS, Path(images.class_names) if images.class_names else None)
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    segmenter = load_segmenter(settings.model, found.class_names).to(device)
    with tempfile.TemporaryDirectory() as folder:
        splits = prepare_splits(found, images, Path(folder) / "data.json", known=False)
    chosen = splits if settings.split == "all" else {settings.split: splits[settings.split]}
    examples, num_classes = [example for own in chosen.values() for example in own], len(found.class_names)
    confusion, unreadable = np.zeros((num_classes, num_classes), np.int64), 0
    for example in tqdm(examples, desc="images", disable=None):
        try:
            image, mask = example.source.load(), np.asarray(example.load_mask())
        except UnreadableImageError:
            unreadable += 1
            continue
        confusion += confusion_of(class_map(segmenter, image, settings), mask, num_classes, IGNORED)
    ious = class_ious(confusion)
    return {
        **mask_scores(confusion),
        "num_images": len(examples) - unreadable,
        "iou_by_class": {name: float(iou) for name, iou in zip(found.class_names, ious) if not np.isnan(iou)},
    }


def class_map(segmenter: Segmenter, image: Image.Image, settings: EvaluationSettings) -> np.ndarray:
    """The class of each pixel (H, W) of an image, at its own size, in the order of the data's classes."""
    height, width = segmenter.size
    if settings.shorter_side:
        ratio = settings.shorter_side / min(image.size)
        height, width = (max(round(side * ratio), 1) for side in (image.height, image.width))
    shown = image.resize((width, height), Image.Resampling.BICUBIC) if image.size != (width, height) else image
    pixels = torch.from_numpy(np.asarray(shown)).permute(2, 0, 1)[None].float() / 255
    model = segmenter.model
    normalised = segmenter.normalise(pixels.to(model.device)).to(model.dtype)
    probabilities = class_probabilities(
        model, normalised, settings.window_size, settings.stride_size, tuple(settings.scales), settings.flip
    )
    own_size = torch.nn.functional.interpolate(probabilities, size=(image.height, image.width), mode="bilinear")
    ordered = own_size if segmenter.class_order is None else own_size[:, segmenter.class_order]
    return ordered.argmax(dim=1)[0].cpu().numpy()
