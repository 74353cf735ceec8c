"""Stages of a run: each writes one folder, is skipped if nothing that it depends on has changed, and survives a kill.

A stage works in a hidden folder beside its own and is moved into place when it is complete, so that a folder with its
plain name is always whole. `stage.json` in it records the fingerprint: a hash of the settings the stage depends on, of the
files it reads from outside the run and of the fingerprints of the stages before it.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distill.pipeline.inputs import describe_changes
from edge.device.errors import ExplainedError
from edge.files import move_into_place, write_whole

MANIFEST = "stage.json"
FULL_DISK_BYTES = 2**20  # less free space than this means that the disk is full


class StageError(ExplainedError):
    """A stage cannot run; the message says why and what to do first."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step: `build(work_dir)` fills a folder from the folders of the stages named in `inputs`.

    title: what the step does, for the log.
    folder: name of the folder under the run.
    settings: everything else the outcome depends on, as JSON values.
    """

    name: str
    title: str
    folder: str
    inputs: tuple[str, ...]
    settings: dict[str, Any]
    build: Callable[[Path], None]


def fingerprints(stages: list[Stage]) -> dict[str, str]:
    """Fingerprint of every stage, in order; a change of one changes those of all stages that depend on it."""
    result = {}
    for stage in stages:
        content = [stage.name, stage.settings, [result[name] for name in stage.inputs]]
        result[stage.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return result


def stages_to_build(stages: list[Stage], chosen: list[str], run_dir: Path, force: bool = False) -> list[str]:
    """Names of the chosen stages that are not up to date.

    Raises:
        StageError: a stage that was not chosen is missing or was made with other settings.
    """
    wanted = fingerprints(stages)
    by_name = {stage.name: stage for stage in stages}
    chosen_stages = [stage for stage in stages if stage.name in chosen]
    for stage in chosen_stages:
        for name in stage.inputs:
            if name not in chosen and _built_fingerprint(run_dir / by_name[name].folder) != wanted[name]:
                raise StageError(
                    f"stage {stage.name} reads {run_dir / by_name[name].folder}, which is missing or was made with other "
                    f"settings; add {name} to --stages"
                )
    return [stage.name for stage in chosen_stages if force or _built_fingerprint(run_dir / stage.folder) != wanted[stage.name]]


def run_stages(stages: list[Stage], chosen: list[str], run_dir: Path, force: bool = False) -> None:
    """Run the chosen stages in order, skipping those that are up to date.

    Raises:
        StageError: a stage that was not chosen is missing or was made with other settings, or the disk is full.
    """
    wanted = fingerprints(stages)
    to_build = stages_to_build(stages, chosen, run_dir, force)
    chosen_stages = [stage for stage in stages if stage.name in chosen]
    for number, stage in enumerate(chosen_stages, start=1):
        folder = run_dir / stage.folder
        heading = f"[{number}/{len(chosen_stages)}] {stage.name}: {stage.title}"
        if stage.name not in to_build:
            print(f"{heading}\n      up to date in {folder}", flush=True)
            continue
        print(heading, flush=True)
        if changes := _changes(stage, folder):
            print(f"      built again: {changes}", flush=True)
        seconds = _build(stage, folder, wanted[stage.name])
        print(f"      done in {seconds:.0f} s -> {folder}", flush=True)


def _build(stage: Stage, folder: Path, fingerprint: str) -> float:
    """Fill a working folder, resuming what an interrupted run with the same settings left, and move it into place."""
    started = time.monotonic()
    work_dir = folder.with_name(f".{folder.name}.{fingerprint[:12]}.partial")
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
        if leftover != work_dir:
            shutil.rmtree(leftover)
    if work_dir.exists():
        print("      resuming an interrupted run", flush=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    try:
        if _built_fingerprint(work_dir) != fingerprint:
            stage.build(work_dir)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own errors on a full disk
        if shutil.disk_usage(folder.parent).free < FULL_DISK_BYTES:
            raise StageError(
                f"the disk that holds {folder.parent} is full, stage {stage.name} was not finished; free some space and "
                "start again: the run resumes from its last complete stage or checkpoint"
            ) from error
        raise
    seconds = time.monotonic() - started
    record = {"stage": stage.name, "fingerprint": fingerprint, "settings": stage.settings, "seconds": round(seconds, 1)}
    write_whole(work_dir / MANIFEST, json.dumps(record, indent=2) + "\n")
    move_into_place(work_dir, folder)
    return seconds


def _changes(stage: Stage, folder: Path) -> str:
    """What differs from the settings that a stage was built with, if it was."""
    try:
        before = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["settings"]
        return describe_changes(before, stage.settings)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not built, or no longer readable
        return ""


def _built_fingerprint(folder: Path) -> str | None:
    manifest = folder / MANIFEST
    return json.loads(manifest.read_text())["fingerprint"] if manifest.is_file() else None
