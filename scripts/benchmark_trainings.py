"""Trainings of a benchmark: a process for each, several at a time, and none that a report already has."""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from benchmark_outputs import measured_here
from scipy import stats

from edge.device.environment import environment_of_child
from edge.device.errors import ExplainedError
from swin_hf.output_folders import write_json


class Training(Protocol):
    """What a worker trains: a dataclass of JSON values. key: its name in a report."""

    key: str


def begin_report(arguments: argparse.Namespace, *packages: str) -> dict:
    """The report in `arguments.output_file`, or a new one, with this machine and today's date; "trainings" are kept."""
    report = json.loads(arguments.output_file.read_text()) if arguments.output_file.is_file() else {}
    report |= measured_here(*packages) | {"epochs": arguments.epochs}
    if torch.cuda.is_available():
        report["trained_on"] = torch.cuda.get_device_name()
    report.setdefault("trainings", {})
    return report


def run_all(worker: str, trainings: list, done: dict[str, dict], arguments: argparse.Namespace, report: dict) -> None:
    """Run the trainings that are not in `done`, several processes at a time, and write the report after each.

    worker: the command of scripts/benchmark.py that runs one.

    Raises:
        ExplainedError: one failed.
    """
    lock = Lock()

    def run(training: Training) -> None:
        figures = run_worker(worker, training, max((os.cpu_count() or 1) // arguments.processes, 1))
        with lock:
            done[training.key] = figures
            write_json(arguments.output_file, report)
        print(f"{training.key}: {json.dumps(figures)}", flush=True)

    missing = {training.key: training for training in trainings if training.key not in done}
    with ThreadPoolExecutor(arguments.processes) as pool:
        list(pool.map(run, missing.values()))


def run_worker(worker: str, training: Training, threads: int) -> dict:
    """The figures of a training in a process of its own.

    Raises:
        ExplainedError: it failed; the message is the end of its stderr.
    """
    command = [sys.executable, str(Path(__file__).parent / "benchmark.py"), worker, json.dumps(vars(training))]
    environment = environment_of_child() | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise ExplainedError(f"the training {training.key} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def mean_and_interval(values: list[float]) -> tuple[float, list[float] | None]:
    """The mean and its 95 % interval by Student's t distribution, which a single value does not have."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, [mean - half, mean + half]
