"""Convert a Swin checkpoint: `python -m swin_hf.convert SRC DST [--to swin_hf|transformers|timm]`."""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import save_file
from transformers import PreTrainedModel

from .image_processing_swin_hf import SwinHfImageProcessorKwargs, SwinHfImageProcessorPil
from .weight_config import SourceSizes
from .weight_export import stock_processor, to_timm, to_transformers
from .weight_files import ConversionError, WeightFiles, read_weight_files
from .weight_import import ConversionReport, import_model

ORIGINAL_CROP_PCT = 0.875  # of 256 pixels to 224 in the evaluation of Microsoft's code
FILTERS = {"bilinear": 2, "bicubic": 3}
REPORT_FILE = "conversion.json"


def load(
    source: str | Path,
    num_labels: int | None = None,
    image_size: int | None = None,
    window_size: int | None = None,
    source_sizes: SourceSizes | None = None,
    revision: str | None = None,
    allow_unexpected: bool = False,
) -> tuple[PreTrainedModel, SwinHfImageProcessorPil, ConversionReport]:
    """A model of ours from a checkpoint of anybody's: model, image processor and what became of each weight.

    source: a file of weights, a folder or a Hub repository; of stock transformers (old names and new), of timm, of
        Microsoft's code (also SimMIM checkpoints), or of swin_hf.
    num_labels: classes, if not those of the checkpoint; the head is then a new one.
    image_size, window_size: pixels and patches for which the model is resized.
    source_sizes: those of the checkpoint, for files that do not tell them.

    Raises:
        ConversionError: it cannot be read, or is no Swin that can be expressed; the message says why.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    files = read_weight_files(source, revision)
    model, report = import_model(files, num_labels, source_sizes, allow_unexpected)
    if image_size is not None or window_size is not None:
        model = model.resize(image_size=image_size, window_size=window_size)
    return model, import_processor(files, model), report


def import_processor(files: WeightFiles, model: PreTrainedModel) -> SwinHfImageProcessorPil:
    """The image processor that a checkpoint was evaluated with, for the image size of `model`."""
    config = getattr(model.config, "backbone_config", None) or model.config
    height, width = config.image_height_width
    settings: dict[str, Any] = {"size": {"height": height, "width": width}}
    if files.processor:
        known = SwinHfImageProcessorKwargs.__annotations__
        given = {name: value for name, value in files.processor.items() if name in known and name != "size"}
        size, crop = files.processor.get("size"), given.get("crop_size")
        if isinstance(size, dict) and "shortest_edge" in size and given.get("do_center_crop") and crop:
            side, shortest = crop if isinstance(crop, int) else crop["height"], size["shortest_edge"]
            exact = math.floor(side / (side / shortest)) == shortest
            given |= {"crop_pct": side / (shortest if exact else shortest + 0.5), "do_center_crop": None, "crop_size": None}
        return SwinHfImageProcessorPil(**given | settings)
    timm = files.config.get("pretrained_cfg") or {}
    if timm:
        settings |= {f"image_{name}": timm[name] for name in ("mean", "std") if name in timm}
        settings["resample"] = FILTERS.get(timm.get("interpolation"), FILTERS["bicubic"])
        settings["crop_pct"] = None if timm.get("crop_mode") == "squash" else timm.get("crop_pct")
    else:
        settings["crop_pct"] = ORIGINAL_CROP_PCT
    return SwinHfImageProcessorPil(**settings)


def convert(source: str | Path, destination: str | Path, to: str = "swin_hf", **options: Any) -> ConversionReport:
    """Convert a checkpoint to a folder, which appears whole or not at all; its `conversion.json` is the report.

    to: "swin_hf" and "transformers" are folders for `from_pretrained`, "timm" is one for
        `timm.create_model("local-dir:FOLDER", pretrained=True)`.
    options: as for `load`.

    Raises:
        ConversionError: the destination is there already, or as `load`, or the target cannot express the model.
    """
    destination = Path(destination)
    if to not in WRITERS:
        raise ConversionError(f"to must be one of {', '.join(WRITERS)}, got {to!r}")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConversionError(f"{destination} must be a folder that is empty or not there; choose another or remove it")
    model, processor, report = load(source, **options)
    destination.parent.mkdir(parents=True, exist_ok=True)
    work_dir = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        WRITERS[to](model, processor, work_dir)
        (work_dir / REPORT_FILE).write_text(json.dumps(vars(report), indent=2) + "\n", encoding="utf-8")
        work_dir.chmod(0o755)
        if destination.is_dir():
            destination.rmdir()
        os.replace(work_dir, destination)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return report


def _write_swin_hf(model: PreTrainedModel, processor: SwinHfImageProcessorPil, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _write_transformers(model: PreTrainedModel, processor: SwinHfImageProcessorPil, folder: Path) -> None:
    to_transformers(model).save_pretrained(folder)
    stock_processor(processor).save_pretrained(folder)


def _write_timm(model: PreTrainedModel, processor: SwinHfImageProcessorPil, folder: Path) -> None:
    weights, config = to_timm(model, processor)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


WRITERS: dict[str, Callable] = {"swin_hf": _write_swin_hf, "transformers": _write_transformers, "timm": _write_timm}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m swin_hf.convert", description="Convert a Swin checkpoint.")
    parser.add_argument("source", help="file of weights (.safetensors, .pth, .bin), folder or Hub repository")
    parser.add_argument("destination", type=Path, help="folder to write; it must not be there yet")
    parser.add_argument("--to", choices=WRITERS, default="swin_hf", help="format to write (default: swin_hf)")
    parser.add_argument("--num-labels", type=int, help="classes of a new head")
    parser.add_argument("--image-size", type=int, help="resize the model for images of so many pixels")
    parser.add_argument("--window-size", type=int, help="resize the model for windows of so many patches")
    parser.add_argument("--source-image-size", type=int, help="pixels, for a file that does not tell them")
    parser.add_argument("--source-window-size", type=int, help="patches, for a file of V2 that does not tell them")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--allow-unexpected", action="store_true", help="drop weights that the model does not know")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = vars(make_parser().parse_args(arguments))
    sizes = SourceSizes(image_size=options.pop("source_image_size"), window_size=options.pop("source_window_size"))
    try:
        report = convert(**options, source_sizes=sizes)
    except (ConversionError, HfHubHTTPError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{report}\n{options['source']} -> {options['destination']} ({options['to']}); all weights in {REPORT_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
