"""Pictures of where a model looks: `python -m swin_hf.explain CHECKPOINT IMAGE...`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoConfig, PreTrainedModel

from .configuration_swin_hf import class_names
from .errors import ExplainedError, in_one_line
from .explanations import Explained, ExplanationError, attention_rollout, class_maps, grad_cam
from .image_processing_swin_hf import SwinHfImageProcessorPil
from .modeling_swin_hf import SwinHfForImageClassification
from .quiet import hide_progress
from .segmentation_swin_hf import SwinHfForSemanticSegmentation, SwinHfUperNetConfig

FOR, AGAINST = (214, 39, 40), (31, 119, 180)  # colours of what speaks for a class, and against it
OPACITY = 0.75  # of the strongest place
SIDE = 256  # of a panel, in pixels: its shorter side at least
TEXT = 14  # height in pixels


def heat(values: np.ndarray, image: Image.Image) -> Image.Image:
    """Values (h, w), enlarged and laid over an image: positive ones red, negative ones blue, the strongest most opaque."""
    enlarged = Image.fromarray(values.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    levels = np.asarray(enlarged) / max(float(np.abs(values).max()), 1e-12)
    colours = np.where(levels[..., None] > 0, np.array(FOR), np.array(AGAINST)).astype(np.float32)
    opacity = OPACITY * np.clip(np.abs(levels), 0, 1)[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    return Image.fromarray(((1 - opacity) * grey + opacity * colours).round().astype(np.uint8))


def explain(model: Explained, processor: SwinHfImageProcessorPil, image: Image.Image, label: str | None = None) -> Image.Image:
    """The image as the model sees it, the maps that speak for a class, and where attention comes from, side by side.

    label: name of a class; by default the most probable one, of a segmenter the one of most pixels.

    Raises:
        ExplanationError: there is no such class.
    """
    names = class_names(model.config)
    if label is not None and label not in names:
        raise ExplanationError(f"label must be one of {', '.join(names[:10])}{', ..' * (len(names) > 10)}, got {label}")
    inputs = processor(image, return_tensors="pt")["pixel_values"]
    maps = class_maps(model, inputs)[0]
    is_segmenter = isinstance(model, SwinHfForSemanticSegmentation)
    likeliest = maps.argmax(dim=0).flatten().mode().values if is_segmenter else maps.mean(dim=(1, 2)).argmax()
    number = int(likeliest) if label is None else names.index(label)
    shown = as_seen(image, processor)
    of_class = maps[number] - (maps.mean(dim=0) if is_segmenter else 0)
    told = f"{names[number]}: {share_of(maps, number, is_segmenter):.1%}"
    panels = [("image", shown), (f"class map, {told}", heat(of_class.numpy(), shown))]
    for title, found in (
        ("Grad-CAM", lambda: grad_cam(model, inputs, torch.tensor([number]))),
        ("attention rollout", lambda: above_least(attention_rollout(model, inputs))),
    ):
        try:
            panels.append((title, heat(found()[0].numpy(), shown)))
        except ExplanationError:  # convolutions alone have no attention
            continue
    return side_by_side(panels)


def above_least(maps: torch.Tensor) -> torch.Tensor:
    """Maps (B, H, W) of shares, of which each place has some, less what every place has."""
    return maps - maps.amin(dim=(1, 2), keepdim=True)


def share_of(maps: torch.Tensor, number: int, is_segmenter: bool) -> float:
    """The probability of a class by its maps (K, H, W), or its share of the pixels of a segmenter."""
    if is_segmenter:
        return float((maps.argmax(dim=0) == number).float().mean())
    return float(maps.mean(dim=(1, 2)).softmax(dim=0)[number])


def as_seen(image: Image.Image, processor: SwinHfImageProcessorPil) -> Image.Image:
    """The image as the processor resizes and crops it, in panels that people can see."""
    plain = processor(image, do_normalize=False, do_rescale=False, return_tensors="np")["pixel_values"][0]
    pixels = plain.transpose(1, 2, 0).clip(0, 255).astype(np.uint8)
    seen = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    factor = max(SIDE / min(seen.size), 1)
    return seen.resize(tuple(round(side * factor) for side in seen.size), Image.Resampling.BICUBIC)


def side_by_side(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of one size with a title above each."""
    width, height = panels[0][1].size
    whole = Image.new("RGB", (len(panels) * (width + TEXT) - TEXT, height + 2 * TEXT), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(TEXT)
    for number, (title, picture) in enumerate(panels):
        left = number * (width + TEXT)
        while font.getlength(title) > width and len(title) > 4:
            title = f"{title[:-4]}..."
        draw.text((left, TEXT // 4), title, fill="black", font=font)
        whole.paste(picture, (left, 2 * TEXT))
    return whole


def load(checkpoint: str) -> tuple[PreTrainedModel, SwinHfImageProcessorPil]:
    """A classifier or a segmenter of ours, or a stock Swin as one, and its image processor.

    Raises:
        ExplanationError: there is none.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        is_segmenter = config.model_type in (SwinHfUperNetConfig.model_type, "upernet")
        kind = SwinHfForSemanticSegmentation if is_segmenter else SwinHfForImageClassification
        model, report = kind.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
        processor = SwinHfImageProcessorPil.from_pretrained(checkpoint)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ExplanationError(
            f"{checkpoint} must be a folder or a Hub id of a classifier or a segmenter: {in_one_line(error)}"
        ) from error
    if report["missing_keys"]:
        raise ExplanationError(f"{checkpoint} lacks weights: {', '.join(sorted(report['missing_keys'])[:5])}")
    return model.eval(), processor


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m swin_hf.explain", description="Pictures of where a model looks.", allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="folder or Hub id of a classifier or a segmenter")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--label", help="class to explain (default: the most probable one)")
    parser.add_argument("--output_dir", type=Path, default=Path("explanations"), help="for the pictures")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Write a picture for each image; 1 after an error that was explained on stderr."""
    options = make_parser().parse_args(arguments)
    hide_progress()
    try:
        files = new_files(options.images, options.output_dir)
        model, processor = load(options.checkpoint)
        return _explain_all(options, files, lambda image: explain(model, processor, image, options.label))
    except (ExplainedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def new_files(images: list[Path], folder: Path) -> list[Path]:
    """A new file for the picture of each image.

    Raises:
        ExplanationError: one exists already, or two images would share it.
    """
    files = [folder / f"{image.stem}_explained.png" for image in images]
    if len(set(files)) < len(files):
        raise ExplanationError("images must have different names, as their pictures get these; explain them one by one")
    if existing := [file for file in files if file.exists()]:
        raise ExplanationError(f"{existing[0]} exists already; give another --output_dir")
    return files


def _explain_all(options: argparse.Namespace, files: list[Path], draw: Callable[[Image.Image], Image.Image]) -> int:
    failed = False
    for path, file in zip(options.images, files):
        try:
            with Image.open(path) as image:
                picture = draw(image)
        except OSError as error:
            print(f"error: {path} cannot be read: {in_one_line(error)}", file=sys.stderr)
            failed = True
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
        print(f"{path} -> {file}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
