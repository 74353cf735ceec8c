"""Augmentation of training images: workers crop single images, and everything else runs on whole batches on the device."""

# B batch, H W image in pixels, K classes

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import kornia.augmentation as K
import numpy as np
import torch
from kornia.augmentation.auto import RandAugment
from kornia.constants import DataKey, Resample
from PIL import Image
from torch import nn

from distill.data.boxes import NO_BOX
from distill.errors import require

CROP_TRIALS = 10
IGNORED = 255  # the value of mask pixels that are ignored in training and evaluation


@dataclass(frozen=True, kw_only=True)
class TransformSettings:
    """Augmentation of the training images; the defaults are those of Swin on ImageNet (Liu et al. 2021, appendix A2.1).

    The exception is RandAugment, which is Kornia's: it draws its operations for a whole batch, and its colour operations
    change in one direction only, down below a magnitude of 15 and up above it.
    """

    heading = "augmentation"

    initial_image_size: int = field(
        default=0, metadata={"help": "Image size of the first epoch, from which it grows to --image_size; 0: no growth."}
    )
    crop_min_area: float = field(default=0.08, metadata={"help": "Smallest share of the image that a crop keeps; 1: no crop."})
    crop_max_aspect: float = field(default=4 / 3, metadata={"help": "Largest change of aspect ratio by a crop; 1: none."})
    horizontal_flip: float = field(default=0.5, metadata={"help": "Share of the images that are mirrored."})
    randaugment_ops: int = field(default=2, metadata={"help": "Operations of RandAugment on each batch; 0: none."})
    randaugment_magnitude: int = field(default=9, metadata={"help": "Strength of RandAugment, 1 to 29."})
    color_jitter: float = field(default=0.4, metadata={"help": "Largest change of brightness, contrast and saturation."})
    rotation_degrees: float = field(default=0.0, metadata={"help": "Largest rotation to either side, in degrees."})
    translate_share: float = field(default=0.0, metadata={"help": "Largest shift, as a share of the image side."})
    scale_share: float = field(default=0.0, metadata={"help": "Largest change of size, as a share."})
    shear_degrees: float = field(default=0.0, metadata={"help": "Largest shear to either side, in degrees."})
    random_erasing: float = field(default=0.25, metadata={"help": "Share of the images that lose a rectangle."})
    mixup_alpha: float = field(default=0.8, metadata={"help": "Parameter of mixup's beta distribution; 0: no mixup."})
    cutmix_alpha: float = field(default=1.0, metadata={"help": "Parameter of CutMix's beta distribution; 0: no CutMix."})
    mix_share: float = field(default=1.0, metadata={"help": "Share of the batches that are mixed."})
    repeated_augmentation: int = field(
        default=1, metadata={"help": "Times that each image is shown in an epoch, augmented differently each time."}
    )

    def __post_init__(self):
        require(self.initial_image_size >= 0, "initial_image_size", "not be negative", self.initial_image_size)
        require(0 < self.crop_min_area <= 1, "crop_min_area", "lie in (0, 1]", self.crop_min_area)
        require(self.crop_max_aspect >= 1, "crop_max_aspect", "be at least 1", self.crop_max_aspect)
        for name in ("horizontal_flip", "random_erasing", "mix_share", "translate_share", "color_jitter"):
            require(0 <= getattr(self, name) <= 1, name, "lie in [0, 1]", getattr(self, name))
        require(0 <= self.randaugment_ops <= 15, "randaugment_ops", "lie in [0, 15]", self.randaugment_ops)
        require(1 <= self.randaugment_magnitude <= 29, "randaugment_magnitude", "lie in [1, 29]", self.randaugment_magnitude)
        require(0 <= self.rotation_degrees <= 180, "rotation_degrees", "lie in [0, 180]", self.rotation_degrees)
        require(0 <= self.scale_share < 1, "scale_share", "lie in [0, 1)", self.scale_share)
        require(0 <= self.shear_degrees < 90, "shear_degrees", "lie in [0, 90)", self.shear_degrees)
        for name in ("mixup_alpha", "cutmix_alpha"):
            require(getattr(self, name) >= 0, name, "not be negative", getattr(self, name))
        require(self.repeated_augmentation >= 1, "repeated_augmentation", "be positive", self.repeated_augmentation)


@dataclass(frozen=True, kw_only=True)
class CropWindow:
    """A crop (left, top, right, bottom) of an image, to be resized to (width, height), and mirrored or not."""

    box: tuple[int, int, int, int]
    mirrored: bool
    size: tuple[int, int]


class RandomCrop:
    """Random resized crop (Szegedy et al. 2015, arXiv:1409.4842, section 6) and mirror of a PIL image and its mask.

    The crop depends only on (seed, epoch, number of the image), so that it does not matter which worker or process loads the
    image, or where a training was interrupted.

    num_epochs: epochs in which `initial_image_size` grows to `image_size`, in steps of `multiple` pixels.
    """

    resample = Image.Resampling.BICUBIC

    def __init__(self, settings: TransformSettings, image_size: int, seed: int, num_epochs: int = 1, multiple: int = 1):
        self.settings, self.image_size, self.seed = settings, image_size, seed
        self.num_epochs, self.multiple = num_epochs, multiple

    def __call__(
        self, image: Image.Image, epoch: int, number: int, mask: Image.Image | None = None
    ) -> tuple[Image.Image, Image.Image | None]:
        window = self.window(image.size, epoch, number)

        def cut(picture: Image.Image, resample: Image.Resampling) -> Image.Image:
            picture = picture.resize(window.size, resample, box=window.box)
            return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window.mirrored else picture

        return cut(image, self.resample), mask and cut(mask, Image.Resampling.NEAREST)

    def window(self, size: tuple[int, int], epoch: int, number: int) -> CropWindow:
        """What is cut out of an image of this (width, height)."""
        random = np.random.default_rng((self.seed, epoch, number))
        box = self.sample_box(*size, random)
        mirrored = random.random() < self.settings.horizontal_flip
        return CropWindow(box=box, mirrored=mirrored, size=(self.size_at(epoch),) * 2)

    def size_at(self, epoch: int) -> int:
        """Height and width in an epoch: progressive resolution (Tan and Le 2021, arXiv:2104.00298)."""
        first, last = self.settings.initial_image_size or self.image_size, self.image_size
        size = first + min(epoch / max(self.num_epochs - 1, 1), 1) * (last - first)
        return round(size / self.multiple) * self.multiple

    def sample_box(self, width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a crop; the whole image if none of ten trials fits."""
        least, most = math.log(1 / self.settings.crop_max_aspect), math.log(self.settings.crop_max_aspect)
        for _ in range(CROP_TRIALS):
            area, aspect, x, y = random.random(4).tolist()
            area = width * height * (self.settings.crop_min_area + area * (1 - self.settings.crop_min_area))
            aspect = math.exp(least + aspect * (most - least))
            crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                left, top = round(x * (width - crop_width)), round(y * (height - crop_height))
                return left, top, left + crop_width, top + crop_height
        return 0, 0, width, height


@contextmanager
def drawn_for(crops: np.ndarray, seed: int, device: torch.device) -> Iterator[None]:
    """Let the random numbers of a batch depend only on (seed, epoch, number of its first image), as those of a crop do.

    So they are the same again in another training with other models, or after it was interrupted.

    crops: (B, 2), epoch and number of each image.
    """
    own = np.random.SeedSequence((seed, *crops[0].tolist())).generate_state(1, np.uint64)[0]
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(int(own >> np.uint64(1)))  # which takes 63 bits
        yield


class BatchTransform(nn.Module):
    """Kornia's augmentations of images (B, 3, H, W) in [0, 1], and of masks (B, H, W) together with them.

    Random numbers come from PyTorch's global generator; see `drawn_for`. Mask pixels from outside the image, and erased ones,
    are `IGNORED`.
    """

    def __init__(self, settings: TransformSettings):
        super().__init__()
        steps: list[nn.Module] = []
        if settings.rotation_degrees or settings.translate_share or settings.scale_share or settings.shear_degrees:
            affine = K.RandomAffine(
                degrees=settings.rotation_degrees,
                translate=(settings.translate_share,) * 2,
                scale=(1 - settings.scale_share, 1 + settings.scale_share) if settings.scale_share else None,
                shear=settings.shear_degrees or None,
                padding_mode="border",
                p=1.0,
            )
            steps.append(affine)
        if settings.randaugment_ops:
            steps.append(RandAugment(n=settings.randaugment_ops, m=settings.randaugment_magnitude))
        elif settings.color_jitter:  # RandAugment has its own colour operations
            steps.append(K.ColorJitter(*[settings.color_jitter] * 3, p=0.8))
        if settings.random_erasing:
            steps.append(K.RandomErasing(p=settings.random_erasing))
        nearest = {DataKey.MASK: {"resample": Resample.NEAREST, "align_corners": None}}
        self.steps = K.AugmentationSequential(*steps, extra_args=nearest) if steps else None

    @torch.no_grad()
    def with_boxes(self, pixels: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, H, W) and the boxes (B, M, 5) in them, each a class and centre, width and height in shares.

        A box that was turned becomes the upright one around it, cut to the image; one that left it becomes no box.
        """
        if self.steps is None or not boxes.shape[1]:
            return (pixels if self.steps is None else self(pixels)), boxes
        size = torch.tensor([pixels.shape[3], pixels.shape[2]], device=boxes.device)
        whole = boxes.new_tensor([0.5, 0.5, 1.0, 1.0])  # in the place of no box, since Kornia wants boxes with an area
        places = torch.where(boxes[..., :1] < 0, whole, boxes[..., 1:])
        low, high = ((places[..., :2] + sign * places[..., 2:] / 2) * size for sign in (-1, 1))
        pixels, moved = self.steps(pixels, torch.cat([low, high], dim=2), data_keys=["input", "bbox_xyxy"])
        low, high = (moved[..., at : at + 2].clamp(min=0).minimum(size) / size for at in (0, 2))
        moved = torch.cat([boxes[..., :1], (low + high) / 2, high - low], dim=2)
        moved[(moved[..., 3:].amin(dim=2) <= 0) | (boxes[..., 0] < 0)] = float(NO_BOX)
        return pixels.clamp(0, 1), moved

    @torch.no_grad()
    def forward(
        self, pixels: torch.Tensor, masks: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.steps is None:
            return pixels if masks is None else (pixels, masks)
        if masks is None:
            return self.steps(pixels, data_keys=["input"]).clamp(0, 1)
        shifted = (masks[:, None] + 1) % (IGNORED + 1)  # Kornia fills with 0, which stands for IGNORED here
        pixels, shifted = self.steps(pixels, shifted.float(), data_keys=["input", "mask"])
        return pixels.clamp(0, 1), (shifted[:, 0].round().long() + IGNORED) % (IGNORED + 1)


class BatchMix(nn.Module):
    """Mixup (Zhang et al. 2018, arXiv:1710.09412) or CutMix (Yun et al. 2019, arXiv:1905.04899) of a batch with itself.

    Each image is mixed with the one at the mirrored position of the batch; all pairs of a batch use the same share.
    """

    def __init__(self, settings: TransformSettings):
        super().__init__()
        self.settings = settings

    def forward(self, pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (B, 3, H, W) and class probabilities (B, K), both mixed."""
        settings = self.settings
        kinds = [alpha for alpha in (settings.mixup_alpha, settings.cutmix_alpha) if alpha]
        if not kinds or torch.rand(()) >= settings.mix_share:
            return pixels, targets
        cut = settings.cutmix_alpha > 0 and (len(kinds) == 1 or bool(torch.rand(()) < 0.5))
        alpha = settings.cutmix_alpha if cut else settings.mixup_alpha
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        if cut:
            height, width = pixels.shape[2:]
            top, bottom = _cut_span(height, math.sqrt(1 - share))
            left, right = _cut_span(width, math.sqrt(1 - share))
            share = 1 - (bottom - top) * (right - left) / (height * width)
            mixed = pixels.clone()
            mixed[:, :, top:bottom, left:right] = pixels.flip(0)[:, :, top:bottom, left:right]
        else:
            mixed = pixels.lerp(pixels.flip(0), 1 - share)
        return mixed, targets.lerp(targets.flip(0), 1 - share)


def _cut_span(length: int, share: float) -> tuple[int, int]:
    """Start and end of a random interval of about `share` of a side, clipped at both ends."""
    half = round(length * share) // 2
    centre = int(torch.randint(length, ()))
    return max(centre - half, 0), min(centre + half, length)
