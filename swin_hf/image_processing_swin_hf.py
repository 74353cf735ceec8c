"""Image processors of the Swin models: images of any kind to normalised `pixel_values`, and outputs to predictions."""

# B batch, K classes, H W image or map in pixels

import math

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import convert_to_rgb, get_resize_output_image_size
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torchvision_available

from .auto_map_swin_hf import IMAGE_PROCESSORS

IMAGE_CHANNELS = (1, 3)  # of models that have an image processor
IGNORED_LABEL = 255  # of pixels that do not count, in 8-bit maps of classes


class SwinHfImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings in addition to those of every image processor of transformers.

    num_channels: that of the model: 3 for RGB, 1 for greyscale, to which colours are converted; mean and standard deviation
        have as many values, which by default are ImageNet's, or the means of these.
    crop_pct: share of each side of the resized image that a centre crop of `size` keeps: 0.875 in the protocol of ImageNet,
        0.9 for timm's Swins. None, the default, resizes to `size` without keeping the aspect ratio.
    do_reduce_labels: for maps whose classes are numbered from 1, with 0 for background that does not count (ADE20k): 0
        becomes 255, and every other number is reduced by one.
    """

    num_channels: int
    crop_pct: float | int | None
    do_reduce_labels: bool


def resized_to_crop(height: int, width: int, size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """Size (height, width) to which an image is resized so that a centre crop of `size` is `crop_pct` of its shorter side.

    height, width: of the image, in pixels. size: (height, width) of the crop.

    The rule of torchvision and timm: the shorter side is rounded down after the division, the longer one after scaling.
    """
    target_height, target_width = (math.floor(side / crop_pct) for side in size)
    if height * target_width <= width * target_height:
        return target_height, int(target_height * width / height)
    return int(target_width * height / width), target_width


def to_eight_bits(image):
    """A PIL image of 16-bit, 32-bit or float grey levels as 8-bit grey; anything else as it came.

    Pillow's own conversion clips everything above 255. Here 16-bit levels are divided by 257, and deeper or float
    levels are stretched from their own minimum and maximum.
    """
    if not isinstance(image, Image.Image) or not image.mode.startswith(("I", "F")):
        return image
    levels = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16") or (image.mode == "I" and levels.min() >= 0 and levels.max() <= 65535):
        levels = levels / 257
    else:
        span = levels.max() - levels.min()
        levels = (levels - levels.min()) * (255 / span if span else 0)
    return Image.fromarray(np.round(levels).astype(np.uint8))


def to_grey(image) -> Image.Image:
    """An 8-bit grey PIL image from one of any mode; transparent ones are laid on white.

    Raises:
        ValueError: it is no PIL image.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"images must be PIL images, or arrays of one channel, for num_channels 1, got {type(image).__name__}"
        )
    return Image.fromarray(convert_to_rgb(to_eight_bits(image), return_numpy=True)).convert("L")


def to_class_numbers(segmentation_map) -> torch.Tensor:
    """A map of classes, (H, W) or (1, H, W), as integers (H, W).

    Raises:
        ValueError: it has another shape, or numbers that are not integers.
    """
    numbers = np.asarray(segmentation_map)
    if numbers.ndim == 3 and 1 in (numbers.shape[0], numbers.shape[2]):
        numbers = numbers.squeeze(0 if numbers.shape[0] == 1 else 2)
    if numbers.ndim != 2 or (numbers.dtype.kind == "f" and (numbers != np.floor(numbers)).any()):
        raise ValueError(
            f"segmentation_maps must be integers (height, width), one map for each image, got {numbers.dtype} {numbers.shape}"
        )
    return torch.from_numpy(numbers.astype(np.int64))


def resize_to_nearest(numbers: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A map (H, W) resized by nearest neighbours."""
    levels = Image.fromarray(numbers.numpy().astype(np.int32))
    return torch.from_numpy(np.array(levels.resize((width, height), Image.Resampling.NEAREST), dtype=np.int64))


def crop_middle(numbers: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The centre crop of a map (H, W), which is first padded with 255 where it is smaller."""
    lacking = [max(side - own, 0) for side, own in zip((height, width), numbers.shape)]
    (above, below), (left, right) = ((math.ceil(pad / 2), pad // 2) for pad in lacking)
    padded = torch.nn.functional.pad(numbers, (left, right, above, below), value=IGNORED_LABEL)
    top, start = (padded.shape[0] - height) // 2, (padded.shape[1] - width) // 2
    return padded[top : top + height, start : start + width]


class SwinHfImageProcessingMixin:
    """What both backends share: mean and deviation of ImageNet, bicubic, RGB or greyscale from an image of any kind."""

    valid_kwargs = SwinHfImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    num_channels = 3
    crop_pct = None
    do_reduce_labels = False
    _auto_class = "AutoImageProcessor"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.num_channels not in IMAGE_CHANNELS:
            raise ValueError(f"num_channels must be 3 (RGB) or 1 (greyscale), got {self.num_channels}")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if self.num_channels == 1 and kwargs.get(name) is None:
                setattr(self, name, [round(float(np.mean(value)), 3)])
            elif isinstance(value, int | float):
                setattr(self, name, [float(value)] * self.num_channels)

    def preprocess(self, images, segmentation_maps=None, **kwargs) -> BatchFeature:
        """Prepare images, and maps of classes for them, for a model.

        images: PIL images of any mode, arrays or tensors, uint8 or float, channels first or last; one or a list.
        segmentation_maps: one for each image, (H, W) integers, as PIL images, arrays or tensors. They are resized
            by nearest neighbours and cropped with their image, and returned as `labels` (B, H, W), int64.

        Raises:
            ValueError: a setting is out of its range, or a map does not fit its image.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def to_dict(self) -> dict:
        settings = super().to_dict()
        if "auto_map" in settings:  # transformers writes the backend in use alone
            settings["auto_map"] = {"AutoImageProcessor": list(IMAGE_PROCESSORS)}
        return settings

    def process_image(self, image, num_channels: int = 3, do_convert_rgb: bool | None = None, **kwargs):
        is_grey_array = not isinstance(image, Image.Image) and 1 in np.shape(image)[::2]  # channels first or last
        if num_channels == 1 and do_convert_rgb and not is_grey_array:
            image = to_grey(image)
        do_convert_rgb = do_convert_rgb and num_channels == 3
        return super().process_image(to_eight_bits(image), do_convert_rgb=do_convert_rgb, **kwargs)

    def _validate_preprocess_kwargs(self, **kwargs):
        super()._validate_preprocess_kwargs(**kwargs)
        crop_pct, size, resample = kwargs["crop_pct"], kwargs["size"], kwargs["resample"]
        if not isinstance(resample, int | None) and not hasattr(resample, "value"):  # torchvision's filters are enumerated
            raise ValueError(f"resample must be the number of one of Pillow's filters, 0 to 5, got {resample!r}")
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct must lie in (0, 1], got {crop_pct}")
        if crop_pct is not None and not (size.height and size.width):
            raise ValueError(f"crop_pct needs a size with height and width, that of the crop, got {dict(size)}")

    def _preprocess_image_like_inputs(self, images, segmentation_maps=None, do_reduce_labels=False, **kwargs) -> BatchFeature:
        prepared = self._prepare_image_like_inputs(images, **kwargs)
        if segmentation_maps is None:
            return self._preprocess(prepared, **kwargs)
        tensor_type = kwargs.pop("return_tensors")
        if kwargs["do_pad"]:
            raise ValueError("do_pad cannot be used with segmentation_maps, which it does not pad; pad both beforehand")
        if not isinstance(segmentation_maps, (list, tuple)):
            several = getattr(segmentation_maps, "ndim", 2) == 3 and len(segmentation_maps) == len(prepared)
            segmentation_maps = list(segmentation_maps) if several else [segmentation_maps]
        maps = [to_class_numbers(own) for own in segmentation_maps]
        shapes = [tuple(image.shape[-2:]) for image in prepared]
        if shapes != [tuple(own.shape) for own in maps]:
            raise ValueError(
                f"segmentation_maps must be one for each image and of its size {shapes}, "
                f"got {[np.shape(own) for own in segmentation_maps]}"
            )
        labels = [self._prepare_labels(own, do_reduce_labels, **kwargs) for own in maps]
        batch = self._preprocess(prepared, return_tensors=None, **kwargs)
        return BatchFeature({**batch, "labels": labels}, tensor_type=tensor_type)

    def _preprocess(self, images, do_resize, size, resample, crop_pct=None, num_channels=3, **kwargs) -> BatchFeature:
        if do_resize and crop_pct is not None:
            images = [self._resize_and_crop(image, size, resample, crop_pct) for image in images]
            do_resize = False
        return super()._preprocess(images, do_resize=do_resize, size=size, resample=resample, **kwargs)

    def _resize_and_crop(self, image, size: SizeDict, resample, crop_pct: float):
        height, width = resized_to_crop(*image.shape[-2:], (size.height, size.width), crop_pct)
        return self.center_crop(self.resize(image, SizeDict(height=height, width=width), resample), size)

    def _prepare_labels(self, numbers: torch.Tensor, do_reduce_labels: bool, **kwargs) -> torch.Tensor:
        """A map of classes (H, W) through the steps of its image."""
        if do_reduce_labels:
            ignored = (numbers == 0) | (numbers == IGNORED_LABEL)
            numbers = torch.where(ignored, IGNORED_LABEL, numbers - 1)
        size, crop_pct = kwargs["size"], kwargs["crop_pct"]
        if kwargs["do_resize"] and crop_pct is not None:
            whole = resized_to_crop(*numbers.shape, (size.height, size.width), crop_pct)
            numbers = crop_middle(resize_to_nearest(numbers, *whole), size.height, size.width)
        elif kwargs["do_resize"]:
            numbers = resize_to_nearest(numbers, *self._resized(numbers.shape, size))
        if kwargs["do_center_crop"]:
            numbers = crop_middle(numbers, kwargs["crop_size"].height, kwargs["crop_size"].width)
        return numbers

    def _resized(self, shape: tuple[int, int], size: SizeDict) -> tuple[int, int]:
        if size.height and size.width:
            return size.height, size.width
        if size.shortest_edge and not size.longest_edge:
            like = np.empty((1, *shape), np.uint8)
            return get_resize_output_image_size(like, size.shortest_edge, False, input_data_format=ChannelDimension.FIRST)
        raise ValueError(f"segmentation_maps need a size with height and width or with shortest_edge, got {dict(size)}")

    def post_process_image_classification(
        self, outputs, config: PreTrainedConfig | None = None, top_k: int = 5
    ) -> list[list[dict[str, str | float]]]:
        """The most probable classes of each image, as `pipeline("image-classification")` returns them: `label` and `score`.

        outputs: of a classifier, with logits (B, K).
        config: the model's, for the names of the classes, the problem type, and the `calibration_temperature`, which the
            pipeline does not know; without it a label is the number of a class, and each image has one class.
        top_k: number of classes to return, at most K.
        """
        logits = outputs.logits.detach().float()
        problem_type, names = (config.problem_type, config.id2label) if config is not None else (None, None)
        if problem_type == "multi_label_classification" or (problem_type is None and logits.shape[1] == 1):
            scores = logits.sigmoid()
        else:
            temperature = getattr(config, "calibration_temperature", 1.0)
            scores = logits if problem_type == "regression" else (logits / temperature).softmax(dim=1)
        best = scores.topk(min(top_k, scores.shape[1]), dim=1)
        return [
            [{"label": names[k] if names else str(k), "score": score} for k, score in zip(classes, values)]
            for classes, values in zip(best.indices.tolist(), best.values.tolist())
        ]

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """The class of each pixel, one integer tensor (height, width) for each image.

        outputs: of a segmentation model, with logits (batch, classes, height, width).
        target_sizes: (height, width) of each image, to which its logits are first resized; by default they keep their size.

        Raises:
            ValueError: there is not one size for each image.
        """
        logits = outputs.logits
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        if len(target_sizes) != len(logits):
            raise ValueError(
                f"target_sizes must have one (height, width) for each of {len(logits)} images, got {target_sizes}"
            )
        return [
            torch.nn.functional.interpolate(own[None], tuple(size), mode="bilinear", align_corners=False)[0].argmax(dim=0)
            for own, size in zip(logits, target_sizes)
        ]


class SwinHfImageProcessorPil(SwinHfImageProcessingMixin, PilBackend):
    """Resize, rescale to [0, 1] and normalise with Pillow and NumPy: the same arithmetic as on a phone or a board.

    Takes PIL images of any mode, arrays and tensors, one or many; returns float32 `pixel_values` (batch, num_channels, height,
    width). Transparent images are laid on white; grey levels of more than 8 bits keep their whole range.
    """


if is_torchvision_available():

    class SwinHfImageProcessor(SwinHfImageProcessingMixin, TorchvisionBackend):
        """The same with torchvision, batched and on any device."""

else:

    class SwinHfImageProcessor(SwinHfImageProcessorPil):
        """The same with Pillow, since torchvision is not installed."""
