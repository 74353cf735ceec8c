"""Latency of a checkpoint in PyTorch on this machine."""

from pathlib import Path

import torch

from edge.compare.engines import Contender, take_turns
from edge.compare.macs import count_macs
from edge.deploy.form import encoder_config
from edge.device.bench import TURNS, MeasurementError, all_numbers_of_threads, line_of, summarise
from edge.device.environment import describe_machine
from edge.export.checkpoint import load_checkpoint
from swin_hf import SwinHfForImageClassification


def bench_checkpoint(folder: Path, repeats: int = 100, threads: tuple[int, ...] | None = None) -> dict:
    """Latency of a classifier in PyTorch's eager mode for each number of threads, and its size, as JSON values.

    Each number of threads is measured in a new process.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        MeasurementError: it is no classifier, or cannot be run.
    """
    model, _ = load_checkpoint(folder)
    if not isinstance(model, SwinHfForImageClassification):
        raise MeasurementError("a checkpoint must be a classifier to be timed; export the others, and time the program")
    config = encoder_config(model)
    shape = (1, config.num_channels, *config.image_height_width)
    latency = []
    for number in threads or all_numbers_of_threads():
        contender = Contender(name="checkpoint", engine="pytorch", file=str(folder), shape=shape)
        turns = min(TURNS, repeats)
        times = take_turns([contender], turns, -(-repeats // turns), number)["checkpoint"]
        if "error" in times:
            raise MeasurementError(f"the measurement with {number} thread(s) failed: {times['error'][0]}")
        latency.append(vars(summarise(times["turns"][:repeats], number)))
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(model, torch.zeros(shape)),
        "latency": latency,
        "machine": describe_machine(),
    }


def describe(figures: dict) -> str:
    """The figures of `bench_checkpoint` as text."""
    lines = [f"PyTorch eager; {figures['parameters']:,} parameters, {figures['macs'] / 1e6:,.1f} M MACs"]
    return "\n".join([*lines, *map(line_of, figures["latency"]), f"  on {figures['machine']}"])
