"""The device artefact: a folder with a program and `edge.json`, which describes its input and output and how it was checked.

| file | for |
|---|---|
| `model.pte` | the program |
| `edge.json` | this project's runner, the apps, people |
| `export.json`, `preprocessor_config.json` | stock transformers: `ExportedModel` and `AutoImageProcessor` |
| `self_test.bpte` | a copy of the program, bundled with images and its outputs for them on the exporting machine |
"""

import dataclasses
import hashlib
import json
import os
import types
import typing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import ExplainedError
from .flatbuffer import FlatbufferError
from .image import to_pixel_values
from .json_text import json_text
from .program import PROGRAM_MAGIC, read_constants

PROGRAM_FILE = "model.pte"
MANIFEST_FILE = "edge.json"
TRANSFORMERS_FILE = "export.json"
PROCESSOR_FILE = "preprocessor_config.json"
SELF_TEST_FILE = "self_test.bpte"
FORMAT_VERSION = 4
CLASSIFICATION, SEGMENTATION, FEATURES = "image-classification", "semantic-segmentation", "feature-maps"
COLOURS = {1: "L", 3: "RGB"}  # by the number of channels, in Pillow's words
LARGEST_SIDE = 16384  # pixels: larger than the input of any model


class ArtefactError(ExplainedError):
    """A device artefact is missing, damaged or of another version; the message says which."""


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """The input of the method `forward`: one image resized to height x width with the filter `resample`.

    resample: Pillow's number of the filter (2 bilinear, 3 bicubic).
    crop_pct: None resizes an image without keeping its aspect ratio. Otherwise the ratio is kept, and a centre crop of
        height x width is taken, which is this share of the resized image's shorter side.
    channels, colour: 3 and "RGB", or 1 and "L", greyscale as Pillow converts RGB to it.
    dtype, layout, value_range: float32 (1, C, height, width) in [0, 1], or uint8 (1, height, width, C) in [0, 255]. The mean
        and deviation that the model expects are part of the program.
    """

    height: int
    width: int
    resample: int
    crop_pct: float | None = None
    channels: int = 3
    dtype: str = "float32"
    layout: str = "NCHW"
    colour: str = "RGB"
    value_range: tuple[float, float] = (0.0, 1.0)

    @property
    def one_image(self) -> dict[str, int]:
        """The entry of `forward` in `methods`."""
        return {"batch_size": 1, "height": self.height, "width": self.width}

    def pixel_values(self, image: Image.Image, height: int | None = None, width: int | None = None) -> np.ndarray:
        """The input of a program for an RGB image, of the contract's size by default."""
        size = (height or self.height, width or self.width)
        return to_pixel_values(image.convert(self.colour), *size, self.resample, self.dtype, self.crop_pct)

    def seen(self, pixel_values: np.ndarray) -> Image.Image:
        """The first image of an input, in RGB."""
        pixels = pixel_values[0] if self.layout == "NHWC" else pixel_values[0].transpose(1, 2, 0)
        if self.dtype != "uint8":
            pixels = (pixels * 255).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels).convert("RGB")

    def shape(self, batch_size: int = 1, height: int | None = None, width: int | None = None) -> tuple[int, int, int, int]:
        """Shape of a batch of images, of the contract's size by default."""
        height, width = height or self.height, width or self.width
        if self.layout == "NHWC":
            return (batch_size, height, width, self.channels)
        return (batch_size, self.channels, height, width)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a program comes from: its checkpoint, and that one's number of parameters.

    checkpoint: `../NAME` if it was a folder beside the artefact, else the name of its folder alone: where that lies is
        nobody else's concern.
    """

    checkpoint: str
    parameters: int


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """The bundle's number of images, and the largest difference from the bundled outputs that passes."""

    num_images: int
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of `edge.json`.

    task: "image-classification", "semantic-segmentation", or "feature-maps" for a backbone.
    labels: names of the classes in the order of the logits, or of the feature maps.
    palette: of a segmenter, a colour (red, green, blue) from 0 to 255 for each class; otherwise empty.
    explains: whether a classifier puts out class maps (B, K, h, w) behind its logits, which are the mean over their places.
    map_size: of a segmenter, (h, w) of the logits (B, K, h, w) or of the classes (B, h, w) that `forward` puts out.
    class_map: whether it puts out classes instead of logits.
    temperature: probabilities are softmax(logits / temperature).
    methods: batch size, height and width of the images that each method of the program takes.
    equalised: whether the ranges of channels had to be equalised to keep the program close to the model.
    kept_in_float: layers that the recipe quantizes but that had to stay in float to keep the program close to the model.
    parity: comparison of each form with the model on real images.
    accuracy: accuracy of model and program on held-out images, empty without any.
    program: size, largest number of delegates in a method, operators that run outside delegates, and the memory that the
        runtime plans for values between operators.
    sha256: of every other file of the artefact.
    """

    task: str
    labels: list[str]
    temperature: float
    input: InputContract
    methods: dict[str, dict[str, int]]
    recipe: str
    backend: str
    equalised: bool
    kept_in_float: list[str]
    parity: dict[str, dict[str, float | int | None]]
    accuracy: dict[str, float | int]
    program: dict[str, int | dict[str, int]]
    self_test: SelfTest | None
    source: Source
    versions: dict[str, str]
    sha256: dict[str, str]
    palette: list[tuple[int, int, int]] = field(default_factory=list)
    map_size: tuple[int, int] | None = None
    class_map: bool = False
    explains: bool = False
    format_version: int = FORMAT_VERSION

    @property
    def is_classifier(self) -> bool:
        return self.task == CLASSIFICATION

    @property
    def metric(self) -> str:
        """What `accuracy` holds."""
        return "mean IoU" if self.is_segmenter else "accuracy"

    @property
    def is_segmenter(self) -> bool:
        return self.task == SEGMENTATION

    def write(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text(json_text(asdict(self)) + "\n", encoding="utf-8")


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def checkpoint_name(checkpoint: Path, folder: Path) -> str:
    """What the manifest of an artefact in `folder` calls its checkpoint (`Source`)."""
    checkpoint, folder = checkpoint.resolve(), folder.resolve()
    return f"../{checkpoint.name}" if checkpoint.parent == folder.parent else checkpoint.name


def recorded_checkpoint(folder: str | Path, manifest: Manifest) -> Path | None:
    """Path of the checkpoint that an artefact was exported from if it lies beside it, or did, else None."""
    name = manifest.source.checkpoint
    return Path(folder).resolve().parent / name.removeprefix("../") if name.startswith("../") else None


def recorded_files(folder: str | Path) -> set[str]:
    """The files of a folder that are those of an export, by the sha256 in its `edge.json`, of whatever version.

    Without an `edge.json` of ours there are none.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        hashes = {"format_version": content["format_version"], **content["sha256"]}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return set()
    names = [name for name in os.listdir(folder) if (folder / name).is_file() and not (folder / name).is_symlink()]
    own = {name for name in names if name in hashes and sha256_of((folder / name).read_bytes()) == hashes[name]}
    return own | {MANIFEST_FILE} if PROGRAM_FILE in hashes else set()


def read_artefact(folder: str | Path) -> tuple[Manifest, bytes]:
    """The manifest and the program of an artefact, whose sha256 is checked, and what the program says of itself.

    Raises:
        ArtefactError: a file is missing or damaged, `edge.json` is not an edge manifest, or it describes another program.
    """
    manifest = read_manifest(folder)
    program = read_file(folder, manifest, PROGRAM_FILE)
    check_constants(folder, manifest, program)
    return manifest, program


def constants_of(
    labels: list[str], temperature: float, contract: InputContract, palette: list[tuple[int, int, int]] = ()
) -> dict[str, object]:
    """What a program says of itself, as values that it returns by name."""
    described = json_text(asdict(contract), indent=None)
    own = {"labels": tuple(labels), "temperature": temperature, "input_contract": described}
    return own | {"palette": json_text([list(colour) for colour in palette], indent=None)} if palette else own


def check_constants(folder: str | Path, manifest: Manifest, program: bytes) -> None:
    """Compare labels, palette, temperature and input contract of the manifest with those that the program holds.

    Raises:
        ArtefactError: they differ, or the program is damaged.
    """
    described = {
        "labels": manifest.labels,
        "temperature": [manifest.temperature],
        "input_contract": [json.loads(json_text(asdict(manifest.input)))],
    }
    as_json = ["input_contract"]
    if manifest.palette:
        as_json.append("palette")
        described["palette"] = [[list(colour) for colour in manifest.palette]]
    try:
        held = read_constants(program, set(described))
        held |= {name: [json.loads(text) for text in held.get(name, [])] for name in as_json}
    except (FlatbufferError, TypeError, ValueError, RecursionError) as error:
        raise ArtefactError(
            f"{Path(folder) / PROGRAM_FILE} is not a whole ExecuTorch program: {error}; copy the artefact again or export it "
            "again"
        ) from error
    for name, expected in described.items():
        if held.get(name) != expected:
            raise ArtefactError(
                f"the program in {folder} is not the one that {MANIFEST_FILE} describes: {name} must be "
                f"{held.get(name)!r:.200}, got {expected!r:.200}; copy the artefact again or export it again"
            )


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of an artefact.

    Raises:
        ArtefactError: it is missing, or not an edge manifest.
    """
    folder = Path(folder)
    for name in (MANIFEST_FILE, PROGRAM_FILE):
        if not (folder / name).is_file():
            raise ArtefactError(f"{folder} has no {name}; give a folder written by `python -m edge export`")
    return _parse_manifest(folder / MANIFEST_FILE)


def read_file(folder: str | Path, manifest: Manifest, name: str) -> bytes:
    """The content of a file of an artefact.

    Raises:
        ArtefactError: it is missing, differs from the manifest's sha256, or is not a program.
    """
    path = Path(folder) / name
    if name not in manifest.sha256 or not path.is_file():
        how = "without --no_self_test" if name == SELF_TEST_FILE else "to have it"
        raise ArtefactError(f"{folder} has no {name}; export the checkpoint again {how}")
    content = path.read_bytes()
    if sha256_of(content) != manifest.sha256[name]:
        raise ArtefactError(
            f"{path} is not the file that {MANIFEST_FILE} describes (sha256 differs): it was damaged or replaced; copy the "
            "artefact again or export it again"
        )
    if name == PROGRAM_FILE and content[4:6] != PROGRAM_MAGIC:
        raise ArtefactError(f"{path} is not an ExecuTorch program")
    return content


def _parse_manifest(path: Path) -> Manifest:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ArtefactError(f"{path} is not an edge manifest: it must be a JSON object, got {type(content).__name__}")
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            advice = "update swin-hf" if newer else "export the checkpoint again"
            raise ArtefactError(
                f"{path} has format_version {version!r}, this version of edge reads {FORMAT_VERSION}; {advice}"
            )
        manifest = _build(Manifest, content, str(path))
        _check_values(manifest, path)
        return manifest
    except ArtefactError:
        raise
    except (ValueError, OverflowError, RecursionError) as error:  # not JSON, or numbers too large for Python
        raise ArtefactError(f"{path} is not an edge manifest: {error}") from error


def _build(kind: type, content: dict, where: str):
    """A dataclass from JSON, with every key and type checked."""
    expected = {known.name for known in fields(kind)}
    if set(content) != expected:
        differing = ", ".join(sorted(set(content) ^ expected))
        raise ArtefactError(f"{where} must have exactly the keys of an edge manifest; missing or unknown: {differing}")
    types_of = typing.get_type_hints(kind)
    return kind(**{name: _checked(types_of[name], value, f"{where}: {name}") for name, value in content.items()})


def _checked(expected, value, where: str):
    """A JSON value converted to the expected type: lists to tuples, objects to dataclasses.

    Raises:
        ArtefactError: it is of another type.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if dataclasses.is_dataclass(expected) and isinstance(value, dict):
        return _build(expected, value, where)
    if origin is list and isinstance(value, list):
        return [_checked(arguments[0], item, where) for item in value]
    if origin is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(_checked(kind, item, where) for kind, item in zip(arguments, value))
    if origin is dict and isinstance(value, dict):
        return {key: _checked(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        for kind in arguments:
            try:
                return _checked(kind, value, where)
            except ArtefactError:
                continue
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is types.NoneType and value is None:
        return None
    if isinstance(expected, type) and isinstance(value, expected) and not (isinstance(value, bool) and expected is not bool):
        return value
    name = getattr(expected, "__name__", None) if origin is None else None
    raise ArtefactError(f"{where} must be {name or expected}, got {value!r:.60}")


def _check_values(manifest: Manifest, path: Path) -> None:
    """Check what the types do not say.

    Raises:
        ArtefactError: a value is out of its range.
    """
    contract = manifest.input
    forward = contract.one_image
    bundled = manifest.self_test
    sizes = [side for method in manifest.methods.values() for side in method.values()]
    for holds, what in (
        (manifest.task in (CLASSIFICATION, SEGMENTATION, FEATURES), f"task {manifest.task!r}"),
        (
            len(manifest.palette) == (len(manifest.labels) if manifest.is_segmenter else 0),
            f"palette of {len(manifest.palette)} colours",
        ),
        (all(0 <= level <= 255 for colour in manifest.palette for level in colour), f"palette {manifest.palette!r:.80}"),
        ((manifest.map_size is not None) == manifest.is_segmenter, f"map_size {manifest.map_size}"),
        (manifest.is_segmenter or not manifest.class_map, f"class_map of the task {manifest.task!r}"),
        (manifest.is_classifier or not manifest.explains, f"explains of the task {manifest.task!r}"),
        (1e-6 < manifest.temperature < 1e6, f"temperature {manifest.temperature}"),
        (contract.dtype in ("float32", "uint8"), f"input.dtype {contract.dtype!r}"),
        (contract.layout == ("NHWC" if contract.dtype == "uint8" else "NCHW"), f"input.layout {contract.layout!r}"),
        (contract.resample in range(6), f"input.resample {contract.resample}"),
        (contract.crop_pct is None or 0.01 <= contract.crop_pct <= 1, f"input.crop_pct {contract.crop_pct}"),
        (
            COLOURS.get(contract.channels) == contract.colour,
            f"input.colour {contract.colour!r} of {contract.channels} channels",
        ),
        (all(set(method) == set(forward) for method in manifest.methods.values()), "methods"),
        (manifest.methods.get("forward") == forward, "methods.forward, or the size of the input"),
        (all(0 < side <= LARGEST_SIDE for side in sizes), f"methods with sizes {sizes}"),
        (PROGRAM_FILE in manifest.sha256, f"sha256 without {PROGRAM_FILE}"),
        (bundled is not None or SELF_TEST_FILE not in manifest.sha256, f"{SELF_TEST_FILE} without self_test"),
        (bundled is None or (bundled.num_images > 0 and 0 < bundled.tolerance < 1e6), f"self_test {bundled}"),
    ):
        if not holds:
            raise ArtefactError(f"{path} is not an edge manifest: it has an impossible {what}")
