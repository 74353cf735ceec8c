"""The device artefact: a folder with `model.pte` and `edge.json`, which says what goes in and out and how it was checked."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

PROGRAM_FILE = "model.pte"
MANIFEST_FILE = "edge.json"
FORMAT_VERSION = 1


class ArtefactError(ValueError):
    """A device artefact is missing, damaged or of another version; the message says which."""


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """What the program takes: float32 (1, 3, height, width), RGB pixels divided by 255, resized as `resample` says.

    resample: Pillow's number of the filter (2 bilinear, 3 bicubic).
    """

    height: int
    width: int
    resample: int
    channels: int = 3
    dtype: str = "float32"
    layout: str = "NCHW"
    colour: str = "RGB"
    value_range: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of `edge.json`.

    labels: names of the classes, in the order of the logits.
    parity: comparisons of deploy form and program with the model on real images.
    program: size, delegates and nodes that run outside them.
    source: path of the checkpoint relative to the artefact, and its number of parameters.
    """

    labels: list[str]
    input: InputContract
    recipe: str
    backend: str
    parity: dict[str, float | int]
    program: dict[str, int]
    source: dict[str, str | int]
    versions: dict[str, str]
    sha256: str
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_artefact(folder: str | Path) -> tuple[Manifest, bytes]:
    """The manifest and the program of an artefact, once the program's sha256 has been checked.

    Raises:
        ArtefactError: a file is missing, `edge.json` is not one of ours, or the program is not the one it describes.
    """
    folder = Path(folder)
    for name in (MANIFEST_FILE, PROGRAM_FILE):
        if not (folder / name).is_file():
            raise ArtefactError(f"{folder} has no {name}; give a folder written by `python -m edge export`")
    manifest = _parse_manifest(folder / MANIFEST_FILE)
    program = (folder / PROGRAM_FILE).read_bytes()
    if hashlib.sha256(program).hexdigest() != manifest.sha256:
        raise ArtefactError(
            f"{folder / PROGRAM_FILE} is not the program that {MANIFEST_FILE} describes (sha256 differs): it was damaged or "
            "replaced; copy it again or export it again"
        )
    return manifest, program


def _parse_manifest(path: Path) -> Manifest:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise ArtefactError(f"{path} has format_version {version}, this version of edge reads {FORMAT_VERSION}")
        expected = {field.name for field in fields(Manifest)}
        if set(content) != expected:
            differing = ", ".join(sorted(set(content) ^ expected))
            raise ArtefactError(f"{path} must have exactly the keys of an edge manifest; missing or unknown: {differing}")
        return Manifest(**(content | {"input": InputContract(**content["input"])}))
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError) as error:
        raise ArtefactError(f"{path} is not an edge manifest: {error}") from error
