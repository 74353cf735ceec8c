"""Latency of a program on this machine."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edge.environment import describe_machine
from edge.runner import Runner


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall-clock times of single runs, in milliseconds."""

    p50_ms: float
    p90_ms: float
    repeats: int
    threads: int


def measure_latency(runs: dict[str, Callable[[], object]], repeats: int, threads: int) -> dict[str, Latency]:
    """Time several things in turn, so that a slow moment of the machine hits all of them alike.

    The caller sets the number of threads; it is only recorded here. Each is warmed up with a tenth of the repeats.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + max(repeats // 10, 1)):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {
        name: Latency(
            p50_ms=float(np.percentile(values[-repeats:], 50) * 1e3),
            p90_ms=float(np.percentile(values[-repeats:], 90) * 1e3),
            repeats=repeats,
            threads=threads,
        )
        for name, values in times.items()
    }


def bench(folder: Path, repeats: int = 200) -> dict:
    """Cold load time, and latency with one thread and with all cores, as JSON values."""
    load_ms, latencies = [], []
    for threads in sorted({1, os.cpu_count() or 1}):
        start = time.perf_counter()
        runner = Runner(folder, num_threads=threads)
        load_ms.append((time.perf_counter() - start) * 1e3)
        contract = runner.manifest.input
        shape = (1, contract.channels, contract.height, contract.width)
        pixel_values = np.random.default_rng(0).random(shape, np.float32)
        measured = measure_latency({"program": partial(runner.logits, pixel_values)}, repeats, threads)
        latencies.append(measured["program"])
    return {
        "recipe": runner.manifest.recipe,
        "size_bytes": runner.manifest.program["size_bytes"],
        "load_ms": load_ms[0],  # the first, with nothing cached in the process
        "latency": [vars(latency) for latency in latencies],
        "machine": describe_machine(),
    }
