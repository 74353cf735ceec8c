"""Image processors of the Swin models: an image of any kind to normalised `pixel_values`."""

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.utils import is_torchvision_available


def to_eight_bits(image):
    """A PIL image of 16-bit, 32-bit or float grey levels as 8-bit grey; anything else as it came.

    Pillow's own conversion cuts everything above 255 off. Here 16-bit levels are divided by 257, and deeper or float
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


class SwinHfImageProcessingMixin:
    """What both backends share: ImageNet's mean and deviation, bicubic, three channels from an image of any kind."""

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def process_image(self, image, **kwargs):
        return super().process_image(to_eight_bits(image), **kwargs)

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """The class of each pixel, one integer tensor (height, width) for each image.

        outputs: of a segmentation model, with logits (batch, classes, height, width).
        target_sizes: (height, width) of each image, to which its logits are first enlarged; by default they are taken as is.

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
    """Resize, rescale to [0, 1] and normalise with Pillow and NumPy: the arithmetic that a phone or a board repeats.

    Takes PIL images of any mode, uint8 arrays and tensors, one or many; gives float32 `pixel_values`
    (batch, 3, height, width). Transparency is laid on white, deep grey levels keep their whole range.
    """


if is_torchvision_available():

    class SwinHfImageProcessor(SwinHfImageProcessingMixin, TorchvisionBackend):
        """The same on torchvision, batched and on any device."""

else:

    class SwinHfImageProcessor(SwinHfImageProcessorPil):
        """The same, on Pillow, since torchvision is not installed."""
