"""A latency lookup table: what the parts of a model cost on a device, from programs that were timed there.

The latency of a shape is taken to be a sum over its parts: in each stage the numbers of blocks and of heads, and the
multiply-accumulates of attention and of hidden layers, each at a price. Non-negative least squares of relative errors find the
prices. How far the table is off is measured on programs that were left out of the fit (10-fold cross-validation).
"""

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LinearRegression
from torch.utils.flop_counter import FlopCounterMode

from edge.device.errors import ExplainedError
from swin_hf import SwinHfConfig, SwinHfForImageClassification
from swin_hf.configuration_swin_hf import height_width
from swin_hf.output_folders import write_json

FORMAT = "swin-hf latency table 1"
FOLDS = 10
PROGRAMS_PER_PRICE = 2  # at least: with fewer, prices explain the noise
REST = "the rest"  # what all shapes of a table share, and the classifier
AS_THEY_ARE = (  # fields of a config that decide what its parts cost
    *("version", "num_channels", "shift_windows", "mask_padding", "padding", "stem", "downsample", "local_conv", "hidden_act"),
    *("norm", "norm_after_pooling", "qkv_bias", "use_absolute_embeddings"),
)
DERIVED_FROM = ("image_size", "patch_size", "window_size", "stage_windows", "stage_blocks")  # what decides it as well


class LatencyTableError(ExplainedError):
    """A latency table, or what it is to be made of, cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """What the parts of a family of models cost on a machine.

    architecture: what all shapes of the family share, by `architecture_of`.
    prices: of one unit of each part, by `parts_of`, in milliseconds.
    amounts: the least and the most that the programs had of each part.
    median_error, largest_error: relative, of programs that were left out of the fit.
    """

    architecture: dict[str, Any]
    prices: dict[str, float]
    amounts: dict[str, list[float]]
    recipe: str
    threads: int
    machine: str
    num_programs: int
    median_error: float
    largest_error: float

    def __post_init__(self):
        numbers = [*self.prices.values(), *(end for ends in self.amounts.values() for end in ends), self.median_error]
        are_numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in [*numbers, self.largest_error])
        if not are_numbers or any(len(ends) != 2 for ends in self.amounts.values()) or not isinstance(self.architecture, dict):
            raise LatencyTableError("a latency table must have finite numbers as prices, amounts and errors")

    def __call__(self, config: SwinHfConfig) -> float:
        """Milliseconds that the program of a shape takes.

        Raises:
            LatencyTableError: the table is for models of another architecture, or of other sizes.
        """
        parts = parts_of(config)
        self._require_covered(config, parts)
        return sum(price * parts[part] for part, price in self.prices.items())

    def _require_covered(self, config: SwinHfConfig, parts: dict[str, float]) -> None:
        own = architecture_of(config)
        for name in sorted({*own, *self.architecture}):
            if own.get(name) != self.architecture.get(name):
                raise LatencyTableError(
                    f"the latency table is for models with {name} {self.architecture.get(name)!r}, and this one has "
                    f"{own.get(name)!r}; make one for this model: python -m distill.latency"
                )
        for part, amount in parts.items():
            low, high = self.amounts.get(part, (math.inf, -math.inf))
            if not low * (1 - 1e-6) <= amount <= high * (1 + 1e-6):
                raise LatencyTableError(
                    f"the latency table is of programs with {part} from {low:g} to {high:g} {unit_of(part)}, and this shape "
                    f"has {amount:g}; make one anew with the pruning's --scopes and --round_to, or of 'auto' for --student "
                    "auto, which then has no --student_args"
                )

    def described(self) -> str:
        """In words, with the error."""
        return (
            f"by a table of {self.num_programs} programs on {self.machine}, {self.threads} thread(s); on programs left out of "
            f"its fit it is off by {self.median_error:.1%} in the median and {self.largest_error:.1%} at worst"
        )

    def save(self, file: Path) -> None:
        write_json(file, {"format": FORMAT} | asdict(self))

    @classmethod
    def load(cls, file: Path, recipe: str, threads: int) -> "LatencyTable":
        """Read a table that `save` wrote, of programs of a recipe with a number of threads.

        Raises:
            LatencyTableError: the file is missing, damaged or something else, or its programs are of another recipe or were
                timed with another number of threads.
        """
        try:
            found = json.loads(Path(file).read_text())
            if found.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            found.pop("made_by", None)
            table = cls(**found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, LatencyTableError) as error:
            raise LatencyTableError(f"{file} is no latency table that can be read: {type(error).__name__}: {error}") from error
        for name, wanted in (("recipe", recipe), ("threads", threads)):
            if getattr(table, name) != wanted:
                raise LatencyTableError(
                    f"{file} is a table of programs with --{name} {getattr(table, name)}, and --{name} is {wanted}; give the "
                    "same, or make another table"
                )
        return table


def architecture_of(config: SwinHfConfig) -> dict[str, Any]:
    """What decides the cost of a model's parts beside their numbers and widths, as JSON values."""
    stages = range(len(config.depths))
    derived = {
        "image_size": config.image_height_width,
        "patch_size": height_width(config.patch_size),
        "windows": [config.stage_window(stage) for stage in stages if not config.is_convolutional(stage)],
        "convolutional stages": [stage for stage in stages if config.is_convolutional(stage)],
    }
    return json.loads(json.dumps(derived | {name: getattr(config, name) for name in AS_THEY_ARE}))


def unit_of(part: str) -> str:
    """Of an amount of a part."""
    return "" if part == REST else part.rpartition(": ")[2] if part.endswith(("blocks", "heads")) else "M MACs"


def parts_of(config: SwinHfConfig) -> dict[str, float]:
    """How much a model of this shape has of each part: blocks and heads by number, the others in M multiply-accumulates."""
    return _parts_of(config.to_json_string(use_diff=False))


@lru_cache(maxsize=10_000)
def _parts_of(text: str) -> dict[str, float]:
    config = SwinHfConfig.from_dict(json.loads(text))
    with torch.device("meta"):
        model = SwinHfForImageClassification(config).eval()
        model.set_attn_implementation("eager")  # fused attention hides its products from the counter
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, config.num_channels, *config.image_height_width))
    counts = {name.partition(".")[2]: own for name, own in counter.get_flop_counts().items()}
    encoder = f"{model.base_model_prefix}.encoder.layers"
    parts = {REST: 1.0, "stem": _macs(counts, f"{model.base_model_prefix}.embeddings")}
    for stage, depth in enumerate(config.depths):
        blocks = [f"{encoder}.{stage}.blocks.{block}" for block in range(depth)]
        attention = sum(_macs(counts, f"{block}.attention") for block in blocks)
        parts[f"stage {stage}: blocks"] = float(depth)
        parts[f"stage {stage}: hidden layers"] = sum(_macs(counts, block) for block in blocks) - attention
        if not config.is_convolutional(stage):
            products = sum(_macs(counts, f"{block}.attention", of_products=True) for block in blocks)
            parts[f"stage {stage}: heads"] = float(sum(config.block_widths(stage, own).num_heads for own in range(depth)))
            parts[f"stage {stage}: projections of attention"] = attention - products
            parts[f"stage {stage}: products of attention"] = products
        if stage + 1 < len(config.depths):
            parts[f"stage {stage}: downsampling"] = _macs(counts, f"{encoder}.{stage}.downsample")
    return parts


def _macs(counts: dict[str, dict[Any, int]], module: str, of_products: bool = False) -> float:
    """Millions of multiply-accumulates of a module, all or those of products of activations."""
    own = counts.get(module, {})
    return sum(flops for operator, flops in own.items() if not of_products or operator is torch.ops.aten.bmm) / 2e6


def varying_parts(configs: list[SwinHfConfig]) -> list[str]:
    """The parts of which not all shapes have the same amount."""
    parts = [parts_of(config) for config in configs]
    return [name for name in parts[0] if len({round(own.get(name, -1.0), 9) for own in parts}) > 1]


def programs_needed(configs: list[SwinHfConfig]) -> int:
    """How many programs a table of such shapes must be made of at least."""
    return PROGRAMS_PER_PRICE * (1 + len(varying_parts(configs)))


def fit_table(configs: list[SwinHfConfig], latencies: list[float], recipe: str, threads: int, machine: str) -> LatencyTable:
    """The table that explains latencies (n,) in milliseconds of n shapes.

    Raises:
        LatencyTableError: there are too few of them, a latency is not positive, or the shapes are of several architectures.
    """
    architecture = architecture_of(configs[0])
    if any(architecture_of(config) != architecture for config in configs):
        raise LatencyTableError("the programs of a latency table must be of one architecture")
    needed = programs_needed(configs)
    if len(configs) < needed or len(configs) != len(latencies):
        raise LatencyTableError(
            f"a latency table of these shapes must be made of {needed} programs or more, each with its latency, got "
            f"{len(configs)} programs and {len(latencies)} latencies"
        )
    if not all(math.isfinite(value) and value > 0 for value in latencies):
        raise LatencyTableError(f"latencies must be positive numbers of milliseconds, got {min(latencies)}")
    parts, names = [parts_of(config) for config in configs], [REST, *varying_parts(configs)]
    amounts = np.array([[own[name] for name in names] for own in parts])
    times, folds = np.array(latencies, dtype=float), np.arange(len(parts)) % FOLDS
    errors = np.zeros(len(parts))
    for fold in range(FOLDS):
        prices = _fitted(amounts[folds != fold], times[folds != fold])
        errors[folds == fold] = np.abs(amounts[folds == fold] @ prices / times[folds == fold] - 1)
    return LatencyTable(
        architecture=architecture,
        prices=dict(zip(names, _fitted(amounts, times).tolist())),
        amounts={name: [min(own[name] for own in parts), max(own[name] for own in parts)] for name in parts[0]},
        recipe=recipe,
        threads=threads,
        machine=machine,
        num_programs=len(parts),
        median_error=float(np.median(errors)),
        largest_error=float(errors.max()),
    )


def _fitted(amounts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Prices that are not negative, by least squares of relative errors."""
    relative = amounts / times[:, None]
    scales = relative.max(axis=0)
    fit = LinearRegression(positive=True, fit_intercept=False).fit(relative / scales, np.ones(len(times)))
    return fit.coef_ / scales
