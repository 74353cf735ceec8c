"""What users say about pruning: how much a model may cost, what may be removed, and by which criterion."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from distill.errors import SettingsError
from edge.device.errors import ExplainedError

Value = TypeVar("Value")

UNITS = {"macs": (1e-6, "M MACs"), "params": (1e-3, "K parameters"), "latency_ms": (1, "ms"), "size_mb": (1, "MB")}
SUFFIXES = {"K": 1e3, "M": 1e6, "G": 1e9}
SMALLEST_COUNT = 1000  # of operations or parameters: less is a share that was mistyped
LATENCIES = ("latency", "latency_ms")
COUNTED, MEASURED = ("macs", "params"), (*LATENCIES, "size_mb")
CRITERIA = ("taylor", "magnitude", "hessian")
SCOPES = {
    "hidden": "hidden channels of MLPs and inverted residuals",
    "heads": "whole attention heads",
    "scores": "channels of queries and keys, as many in each head",
    "values": "channels of values, as many in each head",
    "stages": "channels of the residual stream of each stage",
    "blocks": "whole blocks",
}
NO_TARGET = "none"  # nothing is pruned
AUTO, AUTO_PRESETS = "auto", ("swin_edge_small", "swin_edge_medium", "swin_edge_large")  # a student's size, and of what
BOTTLENECK = ("hidden", "heads", "scores", "values")  # what leaves the residual stream as it is
ROUND_TO = 8  # smaller multiples cost kernels up to 2 % on the processor that was measured


class PruningError(ExplainedError):
    """A model cannot be pruned as asked; the message says what can be done."""


class TargetError(ExplainedError):
    """What pruning is asked for cannot be understood; the message says what can be given."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a pruned model may cost.

    measure: "macs", "params", "latency" (milliseconds of the program, always as a share), "latency_ms" or "size_mb".
    value: a share of what the model cost before, or a number in the measure's unit.
    """

    measure: str
    value: float
    is_share: bool

    def __str__(self) -> str:
        return f"{self.measure}={self.value:g}{'x' if self.is_share else ''}"

    def excess(self, cost: float, before: float) -> float:
        """The cost over what it may be: 1 where it is met exactly."""
        return cost / (self.value * before if self.is_share else self.value)


def need_programs(targets: Iterable[Target], has_table: bool) -> bool:
    """Whether it takes lowered programs to know what targets ask for. has_table: latencies come from a table."""
    return any(target.measure in MEASURED and not (has_table and target.measure in LATENCIES) for target in targets)


def parse_targets(text: str) -> tuple[Target, ...]:
    """Targets as users write them: "macs=0.5", "params=2M,latency=0.5x", "latency_ms=5".

    A number up to 1, or with an x, is a share; suffixes are K, M and G.

    Raises:
        TargetError: they cannot be read, or ask for nothing that pruning could do.
    """
    targets = []
    for part in text.split(","):
        measure, _, written = (word.strip() for word in part.partition("="))
        if measure not in COUNTED + MEASURED:
            raise TargetError(
                f"a target must be one of {', '.join(f'{name}=..' for name in COUNTED + MEASURED)}, several joined by commas, "
                f"got {part.strip()!r}"
            )
        number, suffix = (written[:-1], written[-1]) if written[-1:] in ("x", *SUFFIXES) else (written, "")
        try:
            value = float(number) * SUFFIXES.get(suffix, 1.0)
        except ValueError:
            value = math.nan
        is_absolute = measure in ("latency_ms", "size_mb")
        is_share = not is_absolute and (suffix == "x" or measure == "latency" or (not suffix and value <= 1))
        is_count = not is_share and not is_absolute
        unclear = (is_share and value > 1) or (is_count and value < SMALLEST_COUNT) or (not is_count and suffix in SUFFIXES)
        unclear |= is_absolute and suffix == "x"
        if unclear or not (value > 0 and math.isfinite(value)):
            rule = "a positive number" if is_absolute else "a share above 0 and up to 1, or a number with K, M or G"
            raise TargetError(f"{measure} must be {rule}, got {written!r}")
        targets.append(Target(measure=measure, value=value, is_share=is_share))
    if len({target.measure for target in targets}) < len(targets):
        raise TargetError(f"each target must be given once, got {text}")
    return tuple(targets)


def described_costs(metrics: Mapping[str, Any]) -> str:
    """Costs in words, each with its share of what the model cost before, which has the same name with "_share"."""
    shown = [
        f"{metrics[name] * scale:.4g} {unit} ({metrics[f'{name}_share']:.1%})"
        for name, (scale, unit) in UNITS.items()
        if name in metrics
    ]
    return ", ".join([*shown, *([f"{metrics['latency']:.1%} of the latency"] if "latency" in metrics else [])])


def read_flag(flag: str, parse: Callable[[str], Value], text: str, hint: str = "") -> Value:
    """What a flag says, by one of the parsers here. hint: what else can be given, for the message.

    Raises:
        SettingsError: it cannot be read; the message names the flag.
    """
    try:
        return parse(text)
    except TargetError as error:
        raise SettingsError(f"--{flag}: {error}{hint and f'; {hint}'}") from error


def parse_scopes(text: str) -> tuple[str, ...]:
    """Names of `SCOPES`, joined by commas; "bottleneck" stands for those that leave the residual stream as it is.

    Raises:
        TargetError: one is unknown.
    """
    names = [name.strip() for name in text.split(",")]
    scopes = tuple(dict.fromkeys(scope for name in names for scope in (BOTTLENECK if name == "bottleneck" else (name,))))
    for scope in scopes:
        if scope not in SCOPES:
            raise TargetError(f"scopes must be of {', '.join(SCOPES)} or bottleneck, joined by commas, got {scope!r}")
    return scopes


def steps_towards(targets: tuple[Target, ...], excess: float, steps: int) -> list[tuple[Target, ...]]:
    """Targets for pruning in several steps, each of which removes the same share; the last ones are `targets`.

    excess: what the model costs, over the targets; if it meets them, there is one step.
    """
    steps = steps if excess > 1 else 1
    factors = [excess ** (1 - (step + 1) / steps) for step in range(steps)]
    return [tuple(replace(target, value=target.value * factor) for target in targets) for factor in factors]
