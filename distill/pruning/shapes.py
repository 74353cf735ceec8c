"""Students of any size: models with thinner blocks, in a row by what they compute, and the first that meets a target.

At equal cost, thin blocks are better than a narrow residual stream: docs/distillation-and-pruning.md, "What pruning is worth".
"""

import math
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise

from distill.compress.channels import inner_convolutions
from distill.pruning.apply import changed
from distill.pruning.costs import Costs
from distill.pruning.search import MissedError, Search
from distill.pruning.targets import ROUND_TO, Target, TargetError
from swin_hf.configuration_swin_hf import SwinHfConfig

WIDEST, NARROWEST, STEP = 1.5, 0.5, 0.97  # factors of all widths of a model, and from one to the next
THINNEST, THIN_STEP = 0.2, 0.04  # the least factor of the widths inside blocks, and from one to the next
BETWEEN, BETWEEN_STEP = 0.5, 0.02  # the same, of the hidden channels of a shape, to reach what lies between two
ADVICE = "give a target between the largest and the smallest, or other --student_args"


def scaled(
    config: SwinHfConfig, factor: float, block_factor: float = 1.0, hidden_factor: float = 1.0, round_to: int = ROUND_TO
) -> SwinHfConfig:
    """A model of the same depth whose widths are `factor` times as large, and multiples of `round_to`.

    Heads keep their width, and their number changes; a single head stays single and changes its width.
    block_factor: of the heads and of the hidden channels, beside `factor`; the residual stream does not have it.
    hidden_factor: of the hidden channels, beside both.
    """

    def rounded(width: float, multiple: int) -> int:
        return max(round(width / multiple), 1) * multiple

    stages = range(len(config.depths))
    multiples = [math.lcm(round_to, 2 ** inner_convolutions(config) if stage == 0 else 1) for stage in stages]
    dims = [rounded(factor * config.stage_dim(stage), multiple) for stage, multiple in zip(stages, multiples)]
    fields = {"embed_dim": dims[0], "stage_dims": dims, "block_num_heads": [], "block_head_dim": [], "block_mlp_dim": []}
    inner = factor * block_factor
    for stage, dim in zip(stages, dims):
        own = [config.block_widths(stage, block) for block in range(config.depths[stage])]
        heads = [1 if widths.num_heads == 1 else max(round(widths.num_heads * inner), 1) for widths in own]
        fields["block_num_heads"].append([0] * len(own) if config.is_convolutional(stage) else heads)
        alone = [rounded(widths.head_dim / config.stage_dim(stage) * dim * block_factor, round_to) for widths in own]
        head_dims = [single if widths.num_heads == 1 else widths.head_dim for single, widths in zip(alone, own)]
        fields["block_head_dim"].append(head_dims)
        fields["block_mlp_dim"].append([rounded(widths.mlp_dim * inner * hidden_factor, round_to) for widths in own])
    return changed(config, fields | {"block_value_head_dim": None})


def family(configs: Iterable[SwinHfConfig], costs: Costs) -> list[SwinHfConfig]:
    """Models from the largest to the smallest, each with fewer multiply-accumulates than the one before.

    First the largest of `configs`, wider than it is. Then each, with ever thinner blocks, until the next smaller one computes
    as much. At last the smallest, with the thinnest blocks and narrower than it is.
    """

    def macs(config: SwinHfConfig) -> float:
        return costs.of(config, "macs")

    ordered = sorted(configs, key=macs, reverse=True)
    row = [scaled(ordered[0], factor) for factor in powers(WIDEST, 1.0)]
    for config, smaller in pairwise([*ordered, None]):
        thin = [scaled(config, 1.0, 1 - THIN_STEP * number) for number in range(round((1 - THINNEST) / THIN_STEP) + 1)]
        if smaller is not None:
            enough = macs(scaled(smaller, 1.0))
            thin = thin[: bisect_left(thin, True, key=lambda shape: macs(shape) <= enough)]
        row += thin
    row += [scaled(ordered[-1], factor, THINNEST) for factor in powers(1.0, NARROWEST)]
    return list({shape.to_json_string(): shape for shape in row}.values())


def powers(first: float, last: float) -> list[float]:
    """Factors from the first to the last, each `STEP` times the one before."""
    return [first * STEP**number for number in range(math.ceil(math.log(last / first) / math.log(STEP)))] + [last]


def shape_for(configs: Iterable[SwinHfConfig], targets: tuple[Target, ...], costs: Costs) -> SwinHfConfig:
    """The model of the family that meets the targets, within 3 %; between two shapes, one with fewer hidden channels.

    Raises:
        TargetError: a target is a share, of which nobody knows of what.
        PruningError: none of them meets the targets.
    """
    search = search_for(configs, targets, costs)
    try:
        return search.config_at(search.place())
    except MissedError as missed:
        wider = search.config_at(missed.before)
        count = round((1 - BETWEEN) / BETWEEN_STEP) + 1
        row = [scaled(wider, 1.0, hidden_factor=1 - BETWEEN_STEP * number) for number in range(count)]
        between = Search(row.__getitem__, len(row) - 1, targets, costs, ADVICE)
        return between.config_at(between.place())


def search_for(configs: Iterable[SwinHfConfig], targets: tuple[Target, ...], costs: Costs) -> Search:
    """The search among the models of the family, which begins with the smallest: its program is lowered soonest.

    Raises:
        TargetError: a target is a share.
    """
    require_numbers(targets)
    row = family(configs, costs)
    return Search(row.__getitem__, len(row) - 1, targets, costs, ADVICE, start=len(row) - 1)


def require_numbers(targets: tuple[Target, ...]) -> None:
    """Check that targets are no shares.

    Raises:
        TargetError: one is.
    """
    for target in targets:
        if target.is_share:
            raise TargetError(
                f"a student is chosen by targets that are numbers, such as latency_ms=5, size_mb=1.5, macs=200M or params=2M, "
                f"got {target}"
            )
