"""A phone app around a device artefact: a copy of a template with the program, and its contract in `contract.json`."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from edge.device.artefact import CLASSIFICATION, PROGRAM_FILE, SEGMENTATION, Manifest, read_artefact
from edge.device.errors import ExplainedError
from edge.device.json_text import json_text

CONTRACT_FILE = "contract.json"
# In templates: the version of ExecuTorch that exported the program, the app's name, and its package or bundle identifier.
RUNTIME_VERSION, APP_NAME, APP_PACKAGE = "EXECUTORCH_VERSION", "APP_NAME", "APP_PACKAGE"
DEFAULT_NAME, DEFAULT_PACKAGE = "Swin Edge", "org.swinhf.edge"
PACKAGE = re.compile(r"[A-Za-z][A-Za-z0-9]*(\.[A-Za-z][A-Za-z0-9]*)+")  # what both Android and iOS take
FLOATS = ("float32", "NCHW", (0.0, 1.0))
BYTES = ("uint8", "NHWC", (0.0, 255.0))
# The filters that Resample.kt and Resample.swift know, by Pillow's numbers.
FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


class AppError(ExplainedError):
    """No app can be written; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """template: folder beside this file. assets: folder for program and contract. inputs: kinds that the app can make.

    settings: the files that name the version of the runtime, the app and its package, if the app chooses them.
    """

    template: str
    assets: str
    inputs: tuple[tuple[str, str, tuple[float, float]], ...]
    settings: tuple[str, ...] = ()


PLATFORMS = {
    "android": Platform(
        template="android",
        assets="app/src/main/assets",
        settings=("app/build.gradle.kts", "app/src/main/AndroidManifest.xml"),
        inputs=(FLOATS, BYTES),
    ),
    "ios": Platform(template="ios", assets="Resources", settings=("project.yml",), inputs=(FLOATS, BYTES)),
    # Its classifier takes only float32 (1, 3, H, W).
    "react-native": Platform(template="react_native", assets=".", inputs=(FLOATS,)),
}


def write_app(
    platform: str, artefact: str | Path, output_dir: str | Path, name: str | None = None, package: str | None = None
) -> list[Path]:
    """Write the app of a platform (`PLATFORMS`) around an artefact, completely or not at all; returns its files.

    name: under the app's icon. package: its identifier in a store, like com.example.birds. Both are of Android and iOS; the
        component for React Native belongs to an app that has them.

    Raises:
        AppError: unknown platform, the app does not support the artefact, or a name or package that the platform refuses.
        OutputError: `output_dir` is not empty, or cannot be written.
        ArtefactError: the artefact is missing or damaged.
    """
    # Imported here: the command line has other commands, which do without transformers.
    from swin_hf.output_folders import check_apart, new_folder

    _check(platform in PLATFORMS, "platform", f"be one of {', '.join(PLATFORMS)}", platform, "name one of these")
    output_dir = Path(output_dir).resolve()
    check_apart(output_dir, artefact=artefact)
    manifest, program = read_artefact(artefact)
    contract, settings = fill(platform, manifest), PLATFORMS[platform].settings
    values = chosen(platform, name, package) | ({RUNTIME_VERSION: runtime_version(manifest)} if settings else {})

    with new_folder(output_dir) as work_dir:
        shutil.copytree(Path(__file__).parent / PLATFORMS[platform].template, work_dir, dirs_exist_ok=True)
        for file in settings:
            text = (work_dir / file).read_text(encoding="utf-8")
            for placeholder, value in values.items():
                text = text.replace(placeholder, value)
            (work_dir / file).write_text(text, encoding="utf-8")
        assets = work_dir / PLATFORMS[platform].assets
        assets.mkdir(parents=True, exist_ok=True)
        (assets / PROGRAM_FILE).write_bytes(program)
        text = json_text(contract) + "\n"
        (assets / CONTRACT_FILE).write_text(text, encoding="utf-8")
    return sorted(path for path in output_dir.rglob("*") if path.is_file())


def chosen(platform: str, name: str | None, package: str | None) -> dict[str, str]:
    """What a template says of the app's name and package.

    Raises:
        AppError: the platform refuses one of them.
    """
    has_own = bool(PLATFORMS[platform].settings) or (name is None and package is None)
    _check(
        has_own, "name and package", f"be left out for {platform}", f"{name}, {package}", "set them in the app it belongs to"
    )
    name, package = DEFAULT_NAME if name is None else name, DEFAULT_PACKAGE if package is None else package
    shown = 0 < len(name) <= 50 and name.isprintable() and not set(name) & set("\"'\\<>&@$?{}")
    _check(shown, "name", "be 1 to 50 printable letters without quotes, <>&@$?{} or backslashes", name, "name it otherwise")
    rule = "be words of letters and digits joined by dots, like com.example.birds"
    _check(PACKAGE.fullmatch(package), "package", rule, package, "name it otherwise")
    return {APP_NAME: name, APP_PACKAGE: package}


def fill(platform: str, manifest: Manifest) -> dict[str, object]:
    """The contents of an app's `contract.json`.

    Raises:
        AppError: the app does not support the artefact.
    """
    task, contract, methods = manifest.task, manifest.input, manifest.methods
    advice = "export an image classifier or a segmenter"
    _check(task in (CLASSIFICATION, SEGMENTATION), "task", f"be {CLASSIFICATION} or {SEGMENTATION}", task, advice)
    explained = manifest.explains and platform == "react-native"
    rule = "be false for react-native, whose classifier takes programs of one output"
    _check(not explained, "explains", rule, True, "export without --explain")
    if platform == "react-native" and task == SEGMENTATION:
        rule, size = "be that of the input, and logits, for react-native", (contract.height, contract.width)
        fits = manifest.map_size == size and not manifest.class_map
        got = f"{manifest.map_size}, {'classes' if manifest.class_map else 'logits'}"
        _check(fits, "map_size", rule, got, "export again with --enlarge")
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
        "task": task,
        "palette": [list(colour) for colour in manifest.palette],
        "classMap": manifest.class_map,
        "explains": manifest.explains,
    }


def runtime_version(manifest: Manifest) -> str:
    """The release of ExecuTorch that exported a program, which runs it best: "1.5.1" of "1.5.1+cpu"."""
    version = re.match(r"[\d.]+", manifest.versions.get("executorch", ""))
    got = manifest.versions
    _check(version, "versions.executorch", "be the version of ExecuTorch that exported the program", got, "export it again")
    return version.group()


def _described(kind: tuple[str, str, tuple[float, float]]) -> str:
    dtype, layout, (low, high) = kind
    return f"{dtype} {layout} in [{low:g}, {high:g}]"


def _check(holds: object, name: str, rule: str, value: object, advice: str) -> None:
    if not holds:
        raise AppError(f"{name} must {rule}, got {value}; {advice}")
