"""The programs of other runs on the same images, beside which a report shows its own."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distill.pipeline.stages import MANIFEST, fingerprint_of

REPORT = "report.json"
# What may differ between runs whose test images are the same: how they are stored, and what they are called.
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


def other_runs(run_dir: Path, test_images: str, machine: str, threads: int) -> list[OtherRun]:
    """Those in the folder beside this one with a report on the same test images, timed on this machine with these threads."""
    here, found = run_dir.resolve(), []
    try:
        folders = sorted(here.parent.iterdir())
    except OSError:  # it may be another's
        return []
    for folder in folders:
        with suppress(OSError, ValueError, LookupError, TypeError):  # another's report, damaged or of another version
            if folder == here or not (folder / REPORT).is_file():
                continue
            content = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            row, alike = content["rows"][-1], (content["test_images"], content["machine"])
            if test_images and alike == (test_images, machine) and row["latency"]["threads"] == threads:
                own = {name: float(row[name]) for name in ("accuracy", "low", "high")}
                own |= {"size_bytes": int(row["size_bytes"]), "p50_ms": float(row["latency"]["p50_ms"])}
                found.append(OtherRun(name=folder.name, step=str(row["step"]), **own))
    return found


def name_of_test_images(run_dir: Path) -> str:
    """A name of the test images of a run: the same for all runs that have the same ones; empty if that is not recorded."""
    try:
        settings = json.loads((run_dir / "data" / MANIFEST).read_text(encoding="utf-8"))["settings"]
        left_out = (*HOW_STORED, "dataset") if settings["files"] else HOW_STORED  # a folder is known by its files
        kept = {name: value for name, value in settings.items() if name not in left_out}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ""
    return fingerprint_of(kept)


def on_the_frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (cost, gain), those that no other one equals or beats in both; the cheapest first."""
    kept: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or gain > kept[-1][1]:
            kept.append((cost, gain))
    return kept
