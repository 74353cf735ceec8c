"""A phone app around a device artefact: a copy of a template that holds the program and, in `contract.json`, its contract."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from edge.device.artefact import PROGRAM_FILE, Manifest, read_artefact
from edge.files import move_into_place

CONTRACT_FILE = "contract.json"
FLOATS = ("float32", "NCHW", (0.0, 1.0))
BYTES = ("uint8", "NHWC", (0.0, 255.0))
# The filters that Resample.kt and Resample.swift know, by Pillow's numbers.
FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


class AppError(ValueError):
    """No app can be written; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """template: folder beside this file. assets: folder of an app for its program and contract. inputs: what it can feed."""

    template: str
    assets: str
    inputs: tuple[tuple[str, str, tuple[float, float]], ...]


PLATFORMS = {
    "android": Platform(template="android", assets="app/src/main/assets", inputs=(FLOATS, BYTES)),
    "ios": Platform(template="ios", assets="Resources", inputs=(FLOATS, BYTES)),
    # Its classifier takes float32 (1, 3, H, W) and nothing else.
    "react-native": Platform(template="react_native", assets=".", inputs=(FLOATS,)),
}


def write_app(platform: str, artefact: str | Path, out: str | Path) -> list[Path]:
    """Write the app of a platform (`PLATFORMS`) around an artefact into `out`, whole or not at all; returns its files.

    Raises:
        AppError: unknown platform, `out` holds something, or the app cannot do what the artefact asks for.
        ArtefactError: the artefact is missing or damaged.
    """
    _check(platform in PLATFORMS, "platform", f"be one of {', '.join(PLATFORMS)}", platform, "name one of these")
    out = Path(out).resolve()
    is_free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    _check(is_free, "out", "be a new or an empty folder", out, "name another one")
    manifest, program = read_artefact(artefact)
    contract = fill(platform, manifest)

    out.parent.mkdir(parents=True, exist_ok=True)
    work_dir = out.with_name(f".{out.name}.partial")
    shutil.rmtree(work_dir, ignore_errors=True)
    try:
        shutil.copytree(Path(__file__).parent / PLATFORMS[platform].template, work_dir)
        assets = work_dir / PLATFORMS[platform].assets
        assets.mkdir(parents=True, exist_ok=True)
        (assets / PROGRAM_FILE).write_bytes(program)
        text = json.dumps(contract, indent=2, ensure_ascii=False) + "\n"
        (assets / CONTRACT_FILE).write_text(text, encoding="utf-8")
        move_into_place(work_dir, out)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return sorted(path for path in out.rglob("*") if path.is_file())


def fill(platform: str, manifest: Manifest) -> dict[str, object]:
    """The contents of an app's `contract.json`.

    Raises:
        AppError: the app cannot do what the manifest asks for.
    """
    task, contract, methods = manifest.task, manifest.input, manifest.methods
    _check(task == "image-classification", "task", "be image-classification", task, "export an image classifier")
    backend = manifest.backend
    _check(backend == "xnnpack", "backend", "be xnnpack, which the app links", backend, "export with recipe int8 or fp32")
    _check(manifest.labels, "labels", "name the classes", manifest.labels, "export a model with `id2label`")
    names = ", ".join(f"{number} ({name})" for number, name in FILTERS.items())
    advice = "export a model whose image processor uses one of these"
    _check(contract.resample in FILTERS, "input.resample", f"be one of {names}", contract.resample, advice)
    pixels = (contract.colour, contract.channels)
    _check(pixels == ("RGB", 3), "input.colour and channels", "be RGB and 3", pixels, "export a model for colour images")
    stretches = contract.crop_pct is None or platform != "react-native"
    _check(stretches, "input.crop_pct", "be None for react-native, which does not crop", contract.crop_pct, "export without")
    kind = (contract.dtype, contract.layout, tuple(contract.value_range))
    inputs = PLATFORMS[platform].inputs
    rule = f"be {' or '.join(map(_described, inputs))} for {platform}"
    _check(kind in inputs, "input", rule, _described(kind), "export again with such an input")
    rule = f"have a `forward` that takes {contract.one_image}"
    _check(methods.get("forward") == contract.one_image, "methods", rule, methods, "export again with that for `forward`")
    return {
        "height": contract.height,
        "width": contract.width,
        "resample": FILTERS[contract.resample],
        "cropPct": contract.crop_pct,
        "dtype": contract.dtype,
        "temperature": manifest.temperature,
        "labels": manifest.labels,
    }


def _described(kind: tuple[str, str, tuple[float, float]]) -> str:
    dtype, layout, (low, high) = kind
    return f"{dtype} {layout} in [{low:g}, {high:g}]"


def _check(holds: object, name: str, rule: str, value: object, advice: str) -> None:
    if not holds:
        raise AppError(f"{name} must {rule}, got {value}; {advice}")
