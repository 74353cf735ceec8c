"""Shapes for a latency table: spread over what pruning can make of a model, or over the students that `auto` chooses from."""

from collections.abc import Iterable, Iterator

import numpy as np

from distill.pruning.apply import pruned_config
from distill.pruning.importance import uniform_importance
from distill.pruning.shapes import BETWEEN, NARROWEST, THINNEST, WIDEST, scaled
from distill.pruning.targets import SCOPES
from distill.pruning.units import Unit, plan_without, units_of
from swin_hf.configuration_swin_hf import SwinHfConfig

TRIES = 10  # to draw a shape that is new, for each that is wanted


def shapes_of_pruning(config: SwinHfConfig, scopes: Iterable[str], round_to: int, seed: int) -> Iterator[SwinHfConfig]:
    """The shape itself, the smallest that is left of it, and others between, without end.

    In each of these, every scope has lost a share of its own in each stage, or in each block, from nothing to all that can be
    removed.
    """
    importance = uniform_importance(config)
    units = units_of(config, importance, tuple(scope for scope in SCOPES if scope in set(scopes)), round_to)
    rng = np.random.default_rng(seed)
    yield config
    yield pruned_config(config, plan_without(config, importance, units))
    by_block = False
    while True:
        yield pruned_config(config, plan_without(config, importance, _drawn(units, rng, by_block)))
        by_block = not by_block


def _drawn(units: list[Unit], rng: np.random.Generator, by_block: bool) -> list[Unit]:
    """Units to remove: a share of each scope in each stage or block, the first ones of each place."""
    places: dict[tuple[str, tuple[int, int]], list[Unit]] = {}
    for unit in units:
        places.setdefault((unit.scope, unit.place), []).append(unit)
    cases = {key: (key if by_block else (key[0], key[1][0])) for key in places}
    shares = {case: rng.uniform() for case in dict.fromkeys(cases.values())}
    return [unit for key, own in places.items() for unit in own[: round(shares[cases[key]] * len(own))]]


def shapes_of_family(configs: list[SwinHfConfig], seed: int) -> Iterator[SwinHfConfig]:
    """The largest and the smallest of each model's scaled shapes, and others between, without end."""
    least = (NARROWEST, THINNEST, BETWEEN)
    for config in configs:
        yield scaled(config, WIDEST)
        yield scaled(config, *least)
    rng = np.random.default_rng(seed)
    while True:
        for config in configs:
            yield scaled(config, *rng.uniform(least, (WIDEST, 1.0, 1.0)))


def different(shapes: Iterator[SwinHfConfig], count: int) -> list[SwinHfConfig]:
    """The first `count` shapes that differ; fewer, if there seem to be no more."""
    found: dict[str, SwinHfConfig] = {}
    for tried, shape in enumerate(shapes, start=1):
        found.setdefault(shape.to_json_string(), shape)
        if len(found) == count or tried == TRIES * count:
            break
    return list(found.values())
