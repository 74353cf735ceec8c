"""Programs of models that nobody trained: what a shape costs on this machine does not depend on its weights."""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge.compare.engines import Contender, Engine, EngineError
from edge.deploy.form import deploy
from edge.device.artefact import PROGRAM_FILE, Manifest, Source, constants_of, sha256_of
from edge.device.environment import installed_versions
from edge.device.errors import ExplainedError
from edge.export.checkpoint import input_contract, input_view, outputs_named, task_of
from edge.lower.lowering import Lowered, lower, trace
from edge.lower.quantize import in_precision
from edge.lower.recipes import Recipe
from edge.quiet import quieten
from swin_hf import SwinHfConfig, SwinHfForImageClassification, SwinHfImageProcessorPil

ROUNDS, REPEATS = 10, 100  # turns of each program at least, and the runs in ten turns
SECONDS = 1.0  # that turns of the faster program go on for: other work of the machine comes in bursts
MOST_ROUNDS = 1000


class CandidateError(ExplainedError):
    """A program cannot be timed; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ProgramCost:
    """What a program costs.

    latency_ms: the median of the quietest turn. ratio: of the latency to that of the program that it was timed beside; 1 if
    there was none.
    """

    latency_ms: float
    ratio: float
    size_mb: float

    def __str__(self) -> str:
        share = f", {self.ratio:.1%} of the latency before" if self.ratio != 1 else ""
        return f"{self.size_mb:.3g} MB, {self.latency_ms:.3g} ms{share}"


def random_classifier(config: SwinHfConfig) -> SwinHfForImageClassification:
    """A model with random weights and no tensor of zeros, since equal tensors would be stored only once."""
    config = copy.deepcopy(config)
    config.zero_init_residual = False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = SwinHfForImageClassification(config).eval()
        for name, parameter in model.named_parameters():
            if "bias" in name:  # tables of biases too
                parameter.normal_()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                part.running_mean.uniform_(-0.1, 0.1)
                part.running_var.uniform_(0.5, 1.5)
    return model


def processor_of(config: SwinHfConfig) -> SwinHfImageProcessorPil:
    """An image processor for images of the model's size."""
    height, width = config.image_height_width
    return SwinHfImageProcessorPil(size={"height": height, "width": width}, num_channels=config.num_channels)


def lower_unchecked(
    model: SwinHfForImageClassification,
    recipe: Recipe,
    images: list[torch.Tensor] | None = None,
    constants: dict[str, object] | None = None,
) -> Lowered:
    """Lower a classifier by a recipe, with scales found on inputs of its program, by default on noise; nothing is checked.

    constants: see `edge.lower.lowering.lower`.
    """
    processor = processor_of(model.config)
    contract = input_contract(model.config, processor)
    if images is None:
        images = [torch.rand(contract.shape(), generator=torch.Generator().manual_seed(0))]
    deployed = deploy(model, input_view(processor, contract, **contract.one_image), compact=recipe.is_quantized)
    return lower(trace({"forward": (in_precision(deployed, recipe, images), images[0])}), recipe, constants or {})


def write_candidates(folders: list[Path], configs: list[SwinHfConfig], recipe: Recipe, processes: int) -> Iterator[str]:
    """`write_candidate` for each folder and config, several at a time in processes of their own."""
    if processes == 1:
        yield from map(write_candidate, folders, configs, repeat(recipe))
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin_process) as pool:
        yield from pool.map(write_candidate, folders, configs, repeat(recipe))


def _begin_process() -> None:
    quieten()
    torch.set_num_threads(1)  # each process has a processor of its own


def write_candidate(folder: Path, config: SwinHfConfig, recipe: Recipe) -> str:
    """Write an artefact with a program of random weights to a new folder, to be timed by `edge bench` on any device.

    Returns:
        The SHA-256 of the program.
    """
    folder.mkdir(parents=True)
    model, contract = random_classifier(config), input_contract(config, processor_of(config))
    labels = outputs_named(model)
    lowered = lower_unchecked(model, recipe, constants=constants_of(labels, 1.0, contract))
    sha256 = sha256_of(lowered.program)
    (folder / PROGRAM_FILE).write_bytes(lowered.program)
    Manifest(
        task=task_of(model),
        labels=labels,
        temperature=1.0,
        input=contract,
        methods={"forward": contract.one_image},
        recipe=recipe.name,
        backend=recipe.backend,
        equalised=False,
        kept_in_float=[],
        parity={},
        accuracy={},
        program=lowered.as_manifest(),
        self_test=None,
        source=Source(checkpoint="random weights", parameters=sum(weight.numel() for weight in model.parameters())),
        versions=installed_versions("swin-hf", "torch", "executorch", "torchao", "transformers"),
        sha256={PROGRAM_FILE: sha256},
    ).write(folder)
    return sha256


def program_contender(name: str, file: Path, shape: tuple[int, ...]) -> Contender:
    """A program to be timed, with its input's shape."""
    return Contender(name=name, engine="executorch", file=str(file), shape=shape)


class ProgramCosts:
    """Measures programs of other shapes, each timed in turns with the program of the shape `before`, or alone without one.

    A shape is lowered and timed once; `before` is itself at a ratio of 1. To be closed, or used in a `with`.

    known: what was measured beside the same `before`, by the JSON of the shapes; new ones are added.
    announce: is called with each new one.
    """

    def __init__(
        self,
        before: SwinHfConfig | None,
        recipe: Recipe,
        threads: int,
        repeats: int = REPEATS,
        known: dict[str, ProgramCost] | None = None,
        announce: Callable[[ProgramCost], None] = lambda cost: None,
    ):
        self._recipe, self._repeats, self._threads, self._announce = recipe, repeats, threads, announce
        self._folder = tempfile.TemporaryDirectory(prefix="swin-hf-programs-")
        self._known = {} if known is None else known
        self._before: Engine | None = None
        self._before_config = before

    def __enter__(self) -> "ProgramCosts":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._before is not None:
            self._before.close()
        self._folder.cleanup()

    def __call__(self, config: SwinHfConfig) -> ProgramCost:
        """What the program of a shape costs.

        Raises:
            CandidateError: it cannot be run.
        """
        key = config.to_json_string()
        if key not in self._known:
            if self._before is None and self._before_config is not None:
                self._before, self._before_bytes = self._open(self._before_config)
            is_before = self._before_config is not None and key == self._before_config.to_json_string()
            self._known[key] = self._timed_before() if is_before else self._timed(config)
            self._announce(self._known[key])
        return self._known[key]

    def _open(self, config: SwinHfConfig) -> tuple[Engine, int]:
        file = Path(self._folder.name) / f"{len(list(Path(self._folder.name).iterdir()))}.pte"
        file.write_bytes(lower_unchecked(random_classifier(config), self._recipe).program)
        shape = (1, config.num_channels, *config.image_height_width)
        return Engine(program_contender("program", file, shape), self._threads), file.stat().st_size

    def _timed_before(self) -> ProgramCost:
        (latency,) = self._latencies([self._before])
        return ProgramCost(latency_ms=latency, ratio=1.0, size_mb=self._before_bytes / 1e6)

    def _timed(self, config: SwinHfConfig) -> ProgramCost:
        own, size_bytes = self._open(config)
        try:
            latencies = self._latencies([own] if self._before is None else [self._before, own])
        finally:
            own.close()
        return ProgramCost(latency_ms=latencies[-1], ratio=latencies[-1] / latencies[0], size_mb=size_bytes / 1e6)

    def _latencies(self, engines: list[Engine]) -> list[float]:
        """The latency of each program in its quietest turn, in milliseconds."""
        runs = max(self._repeats // ROUNDS, 1)
        try:
            fastest = min(sum(engine.turn(runs)) for engine in engines) / 1e3  # a warm-up
            rounds = min(max(math.ceil(SECONDS / fastest), ROUNDS), MOST_ROUNDS)
            return np.min([[np.median(engine.turn(runs)) for engine in engines] for _ in range(rounds)], axis=0).tolist()
        except EngineError as error:
            raise CandidateError(f"a program cannot be timed on this machine: {error}") from error
