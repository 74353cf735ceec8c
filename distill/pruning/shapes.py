"""Students of any size: models scaled in width, in a row by what they compute, and the one of them that meets a target."""

import math
from collections.abc import Iterable

from distill.compress.channels import inner_convolutions
from distill.pruning.apply import changed
from distill.pruning.costs import Costs
from distill.pruning.search import MissedError, Search
from distill.pruning.targets import ROUND_TO, Target, TargetError
from swin_hf.configuration_swin_hf import SwinHfConfig

WIDEST, NARROWEST, STEP = 1.5, 0.5, 0.97  # factors of the widths of a model, and from one to the next
NARROWEST_HIDDEN, HIDDEN_STEP = 0.5, 0.02  # the least factor of hidden channels alone, and from one to the next
ADVICE = "give a target between the largest and the smallest, or other --student_args"


def scaled(config: SwinHfConfig, factor: float, hidden_factor: float = 1.0, round_to: int = ROUND_TO) -> SwinHfConfig:
    """A model of the same depth whose widths are `factor` times as large, and multiples of `round_to`.

    Heads keep their width, and their number changes; a single head stays single and changes its width.
    hidden_factor: of the hidden channels, beside `factor`.
    """

    def rounded(width: float, multiple: int) -> int:
        return max(round(width * factor / multiple), 1) * multiple

    stages = range(len(config.depths))
    multiples = [math.lcm(round_to, 2 ** inner_convolutions(config) if stage == 0 else 1) for stage in stages]
    dims = [rounded(config.stage_dim(stage), multiple) for stage, multiple in zip(stages, multiples)]
    fields = {"embed_dim": dims[0], "stage_dims": dims, "block_num_heads": [], "block_head_dim": [], "block_mlp_dim": []}
    for stage, dim in zip(stages, dims):
        own = [config.block_widths(stage, block) for block in range(config.depths[stage])]
        heads = [1 if widths.num_heads == 1 else max(round(widths.num_heads * factor), 1) for widths in own]
        fields["block_num_heads"].append([0] * len(own) if config.is_convolutional(stage) else heads)
        single = [widths.num_heads == 1 for widths in own]
        fields["block_head_dim"].append([dim if alone else widths.head_dim for alone, widths in zip(single, own)])
        fields["block_mlp_dim"].append([rounded(widths.mlp_dim * hidden_factor, round_to) for widths in own])
    return changed(config, fields | {"block_value_head_dim": None})


def family(configs: Iterable[SwinHfConfig], costs: Costs) -> list[SwinHfConfig]:
    """The models scaled from the widest to the narrowest, each with fewer multiply-accumulates than the one before."""
    count = math.ceil(math.log(NARROWEST / WIDEST) / math.log(STEP))
    every = {
        shape.to_json_string(): shape
        for config in configs
        for shape in (scaled(config, WIDEST * STEP**number) for number in range(count + 1))
    }
    return sorted(every.values(), key=lambda shape: costs.of(shape, "macs"), reverse=True)


def shape_for(configs: Iterable[SwinHfConfig], targets: tuple[Target, ...], costs: Costs) -> SwinHfConfig:
    """The model of the family that meets the targets, within 3 %; between two widths, one with fewer hidden channels.

    Raises:
        TargetError: a target is a share, of which nobody knows of what.
        PruningError: none of them meets the targets.
    """
    search = search_for(configs, targets, costs)
    try:
        return search.config_at(search.place())
    except MissedError as missed:
        wider = search.config_at(missed.before)
        count = round((1 - NARROWEST_HIDDEN) / HIDDEN_STEP) + 1
        row = [scaled(wider, 1.0, 1 - HIDDEN_STEP * number) for number in range(count)]
        between = Search(row.__getitem__, len(row) - 1, targets, costs, ADVICE)
        return between.config_at(between.place())


def search_for(configs: Iterable[SwinHfConfig], targets: tuple[Target, ...], costs: Costs) -> Search:
    """The search among the models of the family.

    Raises:
        TargetError: a target is a share.
    """
    require_numbers(targets)
    row = family(configs, costs)
    return Search(row.__getitem__, len(row) - 1, targets, costs, ADVICE)


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
