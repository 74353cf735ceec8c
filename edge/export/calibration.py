"""What images must be to calibrate on: enough, different, and real."""

import numpy as np
from PIL import Image

from edge.device.labelled import LabelledImage
from edge.export.images import CalibrationError

MIN_CALIBRATION_IMAGES = 16
MAX_CALIBRATION_IMAGES = 32  # as many as in RepQ-ViT; histograms of all activations take their time
MIN_CORRELATION = 0.3  # of neighbouring pixels: photographs and scans have 0.8 and more, noise has none
MIN_DEVIATION = 1.0  # of the levels of an image, of 255


def require_real_images(images: list[LabelledImage], at_least: int, recipe: str) -> None:
    """Check that there are enough different images to find scales on, and that they are real images.

    Raises:
        CalibrationError: there are too few, or they are noise or of one colour.
    """
    distinct = len({image.image.tobytes() for image in images})
    if distinct < at_least:
        raise CalibrationError(
            f"recipe {recipe} needs at least {at_least} images to calibrate on, got {distinct} different ones; dataset must "
            "hold more"
        )
    correlations = [correlation for image in images if (correlation := neighbour_correlation(image.image)) is not None]
    if len(correlations) < len(images) / 2:
        raise CalibrationError("images to calibrate on must show something, most of these are of one colour")
    if float(np.median(correlations)) < MIN_CORRELATION:
        raise CalibrationError(
            f"images to calibrate on must be real ones, these are noise: neighbouring pixels correlate by "
            f"{np.median(correlations):.2f}, in photographs by 0.8 and more; scales found on noise do not fit real images"
        )


def neighbour_correlation(image: Image.Image) -> float | None:
    """Mean correlation of horizontally and vertically neighbouring pixels within channels; None for a plain image."""
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels - pixels.mean(axis=(0, 1))
    if pixels.std() < MIN_DEVIATION or min(pixels.shape[:2]) < 2:
        return None
    products = [(pixels[:, 1:] * pixels[:, :-1]).mean(), (pixels[1:] * pixels[:-1]).mean()]
    return float(np.mean(products) / pixels.var())
