"""A table of what the parts of a model cost on a device, from programs that were timed there.

Programs of some shapes are timed. The latency of a shape is taken to be a sum over its parts, in each stage the number of
blocks, of heads, and the multiply-accumulates of attention and of hidden layers, each at a price that cannot be negative; the
prices are fitted by least squares of relative errors. How far the table can be trusted is measured on programs that were left
out of the fit (10-fold cross-validation).
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LinearRegression
from torch.utils.flop_counter import FlopCounterMode

from distill.compress.channels import group_size, groups_of
from distill.pruning.apply import pruned_config
from distill.pruning.importance import Importance
from distill.pruning.targets import SCOPES
from distill.pruning.units import Unit, plan_without, units_of
from edge.device.errors import ExplainedError
from swin_hf import SwinHfConfig, SwinHfForImageClassification
from swin_hf.output_folders import write_json

FORMAT = "swin-hf latency table 1"
FOLDS = 10
MIN_PROGRAMS = 12
TRIES = 10  # to draw a shape that is new, for each that is wanted
REST = "the rest"  # what no shape of the table changes
ARCHITECTURE = (  # fields of a config that decide what its parts cost, but for the parts' numbers and widths
    *("version", "num_channels", "patch_size", "window_size", "stage_windows", "shift_windows", "mask_padding", "padding"),
    *("stem", "stage_blocks", "downsample", "local_conv", "hidden_act", "norm", "norm_after_pooling", "qkv_bias"),
    "use_absolute_embeddings",
)


class LatencyTableError(ExplainedError):
    """A latency table, or what it is to be made of, cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """ms_per_unit: milliseconds for one block, head or million multiply-accumulates of a part, by `parts_of`."""

    part: str
    ms_per_unit: float


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """What the parts of a family of models cost on a machine.

    architecture: the fields of a config that all shapes share, as in `architecture_of`.
    median_error, largest_error: relative, of programs that were left out of the fit.
    """

    architecture: dict[str, Any]
    recipe: str
    threads: int
    machine: str
    num_programs: int
    median_error: float
    largest_error: float
    prices: list[Price]

    def __call__(self, config: SwinHfConfig) -> float:
        """Milliseconds that the program of a shape takes.

        Raises:
            LatencyTableError: the table is for models of another architecture.
        """
        self._require_architecture(config)
        parts = parts_of(config)
        return sum(price.ms_per_unit * parts.get(price.part, 0.0) for price in self.prices)

    def _require_architecture(self, config: SwinHfConfig) -> None:
        own = architecture_of(config)
        different = sorted(name for name in own | self.architecture if own.get(name) != self.architecture.get(name))
        if different:
            name = different[0]
            raise LatencyTableError(
                f"the latency table must be for models with {name} {own.get(name)!r}, got one for "
                f"{self.architecture.get(name)!r}; make one for this model: python -m distill.latency"
            )

    def described(self) -> str:
        """In words, with the error."""
        return (
            f"by a table of {self.num_programs} programs on {self.machine}, {self.threads} thread(s), which is off by "
            f"{self.median_error:.1%} in the median and {self.largest_error:.1%} at most"
        )

    def save(self, file: Path) -> None:
        write_json(file, {"format": FORMAT} | asdict(self))

    @classmethod
    def load(cls, file: Path, recipe: str) -> "LatencyTable":
        """Read a table that `save` wrote, of programs of a recipe.

        Raises:
            LatencyTableError: the file is missing, damaged or something else, or its programs are of another recipe.
        """
        try:
            found = json.loads(Path(file).read_text())
            if found.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            found.pop("made_by", None)
            table = cls(**(found | {"prices": [Price(**price) for price in found["prices"]]}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LatencyTableError(f"{file} is no latency table that can be read: {type(error).__name__}: {error}") from error
        if table.recipe != recipe:
            raise LatencyTableError(f"{file} must be a table of programs of the recipe {recipe}, got {table.recipe}")
        return table


def architecture_of(config: SwinHfConfig) -> dict[str, Any]:
    """The size of the images, and the fields of a config in `ARCHITECTURE`, as JSON values."""
    values = {"image_size": list(config.image_height_width)} | {name: getattr(config, name) for name in ARCHITECTURE}
    return json.loads(json.dumps(values))


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


def fit_table(configs: list[SwinHfConfig], latencies: list[float], recipe: str, threads: int, machine: str) -> LatencyTable:
    """The table that explains latencies (n,) in milliseconds of n shapes.

    Raises:
        LatencyTableError: there are too few of them, a latency is not positive, or the shapes are of several architectures.
    """
    if len(configs) < MIN_PROGRAMS or len(configs) != len(latencies):
        raise LatencyTableError(
            f"a latency table must be made of {MIN_PROGRAMS} programs or more, each with its latency, got {len(configs)} "
            f"programs and {len(latencies)} latencies"
        )
    if not all(np.isfinite(value) and value > 0 for value in latencies):
        raise LatencyTableError(f"latencies must be positive numbers of milliseconds, got {min(latencies)}")
    architecture = architecture_of(configs[0])
    if any(architecture_of(config) != architecture for config in configs):
        raise LatencyTableError("the programs of a latency table must be of one architecture")
    parts = [parts_of(config) for config in configs]
    names = [REST, *(name for name in parts[0] if len({round(own[name], 9) for own in parts}) > 1)]
    amounts = np.array([[own[name] for name in names] for own in parts])
    times, folds = np.array(latencies, dtype=float), np.arange(len(parts)) % FOLDS
    errors = np.zeros(len(parts))
    for fold in range(FOLDS):
        prices = _fitted(amounts[folds != fold], times[folds != fold])
        errors[folds == fold] = np.abs(amounts[folds == fold] @ prices / times[folds == fold] - 1)
    return LatencyTable(
        architecture=architecture,
        recipe=recipe,
        threads=threads,
        machine=machine,
        num_programs=len(parts),
        median_error=float(np.median(errors)),
        largest_error=float(errors.max()),
        prices=[Price(part=name, ms_per_unit=float(price)) for name, price in zip(names, _fitted(amounts, times))],
    )


def _fitted(amounts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Prices that are not negative, by least squares of relative errors."""
    relative = amounts / times[:, None]
    scales = relative.max(axis=0)
    fit = LinearRegression(positive=True, fit_intercept=False).fit(relative / scales, np.ones(len(times)))
    return fit.coef_ / scales


def sampled_shapes(config: SwinHfConfig, scopes: Iterable[str], round_to: int, count: int, seed: int) -> list[SwinHfConfig]:
    """The shape itself, and others that pruning could make of it, spread over what the scopes allow.

    In each, every scope has lost a share of its own in each stage, drawn from 0 to all that can be removed.
    """
    groups = {group: torch.ones(group_size(group, config)) for group in groups_of(config)}
    blocks = {(stage, block): 1.0 for stage, depth in enumerate(config.depths) for block in range(depth)}
    importance = Importance(channels=groups, blocks=blocks)
    units = units_of(config, importance, tuple(scope for scope in SCOPES if scope in set(scopes)), round_to)
    rng = np.random.default_rng(seed)
    shapes = {config.to_json_string(): config}
    for _ in range(TRIES * count):
        if len(shapes) == count:
            break
        removed = _drawn(units, rng)
        shape = pruned_config(config, plan_without(config, importance, removed))
        shapes.setdefault(shape.to_json_string(), shape)
    return list(shapes.values())


def _drawn(units: list[Unit], rng: np.random.Generator) -> list[Unit]:
    """Units to remove: of each scope in each stage a share, the first ones of each place."""
    places: dict[tuple[str, tuple[int, int]], list[Unit]] = {}
    for unit in units:
        places.setdefault((unit.scope, unit.place), []).append(unit)
    shares = {key: rng.uniform() for key in dict.fromkeys((scope, place[0]) for scope, place in places)}
    return [unit for (scope, place), own in places.items() for unit in own[: round(shares[scope, place[0]] * len(own))]]
