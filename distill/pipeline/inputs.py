"""Files outside of a run that its stages read: what a fingerprint keeps of them, and which of them changed.

Only files that are really read count, so that what systems and people leave beside them costs no training. Small texts are
known by their content, large files by size and time of change.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.data.finding import files_behind
from distill.data.targets import CLASSES, Targets
from edge.device.names import as_utf8

TEXTS = (".csv", ".jsonl", ".json", ".txt", ".py")
# What `from_pretrained` reads of a folder, beside weights and code.
OF_A_CHECKPOINT = ("config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json")
WEIGHTS = (".safetensors", ".bin", ".index.json", ".py")

Facts = list[list]  # name, size, and SHA-256 or time of change, for each file


def data_files(dataset: str, targets: Targets = CLASSES) -> Facts:
    """The files of `--dataset` that are read; none if it is embedded or on the Hub."""
    folder = Path(dataset) if Path(dataset).is_dir() else Path(dataset).parent
    return _facts(files_behind(dataset, targets), folder)


def checkpoint_files(name: str) -> Facts:
    """The files of a checkpoint that are read; none if it is on the Hub."""
    folder = Path(name)
    if folder.is_file():
        return _facts([folder], folder.parent)
    files = folder.iterdir() if folder.is_dir() else ()
    return _facts(sorted(file for file in files if file.name in OF_A_CHECKPOINT or file.name.endswith(WEIGHTS)), folder)


def content_of(file: str) -> str:
    """The SHA-256 of a file, whatever its name; empty if it is not there."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if Path(file).is_file() else ""


def _facts(files: Iterable[Path], folder: Path) -> Facts:
    prefix = f"{folder}{os.sep}"
    return [
        [as_utf8(str(file).removeprefix(prefix)), status.st_size, _state(file, status)]
        for file in dict.fromkeys(files)
        if not file.name.startswith(".") and (status := _status(file)) is not None
    ]


def _status(file: Path) -> os.stat_result | None:
    """Size and time of change, if there is such a file."""
    return file.stat() if file.is_file() else None


def _state(file: Path, status: os.stat_result) -> str | int:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.suffix.lower() in TEXTS else status.st_mtime_ns


def describe_changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Which settings and files of a stage are not those that it was built with, in a line; nothing if all are the same."""
    after = json.loads(json.dumps(after))
    changed = [name for name in sorted({*before, *after} - {"files"}) if before.get(name) != after.get(name)]
    old, new = ({name: facts for name, *facts in settings.get("files", [])} for settings in (before, after))
    files = [f"{name} (new)" for name in new if name not in old]
    files += [f"{name} (gone)" for name in old if name not in new]
    files += [f"{name} (changed)" for name in new if name in old and old[name] != new[name]]
    told = [", ".join(changed)] if changed else []
    if files:
        more = f", and {len(files) - 5} more" if len(files) > 5 else ""
        told.append(f"files {', '.join(files[:5])}{more}")
    return "; ".join(told)
