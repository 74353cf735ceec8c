"""What can be removed from a Swin at once, in which order, and the plan that is left without some of it."""

# h heads, d head width

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from distill.compress.channels import (
    DOWNSAMPLE,
    HEADS,
    HIDDEN,
    SCORES,
    STAGE,
    STEM,
    VALUES,
    Group,
    group_size,
    inner_convolutions,
)
from distill.pruning.importance import Importance
from distill.pruning.plan import BlockPlan, PruningPlan, StagePlan, whole_plan
from distill.pruning.targets import BOTTLENECK, ROUND_TO, PruningError
from swin_hf.configuration_swin_hf import SwinHfConfig

KINDS = {"hidden": HIDDEN, "heads": HEADS, "scores": SCORES, "values": VALUES, "stages": STAGE}  # of channels, by scope


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is removed at once.

    kind: units of a kind are ranked together: those of heads, of MLPs, of each stage's residual stream, and so on.
    place: (stage, block), or (stage, -1).
    size: in channels, heads or blocks. removed: their numbers; of queries, keys and values those in each head.
    """

    scope: str
    kind: str
    place: tuple[int, int]
    score: float
    size: int
    removed: list


def units_of(
    config: SwinHfConfig, importance: Importance, scopes: tuple[str, ...] = BOTTLENECK, round_to: int = ROUND_TO
) -> list[Unit]:
    """Everything that can be removed from a model, the least important first in each place.

    What stays of each width is a multiple of `round_to`, or what was there; each place keeps something.

    scopes: of `targets.SCOPES`.

    Raises:
        PruningError: blocks are to be removed, and their importance was not measured.
    """
    units = [unit for scope in scopes for unit in _units_of_scope(config, importance, scope, round_to)]
    return sorted(units, key=lambda unit: unit.score)


def _units_of_scope(config: SwinHfConfig, importance: Importance, scope: str, round_to: int) -> Iterator[Unit]:
    if scope == "blocks":
        yield from _blocks(config, importance)
        return
    for group, scores in sorted(importance.channels.items(), key=lambda item: item[0]):
        if group.kind != KINDS[scope]:
            continue
        kind, multiple, place = scope, round_to, (group.stage, group.block)
        if scope == "hidden":
            kind = "inverted residuals" if config.is_convolutional(group.stage) else "MLPs"
        elif scope == "heads":
            multiple = 1
        elif scope == "stages":
            kind, place = f"stage {group.stage}", (group.stage, -1)
            if group.stage == 0:
                multiple = math.lcm(round_to, 2 ** inner_convolutions(config))
        by_head = scores if scores.ndim > 1 else scores[None]
        orders = by_head.argsort(dim=1, stable=True)  # the least important first
        for start, end in _cuts(by_head.shape[1], multiple):
            taken = orders[:, start:end]
            score = float(by_head.gather(1, taken).mean())
            removed = taken.tolist() if scores.ndim > 1 else taken[0].tolist()
            yield Unit(scope=scope, kind=kind, place=place, score=score, size=end - start, removed=removed)


def _cuts(size: int, multiple: int) -> list[tuple[int, int]]:
    """Where to cut `size` channels, so that a multiple of `multiple` stays, and at least one."""
    first = size % multiple or multiple
    ends = list(range(first, size - multiple + 1, multiple))
    return list(zip([0, *ends], ends))


def _blocks(config: SwinHfConfig, importance: Importance) -> Iterator[Unit]:
    if not importance.blocks:
        raise PruningError("the scope 'blocks' needs the importance of blocks, which is measured on images; give some")
    for stage, depth in enumerate(config.depths):
        scores = {block: importance.blocks[stage, block] for block in range(depth) if (stage, block) in importance.blocks}
        for block in sorted(scores, key=scores.get)[: depth - 1]:  # a backbone may not build its last stages
            yield Unit(scope="blocks", kind="blocks", place=(stage, -1), score=scores[block], size=1, removed=[block])


def removal_order(units: list[Unit]) -> list[Unit]:
    """All units in the order of their removal: by the share of their kind that is gone with them."""
    totals: dict[str, int] = {}
    for unit in units:
        totals[unit.kind] = totals.get(unit.kind, 0) + unit.size
    gone, shares = dict.fromkeys(totals, 0), []
    for unit in units:
        gone[unit.kind] += unit.size
        shares.append(gone[unit.kind] / totals[unit.kind])
    return [units[number] for number in sorted(range(len(units)), key=lambda number: (shares[number], number))]


def plan_without(config: SwinHfConfig, importance: Importance, removed: list[Unit]) -> PruningPlan:
    """The plan that keeps all but these units."""
    gone: dict[tuple[str, tuple[int, int]], list] = {}
    for unit in removed:
        known = gone.setdefault((unit.scope, unit.place), [])
        if unit.scope in ("scores", "values") and known:
            gone[unit.scope, unit.place] = [old + new for old, new in zip(known, unit.removed)]
        else:
            known.extend(unit.removed)
    whole = whole_plan(config)
    stages = [_kept_stage(stage, number, gone) for number, stage in enumerate(whole.stages)]
    dims = [len(stage.channels) for stage in stages]
    for number, stage in enumerate(stages):
        if stage.downsample_channels:
            best = _best(importance, Group(kind=DOWNSAMPLE, stage=number), dims[number + 1], config)
            stages[number] = replace(stage, downsample_channels=best)
    steps = len(whole.stem_channels)
    stem = [_best(importance, Group(kind=STEM, stage=own), dims[0] // 2 ** (steps - own), config) for own in range(steps)]
    return PruningPlan(stem_channels=stem, stages=stages)


def _best(importance: Importance, group: Group, count: int, config: SwinHfConfig) -> list[int]:
    """The `count` most important channels of a group."""
    scores = importance.channels.get(group)
    if scores is None:
        scores = torch.ones(group_size(group, config))
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def _kept_stage(whole: StagePlan, stage: int, gone: dict) -> StagePlan:
    without = set(gone.get(("blocks", (stage, -1)), ()))
    blocks = [_kept_block(block, stage, gone) for block in whole.blocks if block.source not in without]
    return replace(whole, channels=_without(whole.channels, gone.get(("stages", (stage, -1)), ())), blocks=blocks)


def _kept_block(whole: BlockPlan, stage: int, gone: dict) -> BlockPlan:
    place = (stage, whole.source)
    heads = _without(whole.heads, gone.get(("heads", place), ()))
    channels = []
    for scope, every in (("scores", whole.score_channels), ("values", whole.value_channels)):
        removed = gone.get((scope, place)) or [[] for _ in whole.heads]
        channels.append([_without(every[head], removed[head]) for head in heads])
    hidden = _without(whole.hidden_channels, gone.get(("hidden", place), ()))
    return replace(whole, heads=heads, score_channels=channels[0], value_channels=channels[1], hidden_channels=hidden)


def _without(numbers: list[int], removed: list[int]) -> list[int]:
    left = set(removed)
    return [number for number in numbers if number not in left]
