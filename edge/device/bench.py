"""Latency, load time and memory of a program on this machine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import operations
from .artefact import PROGRAM_FILE, SELF_TEST_FILE, read_manifest
from .child import explain_signal
from .environment import describe_machine, environment_of_child, memory_of_this_process
from .errors import ExplainedError
from .image import random_pixel_values
from .json_text import json_text
from .program import sections
from .runner import Runner

TURNS, SETTLE_RUNS = 10, 3  # of each of several functions; untimed runs at the start of a turn
WARM_UP_SHARE = 0.1  # of the repeats, for a function that is timed alone


class MeasurementError(ExplainedError):
    """A measurement failed in the process that was started for it; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles of the wall-clock time of single runs, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    repeats: int
    threads: int


def measure_latency(runs: dict[str, Callable[[], object]], repeats: int, threads: int) -> dict[str, Latency]:
    """Time a function, or several in turns of several runs, so that slow moments of the machine affect all of them alike.

    The first runs of a turn do not count: what they need is no longer in the caches, as the other functions used them.
    threads: recorded, not set.
    """
    turns, settle_runs = (1, max(round(repeats * WARM_UP_SHARE), 1)) if len(runs) == 1 else (TURNS, SETTLE_RUNS)
    times = _times_in_turns({name: lambda run=run: run for name, run in runs.items()}, repeats, turns, settle_runs)
    return {name: summarise(own, threads) for name, own in times.items()}


def _times_in_turns(
    begin: dict[str, Callable[[], Callable[[], object]]], repeats: int, turns: int = TURNS, settle_runs: int = SETTLE_RUNS
) -> dict[str, list[float]]:
    """Times of single runs, in milliseconds. begin: begins a turn, and returns the function that is timed in it."""
    times: dict[str, list[float]] = {name: [] for name in begin}
    turns = min(turns, repeats)
    for turn in range(turns):
        for name, begin_turn in begin.items():
            run = begin_turn()
            for _ in range(settle_runs):
                run()
            for _ in range(repeats // turns + (turn < repeats % turns)):
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def summarise(times_ms: list[float], threads: int) -> Latency:
    """Percentiles of times in milliseconds."""
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, (50, 90, 99)))
    return Latency(p50_ms=p50, p90_ms=p90, p99_ms=p99, repeats=len(times_ms), threads=threads)


def bench(folder: Path, repeats: int = 100, threads: tuple[int, ...] | None = None, traced: bool = False) -> dict:
    """Load time, latency for each number of threads, memory and sizes, as JSON values.

    Each number of threads is measured in a new process, in which nothing was loaded before.
    traced: also where the time goes (`edge.device.operations`), on the first number of threads.

    Raises:
        ArtefactError: the artefact is missing or damaged.
        MeasurementError: the program puts out NaN or infinity, or crashed.
    """
    numbers = threads or all_numbers_of_threads()
    Runner(folder)  # a damaged artefact is explained before the first process starts
    measured = [_measure_alone("one", repeats, number, folder) for number in numbers]
    first = measured[0]
    profile = {"profile": _measure_alone("operations", repeats, numbers[0], folder)} if traced else {}
    return profile | {
        "recipe": first["recipe"],
        "sizes": first["sizes"],
        "load_ms": first["load_ms"],
        "first_run_ms": first["first_run_ms"],
        "program_memory_bytes": first["program_memory_bytes"],
        "planned_memory_bytes": first["planned_memory_bytes"],
        "latency": [row["latency"] for row in measured],
        "machine": describe_machine(),
    }


def all_numbers_of_threads() -> tuple[int, ...]:
    """From one thread to one for each core."""
    return tuple(range(1, (os.cpu_count() or 1) + 1))


def bench_in_turns(folders: list[Path], repeats: int = 100, threads: tuple[int, ...] | None = None) -> dict:
    """Latency of several programs, timed in turns so that slow moments of the machine affect all alike, as JSON values.

    Raises:
        As `bench`.
    """
    numbers = threads or all_numbers_of_threads()
    manifests = [Runner(folder).manifest for folder in folders]
    measured = [_measure_alone("turns", repeats, number, *folders) for number in numbers]
    programs = [
        {"artefact": str(folder), "recipe": manifest.recipe, "sha256": manifest.sha256[PROGRAM_FILE]}
        | {"latency": [latencies[at] for latencies in measured]}
        for at, (folder, manifest) in enumerate(zip(folders, manifests))
    ]
    return {"programs": programs, "machine": describe_machine()}


def describe_all(figures: dict) -> str:
    """The figures of `bench_in_turns` as text."""
    lines = []
    for program in figures["programs"]:
        lines.append(f"{program['artefact']}, recipe {program['recipe']}")
        lines += [line_of(row) for row in program["latency"]]
    return "\n".join([*lines, f"  on {figures['machine']}"])


def describe(figures: dict, more_lines: list[str] | None = None) -> str:
    """The figures of `bench` as text.

    more_lines: for the end, before the machine.
    """
    sizes = ", ".join(f"{name} {size / 1e3:.0f} kB" for name, size in figures["sizes"].items())
    lines = [
        f"recipe {figures['recipe']}; {sizes}",
        f"  cold start: loaded in {figures['load_ms']:.0f} ms, first run {figures['first_run_ms']:.1f} ms",
        f"  memory: the process grew by {figures['program_memory_bytes'] / 1e6:.1f} MB at its peak, of which "
        f"{figures['planned_memory_bytes'] / 1e3:.0f} kB are the runtime's arena",
    ]
    lines += [line_of(row) for row in figures["latency"]]
    if "profile" in figures:
        lines += operations.describe(figures["profile"])
    return "\n".join([*lines, *(more_lines or []), f"  on {figures['machine']}"])


def line_of(row: dict) -> str:
    """The percentiles of a latency as text."""
    return (
        f"  {row['threads']} thread(s): p50 {row['p50_ms']:.3f} ms, p90 {row['p90_ms']:.3f} ms, p99 {row['p99_ms']:.3f} ms "
        f"({row['repeats']} runs)"
    )


def _measure_alone(what: str, repeats: int, threads: int, *folders: Path) -> Any:
    """What `_main` measures in a new process."""
    command = [sys.executable, "-m", f"{__package__}.bench", what, str(repeats), str(threads), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of_child())
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = explain_signal(-done.returncode) if done.returncode < 0 else said[-1]
        raise MeasurementError(f"the measurement with {threads} thread(s) failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_here(folder: Path, repeats: int, threads: int) -> dict:
    """Load a program in this process and time it."""
    contract = read_manifest(folder).input
    pixels = random_pixel_values(contract.shape(), contract.dtype)
    _forget(folder / PROGRAM_FILE)
    memory_before, start = memory_of_this_process("VmRSS"), time.perf_counter()
    runner = Runner(folder, num_threads=threads)
    loaded = time.perf_counter()
    runner.outputs(pixels)
    first_run = time.perf_counter()
    latency = measure_latency({"program": partial(runner.outputs, pixels)}, repeats, threads)["program"]
    return {
        "recipe": runner.manifest.recipe,
        "sizes": sizes_of(folder),
        "load_ms": (loaded - start) * 1e3,
        "first_run_ms": (first_run - loaded) * 1e3,
        "program_memory_bytes": max(memory_of_this_process("VmHWM") - memory_before, 0),
        "planned_memory_bytes": runner.manifest.program["planned_memory_bytes"],
        "latency": vars(latency),
    }


def measure_in_turns(folders: list[Path], repeats: int, threads: int) -> list[dict]:
    """Time programs in this process in turns; in each, a program is loaded anew, as many may not fit into a small memory."""
    inputs: dict[Path, np.ndarray] = {}

    def begin_turn(folder: Path) -> Callable[[], object]:
        runner = Runner(folder, num_threads=threads)
        if folder not in inputs:
            contract = runner.manifest.input
            inputs[folder] = random_pixel_values(contract.shape(), contract.dtype)
        return partial(runner.outputs, inputs[folder])

    times = _times_in_turns({str(at): partial(begin_turn, folder) for at, folder in enumerate(folders)}, repeats)
    return [vars(summarise(own, threads)) for own in times.values()]


def _forget(path: Path) -> None:
    """Ask the system to drop a file from its cache, so that it is read from the disk as after a reboot (Linux)."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sizes_of(folder: Path) -> dict[str, int]:
    """Bytes of the program and of the other files of an artefact."""
    folder = Path(folder)
    program, bundle = (folder / name for name in (PROGRAM_FILE, SELF_TEST_FILE))
    beside = sum(path.stat().st_size for path in folder.iterdir() if path not in (program, bundle))
    content = program.read_bytes()
    graph_bytes, data_start = sections(content)
    sizes = {
        "program": len(content),
        "of it graph": graph_bytes,
        "of it weights and constants": len(content) - data_start,
        "descriptions": beside,
    }
    return sizes | ({"self-test": bundle.stat().st_size} if bundle.is_file() else {})


def _main(what: str, repeats: str, threads: str, *folders: str) -> Any:
    paths = [Path(folder) for folder in folders]
    if what == "turns":
        return measure_in_turns(paths, int(repeats), int(threads))
    measure = operations.profile if what == "operations" else measure_here
    return measure(paths[0], int(repeats), int(threads))


if __name__ == "__main__":
    try:
        print(json_text(_main(*sys.argv[1:]), indent=None))
    except ExplainedError as error:
        sys.exit(str(error))
