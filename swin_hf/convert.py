"""Convert a Swin checkpoint: `python -m swin_hf.convert SOURCE DESTINATION [--to swin_hf|transformers|timm]`."""

import argparse
import copy
import functools
import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.image_utils import SizeDict
from transformers.processing_utils import ImagesKwargs

from .configuration_swin_hf import named_classes
from .errors import ExplainedError, in_one_line
from .image_processing_swin_hf import SwinHfImageProcessorKwargs, SwinHfImageProcessorPil
from .modeling_swin_hf import SwinHfForImageClassification
from .output_folders import check_apart, check_free, new_folder
from .quiet import hide_progress
from .segmentation_swin_hf import SwinHfForSemanticSegmentation
from .weight_config import SourceSizes
from .weight_export import stock_processor, to_timm, to_transformers
from .weight_files import ConversionError, WeightFiles, read_weight_files
from .weight_import import ConversionReport, import_model
from .working_processor import for_channels, require_working_processor

# Microsoft's code evaluates classifiers on the central 224 of 256 pixels, but those for 384 pixels on whole images.
ORIGINAL_CROP_PCT, LARGEST_CROPPED = 0.875, 383
TINY_VIT_CROP_PCT = 0.95
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers
TIMM_CROP_PCT = 0.875  # timm's default
MOMENTS = ("image_mean", "image_std")
REPORT_FILE = "conversion.json"


def load(
    source: str | Path,
    num_labels: int | None = None,
    image_size: int | None = None,
    window_size: int | None = None,
    stage_windows: list[int] | None = None,
    source_sizes: SourceSizes | None = None,
    revision: str | None = None,
    allow_unexpected: bool = False,
    labels: list[str] | None = None,
) -> tuple[PreTrainedModel, SwinHfImageProcessorPil, ConversionReport]:
    """Load a checkpoint of any supported kind: our model, its image processor, and a report on every weight.

    source: a file of weights, a folder or a Hub repository, from stock transformers (old or new names), timm, Microsoft's
        code (also SimMIM) or swin_hf.
    num_labels: number of classes, if it is not that of the checkpoint; the head is then a new one.
    image_size, window_size, stage_windows: resize the model for images of so many pixels and windows of so many patches, one
        for the model or one for each stage.
    source_sizes: sizes of the checkpoint's model, for files that do not contain them.
    revision: branch, tag or commit of a Hub repository.
    allow_unexpected: drop weights that the model does not know instead of refusing them.
    labels: names of the classes, which most files of weights do not contain.

    Raises:
        ConversionError: the checkpoint cannot be read, or is no Swin that our models can express; the message says why.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    if labels is not None and num_labels not in (None, len(labels)):
        raise ConversionError(f"labels must name {num_labels} classes, got {len(labels)}")
    if labels is not None and (len(set(labels)) < len(labels) or not all(labels)):
        raise ConversionError(f"labels must be different names, none of them empty, got {labels}")
    sizes = {"image_size": image_size, "window_size": window_size, "stage_windows": stage_windows}
    for name, size in {"num_labels": num_labels, **sizes}.items():
        if size is not None and min(size if name == "stage_windows" else [size], default=0) < 1:
            raise ConversionError(f"{name} must be positive, got {size}")
    num_labels = len(labels) if labels is not None else num_labels
    if num_labels == 0:
        raise ConversionError("labels must name at least one class, got none")
    files = read_weight_files(source, revision)
    model, report = import_model(files, num_labels, source_sizes, allow_unexpected)
    processor = import_processor(files, model, report)
    if labels is not None:
        model.config.update(named_classes(labels))
    if any(size is not None for size in sizes.values()):
        try:
            model = model.resize(**sizes)
        except ValueError as error:
            raise ConversionError(str(error)) from error
    if image_size is not None:
        processor = resized_processor(processor, image_size)
    return model, processor, report


def import_processor(files: WeightFiles, model: PreTrainedModel, report: ConversionReport) -> SwinHfImageProcessorPil:
    """The image processor of a checkpoint; if it has none, the usual one of its kind, with a note in the report.

    Raises:
        ConversionError: the checkpoint's cannot be expressed by ours, or the model's images are neither RGB nor greyscale.
    """
    config = getattr(model.config, "backbone_config", model.config)
    height, width = config.image_height_width
    settings: dict[str, Any] = {"size": {"height": height, "width": width}}
    timm = files.config.get("pretrained_cfg") or {}
    try:
        if files.processor:
            settings |= processor_settings(files.processor)
        elif timm:
            settings |= timm_processor_settings(files.name, timm, (height, width))
        else:
            is_original = not files.config and isinstance(model, SwinHfForImageClassification)
            crop_pct = TINY_VIT_CROP_PCT if config.stem == "conv" else ORIGINAL_CROP_PCT
            settings["crop_pct"] = crop_pct if is_original and max(height, width) <= LARGEST_CROPPED else None
            report.notes.append(
                "the checkpoint has no image processor: ImageNet's mean and standard deviation, bicubic, "
                f"size {height} x {width} and crop_pct {settings['crop_pct']} are assumed"
            )
        settings |= {name: for_channels(settings[name], config.num_channels) for name in MOMENTS if name in settings}
        processor = SwinHfImageProcessorPil(**settings | {"num_channels": config.num_channels})
    except ConversionError:
        raise
    except Exception as error:  # settings of a wrong type make transformers raise anything
        raise ConversionError(f"{files.name} has an impossible image processor: {in_one_line(error)}") from error
    require_working_processor(processor, config.num_channels, files.name)
    return processor


def timm_processor_settings(name: str, timm: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Settings of our image processor from timm's `pretrained_cfg`.

    Raises:
        ConversionError: its way of preparing images is unknown to ours.
    """
    mode, crop_pct = timm.get("crop_mode") or "center", timm.get("crop_pct") or TIMM_CROP_PCT
    interpolation = timm.get("interpolation") or "bicubic"
    if mode not in ("center", "squash") or interpolation not in FILTERS:
        raise ConversionError(
            f"{name} must have crop_mode center or squash and interpolation {', '.join(FILTERS)}, got {mode}, {interpolation}"
        )
    settings = {f"image_{part}": timm[part] for part in ("mean", "std") if part in timm} | {"resample": FILTERS[interpolation]}
    if mode == "center":
        return settings | {"crop_pct": crop_pct}
    stretched = {side: math.floor(length / crop_pct) for side, length in zip(("height", "width"), size)}
    crop = dict(zip(("height", "width"), size))
    return settings | ({"size": stretched, "do_center_crop": True, "crop_size": crop} if crop_pct < 1 else {})


def processor_settings(saved: dict[str, Any]) -> dict[str, Any]:
    """Settings of our image processor from a `preprocessor_config.json` of any age."""
    names = SwinHfImageProcessorKwargs.__annotations__ | ImagesKwargs.__annotations__
    settings = {name: value for name, value in saved.items() if name in names}
    if "reduce_labels" in saved:  # as it was called before transformers 4.32
        settings.setdefault("do_reduce_labels", saved["reduce_labels"])
    size, crop = settings.get("size"), settings.get("crop_size")
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if settings.get("do_center_crop") and crop and isinstance(size, dict) and set(size) == {"shortest_edge"}:
        side, shortest = crop["height"], size["shortest_edge"]
        exact = math.floor(side / (side / shortest)) == shortest
        if side == crop["width"] and side <= shortest:
            settings |= {"crop_pct": side / (shortest if exact else shortest + 0.5), "size": crop}
            settings |= {"do_center_crop": None, "crop_size": None}
    return settings


def resized_processor(processor: SwinHfImageProcessorPil, image_size: int) -> SwinHfImageProcessorPil:
    """A copy of an image processor that makes squares of `image_size` pixels, cropped by the same share as before.

    Raises:
        ConversionError: it crops by other rules than `crop_pct`.
    """
    if processor.do_center_crop:
        raise ConversionError(
            f"image_size cannot be applied to an image processor with size {dict(processor.size)} and crop_size "
            f"{dict(processor.crop_size)}; convert without it and change preprocessor_config.json"
        )
    resized = copy.deepcopy(processor)
    resized.size = SizeDict(height=image_size, width=image_size)
    return resized


def convert(source: str | Path, destination: str | Path, to: str = "swin_hf", **options: Any) -> ConversionReport:
    """Convert a checkpoint to a folder, which appears whole or not at all; its `conversion.json` is the report.

    to: "swin_hf" and "transformers" are folders for `from_pretrained`, "timm" is one for
        `timm.create_model("local-dir:FOLDER", pretrained=True)`.
    options: as for `load`.

    Raises:
        ConversionError: the target cannot express the model, or as for `load`.
        OutputError: the destination is not empty, is the source, or cannot be written.
    """
    destination = Path(destination).resolve()
    if to not in WRITERS:
        raise ConversionError(f"to must be one of {', '.join(WRITERS)}, got {to!r}")
    check_apart(destination, "destination", source=source)
    with new_folder(destination, partial(check_free, flag="destination")) as work_dir:
        model, processor, report = load(source, **options)
        if to == "transformers" and processor.num_channels == 1:
            report.notes.append("the image processor of transformers leaves images as they are: give it greyscale ones")
        WRITERS[to](model, processor, work_dir)
        (work_dir / REPORT_FILE).write_text(json.dumps(vars(report), indent=2) + "\n", encoding="utf-8")
    return report


def _write_swin_hf(model: PreTrainedModel, processor: SwinHfImageProcessorPil, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _write_transformers(model: PreTrainedModel, processor: SwinHfImageProcessorPil, folder: Path) -> None:
    stock, of_maps = to_transformers(model), isinstance(model, SwinHfForSemanticSegmentation)
    stock_processor(processor, of_maps).save_pretrained(folder)
    stock.save_pretrained(folder)


def _write_timm(model: PreTrainedModel, processor: SwinHfImageProcessorPil, folder: Path) -> None:
    weights, config = to_timm(model, processor)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _explained(write: Callable) -> Callable:
    """A writer that explains values which transformers checks only when it saves them."""

    @functools.wraps(write)
    def call(*arguments) -> None:
        try:
            write(*arguments)
        except (StrictDataclassError, TypeError) as error:
            raise ConversionError(f"the model cannot be saved: {in_one_line(error)}; correct its JSON files") from error

    return call


WRITERS: dict[str, Callable] = {
    "swin_hf": _explained(_write_swin_hf),
    "transformers": _explained(_write_transformers),
    "timm": _explained(_write_timm),
}


def read_labels(path: Path) -> list[str]:
    """Names of classes, one in each line of a text file.

    Raises:
        ConversionError: it is not UTF-8 text.
        OSError: there is no such file.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConversionError(f"labels must be a text file in UTF-8, got {path}: {error}") from error


def as_flags(text: str) -> str:
    """A message of the library with its parameters as the flags of this command line."""
    return re.sub(r"\bsource_sizes\.", "--source_", re.sub(r"\ballow_unexpected\b", "--allow_unexpected", text))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m swin_hf.convert", description="Convert a Swin checkpoint.", allow_abbrev=False
    )
    parser.add_argument("source", help="file of weights (.safetensors, .pth, .bin), folder or Hub repository")
    parser.add_argument("destination", type=Path, help="folder to write; it must be empty or not exist yet")
    parser.add_argument("--to", choices=WRITERS, default="swin_hf", help="format to write (default: swin_hf)")
    parser.add_argument("--num_labels", type=int, help="number of classes of a new head")
    parser.add_argument("--labels", type=Path, help="text file with one name of a class per line")
    parser.add_argument("--image_size", type=int, help="resize the model for images of so many pixels")
    parser.add_argument("--window_size", type=int, help="resize the model for windows of so many patches")
    parser.add_argument(
        "--stage_windows",
        type=int,
        nargs="+",
        help="the same with a window for each stage, as TinyViT has them: 12 12 24 12",
    )
    parser.add_argument("--source_image_size", type=int, help="pixels, for a file that does not contain them")
    parser.add_argument("--source_window_size", type=int, help="patches, for a file of V2 that does not contain them")
    parser.add_argument(
        "--source_pretrained_window_sizes",
        type=int,
        nargs="+",
        help="one per stage, for a file of a V2 that was fine-tuned at another window and does not contain them: 12 12 12 6",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--allow_unexpected", action="store_true", help="drop weights that the model does not know")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = vars(make_parser().parse_args(arguments))
    hide_progress()
    sizes = SourceSizes(
        image_size=options.pop("source_image_size"),
        window_size=options.pop("source_window_size"),
        pretrained_window_sizes=options.pop("source_pretrained_window_sizes"),
    )
    try:
        if options["labels"] is not None:
            options["labels"] = read_labels(options["labels"])
        report = convert(**options, source_sizes=sizes)
    except (ExplainedError, OSError) as error:  # with OSError, whatever the Hub refuses
        print(f"error: {as_flags(str(error))}", file=sys.stderr)
        return 1
    print(as_flags(str(report)))
    print(f"{options['source']} -> {options['destination']} ({options['to']}); all weights in {REPORT_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
