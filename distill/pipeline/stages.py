"""Stages of a run: each writes one folder, is skipped if nothing that it depends on has changed, and survives a kill.

A stage works in a hidden folder of the run and is moved into place when it is complete, so that a folder with its plain name
is always whole. `stage.json` in it records its files with their sizes, and the fingerprint: a hash of the settings the stage
depends on, of the files it reads from outside the run and of the fingerprints of the stages before it. What was measured there
comes out differently the next time, so that it counts too. A stage that lost a file since is built again. Only the files that
it records are ever replaced.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import interruption
from distill.errors import TrainingStopped
from distill.pipeline.energy import EnergyMeter
from distill.pipeline.inputs import describe_changes
from edge.device.errors import ExplainedError
from swin_hf.output_folders import (
    changes,
    check_free,
    check_holds_only,
    explained_full_disk,
    hashes_of,
    list_files,
    move_into_place,
    read_record,
    write_json,
    write_record,
)

MANIFEST = "stage.json"
UNFINISHED = ".unfinished"  # folder of the run in which stages work; everything in it is the run's


class StageError(ExplainedError):
    """A stage cannot run; the message says why and what to do first."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step: `build(work_dir)` fills a folder from the folders of the stages named in `inputs`.

    title: what the step does, for the log.
    folder: name of the folder under the run.
    settings: everything else the outcome depends on, as JSON values.
    is_measured: whether it depends on times or sizes too, which are measured in it.
    """

    name: str
    title: str
    folder: str
    inputs: tuple[str, ...]
    settings: dict[str, Any]
    build: Callable[[Path], None]
    is_measured: bool = False


def fingerprints(stages: list[Stage], run_dir: Path) -> dict[str, str]:
    """Fingerprint of every stage, in order; a change of one changes those of all stages that depend on it.

    Those after a stage that measures are final when its files are there.
    """
    result, as_input = {}, {}
    for stage in stages:
        own = fingerprint_of([stage.name, stage.settings, [as_input[name] for name in stage.inputs]])
        result[stage.name] = as_input[stage.name] = own
        if stage.is_measured:
            record = read_record(run_dir / stage.folder, MANIFEST) or {}
            found = record.get("sha256") if record.get("fingerprint") == own else None
            as_input[stage.name] = fingerprint_of([own, found])
    return result


def fingerprint_of(content: Any) -> str:
    """The hash of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def stages_to_build(stages: list[Stage], chosen: list[str], run_dir: Path, force: bool = False) -> list[str]:
    """Names of the chosen stages that are not up to date; their folders may be replaced.

    Raises:
        StageError: a stage that was not chosen is missing, was made with other settings, or lost files.
        OutputError: a folder of a stage holds files that are not its own.
    """
    wanted = fingerprints(stages, run_dir)
    by_name = {stage.name: stage for stage in stages}
    chosen_stages = [stage for stage in stages if stage.name in chosen]
    for stage in chosen_stages:
        for name in stage.inputs:
            if name not in chosen and (why := why_outdated(run_dir / by_name[name].folder, wanted[name])):
                raise StageError(
                    f"stage {stage.name} reads {run_dir / by_name[name].folder}, which {why}; add {name} to --stages"
                )
    to_build = [stage for stage in chosen_stages if force or why_outdated(run_dir / stage.folder, wanted[stage.name])]
    for stage in to_build:
        check_replaceable(run_dir / stage.folder)
    if to_build and (run_dir / UNFINISHED).exists() and read_record(run_dir / UNFINISHED, MANIFEST) is None:
        raise StageError(
            f"{run_dir / UNFINISHED} was not made by this run, which needs a folder of this name; move it elsewhere"
        )
    return [stage.name for stage in to_build]


def why_outdated(folder: Path, fingerprint: str) -> str:
    """Why the folder of a stage is not what is wanted, in words that follow "which"; empty if it is.

    Raises:
        OutputError: its `stage.json` is damaged.
    """
    record = read_record(folder, MANIFEST)
    if record is None:
        return "is missing"
    if record.get("fingerprint") != fingerprint:
        return "was made with other settings"
    differing = changes(folder, record)
    return f"was changed: {differing[0]}" if differing else ""


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that holds anything that a stage did not write there.

    Raises:
        OutputError: it does.
    """
    record = read_record(folder, MANIFEST)
    if record is None:
        check_free(folder, "the folder of a stage", "move it elsewhere or give another --output_dir")
    else:
        check_holds_only(folder, {MANIFEST, *record["files"]}, "one that a stage wrote", "the folder of a stage")


@contextmanager
def explained_damage(stages: list[Stage], run_dir: Path) -> Iterator[None]:
    """Explain errors that come from a file of a stage which changed after it was written, though not its size.

    Raises:
        StageError: there is such a file; the message names it.
    """
    try:
        yield
    except TrainingStopped:
        raise
    except Exception as error:  # whatever reads the file may raise anything
        for stage in stages:
            folder = run_dir / stage.folder
            hashes = (read_record(folder, MANIFEST) or {}).get("sha256", {})
            found = hashes_of(folder, [name for name in hashes if (folder / name).is_file()])
            damaged = [name for name, own in found.items() if own != hashes[name]]
            if damaged:
                raise StageError(
                    f"{folder / damaged[0]} is not as stage {stage.name} wrote it: it was damaged or changed; add --stages "
                    f"{stage.name} --force to write it again, then start as before"
                ) from error
        raise


def run_stages(
    stages: list[Stage],
    chosen: list[str],
    run_dir: Path,
    force: bool = False,
    before: Callable[[str, list[str]], None] = lambda name, to_build: None,
) -> None:
    """Run the chosen stages in order, skipping those that are up to date.

    before: called before a stage is built, with its name and those of all that are to be built.

    Raises:
        StageError: a stage that was not chosen is missing or was made with other settings.
        OutputError: a folder of a stage holds files that are not its own, or the disk is full.
    """
    wanted = fingerprints(stages, run_dir)
    to_build = stages_to_build(stages, chosen, run_dir, force)
    chosen_stages = [stage for stage in stages if stage.name in chosen]
    for number, stage in enumerate(chosen_stages, start=1):
        interruption.check()
        folder = run_dir / stage.folder
        heading = f"[{number}/{len(chosen_stages)}] {stage.name}: {stage.title}"
        if stage.name not in to_build:
            print(f"{heading}\n      up to date in {folder}", flush=True)
            continue
        print(heading, flush=True)
        record = read_record(folder, MANIFEST)
        if record is not None and (why := why_outdated(folder, wanted[stage.name])):
            differing = describe_changes(record.get("settings", {}), stage.settings)
            print(f"      what is in {folder} {why}{f': {differing}' if differing else ''}", flush=True)
        before(stage.name, to_build)
        seconds = _build(stage, folder, wanted[stage.name])
        print(f"      done in {seconds:.0f} s -> {folder}", flush=True)
        if stage.is_measured:
            wanted = fingerprints(stages, run_dir)
            to_build = stages_to_build(stages, chosen, run_dir, force)
    if {path.name for path in (run_dir / UNFINISHED).glob("*")} <= {MANIFEST}:  # no other stage was interrupted
        shutil.rmtree(run_dir / UNFINISHED, ignore_errors=True)


def _build(stage: Stage, folder: Path, fingerprint: str) -> float:
    """Fill a working folder, resuming what an interrupted run with the same settings left, and move it into place."""
    started = time.monotonic()
    unfinished = folder.parent / UNFINISHED
    work_dir = unfinished / f"{stage.name}-{fingerprint[:12]}"
    if not unfinished.exists():
        unfinished.mkdir()
        write_json(unfinished / MANIFEST, {"files": {}})
    for leftover in unfinished.iterdir():  # of this stage with other settings, or what a kill kept from being deleted
        if leftover.is_dir() and leftover != work_dir and leftover.name.startswith((f"{stage.name}-", ".")):
            shutil.rmtree(leftover)
    if work_dir.exists():
        print("      resuming an interrupted run", flush=True)
    work_dir.mkdir(exist_ok=True)
    resume = "free some space and start again: the run resumes from its last complete stage or checkpoint"
    with explained_full_disk(folder.parent, f"stage {stage.name} was not finished; {resume}"):
        with EnergyMeter() as meter:
            if why_outdated(work_dir, fingerprint):
                stage.build(work_dir)
        seconds = time.monotonic() - started
        record = {"stage": stage.name, "fingerprint": fingerprint, "settings": stage.settings, "seconds": round(seconds, 1)}
        record["joules"] = meter.joules
        files = [name for name in list_files(work_dir) if name != MANIFEST]
        write_record(work_dir, MANIFEST, record | {"sha256": hashes_of(work_dir, files)})
    check_replaceable(folder)
    move_into_place(work_dir, folder)
    return seconds
