"""Whether an image processor makes what a model takes: tried on a small image, since its settings come from anywhere."""

# B batch, H W image in pixels

from PIL import Image
from transformers import BaseImageProcessor

from .errors import in_one_line
from .image_processing_swin_hf import IMAGE_CHANNELS
from .weight_files import ConversionError

LARGEST_SIDE = 16384  # pixels: larger than the input of any model
TRIED_SIZE = (40, 48)  # (height, width) in pixels


def require_working_processor(
    processor: BaseImageProcessor, num_channels: int, where: object, error_class: type[Exception] = ConversionError
) -> None:
    """Check that a processor makes finite `pixel_values` (B, num_channels, H, W).

    where: the checkpoint, for messages.

    Raises:
        error_class: it does not; the message says what came instead.
    """
    if num_channels not in IMAGE_CHANNELS:
        raise error_class(
            f"{where}: num_channels must be 3 (RGB) or 1 (greyscale) to have an image processor, got {num_channels}; load the "
            "model alone, with from_pretrained, and prepare its input yourself"
        )
    for name in ("size", "crop_size", "pad_size"):
        sides = [side for side in dict(getattr(processor, name, None) or {}).values() if side is not None]
        if any(not isinstance(side, int) or not 0 < side <= LARGEST_SIDE for side in sides):
            raise error_class(
                f"{where}: {name} must be pixels from 1 to {LARGEST_SIDE}, got {sides}; correct its image processor"
            )
    image = Image.linear_gradient("L").resize(TRIED_SIZE[::-1])
    try:
        pixel_values = processor(image if num_channels == 1 else image.convert("RGB"), return_tensors="pt")["pixel_values"]
    except Exception as error:  # settings of a wrong type make transformers, NumPy or Pillow raise anything
        raise error_class(f"{where} has an impossible image processor: {in_one_line(error)}") from error
    shape = tuple(pixel_values.shape)
    if pixel_values.ndim != 4 or shape[1] != num_channels or not pixel_values.isfinite().all():
        kind = "numbers" if pixel_values.isfinite().all() else "numbers that are not finite"
        raise error_class(
            f"{where} must have an image processor that makes finite numbers (B, {num_channels}, H, W), got {kind} {shape}; "
            "correct its size, image_mean and image_std"
        )


def for_channels(values, num_channels: int):
    """Means or deviations of an image processor, one for each channel; as they are if they are anything else.

    For greyscale, those of RGB become their mean.
    """
    if not isinstance(values, list | tuple) or not all(isinstance(value, int | float) for value in values):
        return values
    if len(values) == 1:
        return list(values) * num_channels
    return [sum(values) / len(values)] if num_channels == 1 and len(values) == 3 else values
