"""What the images of a program are like."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class InputView:
    """The input of a program.

    height, width: of the images, in pixels.
    image_mean, image_std: the normalisation that the model expects, for pixels in [0, 1]; it becomes part of the program.
    dtype: "float32" pixels in [0, 1], (B, channels, H, W), or "uint8" pixels in [0, 255], (B, H, W, channels).
    """

    batch_size: int = 1
    height: int
    width: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        if self.dtype == "uint8":
            return (self.batch_size, self.height, self.width, len(self.image_mean))
        return (self.batch_size, len(self.image_mean), self.height, self.width)

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the input's own values, (1, channels, 1, 1) each."""
        top = 255.0 if self.dtype == "uint8" else 1.0
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.image_mean, self.image_std))
        return mean.view(1, -1, 1, 1) * top, std.view(1, -1, 1, 1) * top
