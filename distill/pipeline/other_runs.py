"""The programs of other runs on the same images, beside which a report shows its own."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPORT = "report.json"
# What may differ between runs whose test images are the same: how they are stored, and what the report calls them.
HOW_STORED = ("image_size", "dataset_name")


@dataclass(frozen=True, kw_only=True)
class OtherRun:
    """The program of another run. name: of the run. step: its row. low, high: 95 % interval of the accuracy."""

    name: str
    step: str
    accuracy: float
    low: float
    high: float
    size_bytes: int
    p50_ms: float


def other_runs(run_dir: Path, machine: str, threads: int) -> list[OtherRun]:
    """Those in the folder beside this one with a report on the same test images, timed on this machine with these threads."""
    here, found = run_dir.resolve(), []
    images = images_of(here)
    try:
        folders = sorted(here.parent.iterdir())
    except OSError:  # it may be another's
        folders = []
    for folder in folders:
        with suppress(OSError, ValueError, LookupError, TypeError):  # another's report, damaged or of another version
            if folder == here or not (folder / REPORT).is_file():
                continue
            content = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            row = content["rows"][-1]
            is_alike = content["machine"] == machine and row["latency"]["threads"] == threads
            if is_alike and images is not None and images_of(folder) == images:
                own = {name: row[name] for name in ("step", "accuracy", "low", "high", "size_bytes")}
                found.append(OtherRun(name=content["name"], p50_ms=row["latency"]["p50_ms"], **own))
    return found


def images_of(run_dir: Path) -> dict[str, Any] | None:
    """What the test images of a run depend on; None if that is not recorded."""
    try:
        settings = json.loads((run_dir / "data" / "stage.json").read_text(encoding="utf-8"))["settings"]
        return {name: value for name, value in settings.items() if name not in HOW_STORED}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def on_the_frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (cost, gain), those that no other one equals or beats in both; the cheapest first."""
    kept: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or gain > kept[-1][1]:
            kept.append((cost, gain))
    return kept
