"""What pruning keeps of a model, as data: readable, saved as JSON, and applied to weights that it was not made for too."""

# h heads, d head width, C channels of a stage

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

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
from edge.device.errors import ExplainedError
from swin_hf.configuration_swin_hf import SwinHfConfig
from swin_hf.output_folders import write_json

FORMAT = "swin-hf pruning plan 1"


class PlanError(ExplainedError):
    """A plan is damaged or is for another model; the message says where."""


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """What is kept of one block; all numbers are those of the model before, in ascending order.

    source: the block's number in its stage.
    heads: none in a convolutional block.
    score_channels, value_channels: for each of these heads, the channels of its queries and keys, and of its values.
    hidden_channels: of the MLP or the inverted residual.
    """

    source: int
    heads: list[int]
    score_channels: list[list[int]]
    value_channels: list[list[int]]
    hidden_channels: list[int]


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What is kept of one stage: channels of its residual stream, blocks, and channels inside a convolutional downsampling."""

    channels: list[int]
    blocks: list[BlockPlan]
    downsample_channels: list[int]


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """What is kept of a model. stem_channels: after every convolution of a stem but the last."""

    stem_channels: list[list[int]]
    stages: list[StagePlan]

    def kept(self, group: Group, config: SwinHfConfig) -> list[int]:
        """The channels that are kept of a group, of a model of this config from before; of a block that is kept."""
        if group.kind == STEM:
            return self.stem_channels[group.stage]
        stage = self.stages[group.stage]
        if group.kind in (STAGE, DOWNSAMPLE):
            return stage.channels if group.kind == STAGE else stage.downsample_channels
        block = next(block for block in stage.blocks if block.source == group.block)
        if group.kind in (HIDDEN, HEADS):
            return block.hidden_channels if group.kind == HIDDEN else block.heads
        channels = block.score_channels if group.kind == SCORES else block.value_channels
        head_dim = group_size(group, config)[1]
        return [head * head_dim + channel for head, own in zip(block.heads, channels) for channel in own]

    def save(self, file: Path) -> None:
        """Write the plan as JSON, in which "0-7,9" stands for the numbers 0 to 7 and 9."""
        write_json(file, {"format": FORMAT} | _mapped(self, _as_text))

    @classmethod
    def load(cls, file: Path) -> "PruningPlan":
        """Read a plan that `save` wrote.

        Raises:
            PlanError: the file is missing or damaged.
        """
        try:
            found = json.loads(file.read_text())
            if found.get("format") != FORMAT:
                raise PlanError(f"{file} must be a pruning plan of the format {FORMAT!r}, got {found.get('format')!r}")
            stages = [
                StagePlan(
                    channels=_numbers(stage["channels"]),
                    blocks=[_read_block(block) for block in stage["blocks"]],
                    downsample_channels=_numbers(stage["downsample_channels"]),
                )
                for stage in found["stages"]
            ]
            return cls(stem_channels=_of_each(found["stem_channels"]), stages=stages)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"{file} is no pruning plan that can be read: {type(error).__name__}: {error}") from error


def whole_plan(config: SwinHfConfig) -> PruningPlan:
    """The plan that keeps all of a model."""

    def whole(kind: str, stage: int, block: int = 0) -> list[int]:
        return list(range(group_size(Group(kind=kind, stage=stage, block=block), config)[-1]))

    stages = []
    for stage, depth in enumerate(config.depths):
        blocks = []
        for block in range(depth):
            heads = whole(HEADS, stage, block)
            channels = [[whole(kind, stage, block) for _ in heads] for kind in (SCORES, VALUES)]
            hidden = whole(HIDDEN, stage, block)
            blocks.append(
                BlockPlan(
                    source=block, heads=heads, score_channels=channels[0], value_channels=channels[1], hidden_channels=hidden
                )
            )
        has_bottleneck = config.downsample == "conv" and stage + 1 < len(config.depths)
        stages.append(
            StagePlan(
                channels=whole(STAGE, stage),
                blocks=blocks,
                downsample_channels=whole(DOWNSAMPLE, stage) if has_bottleneck else [],
            )
        )
    return PruningPlan(stem_channels=[whole(STEM, number) for number in range(inner_convolutions(config))], stages=stages)


def check_plan(plan: PruningPlan, config: SwinHfConfig) -> None:
    """Find out whether a plan is one for a model of this config.

    Raises:
        PlanError: it is not; the message names the place.
    """

    def refuse(where: str, rule: str, got: object) -> NoReturn:
        raise PlanError(f"the plan does not fit the model: {where} must {rule}, got {got}")

    def require(where: str, numbers: list[int], total: int, count: int | None = None) -> None:
        if not numbers and total:
            refuse(where, "keep something", "nothing")
        if numbers != sorted(set(numbers)) or (numbers and not 0 <= numbers[0] <= numbers[-1] < total):
            refuse(where, f"be different numbers below {total} in ascending order", _as_text(numbers))
        if count is not None and len(numbers) != count:
            refuse(where, f"keep {count}", len(numbers))

    whole = whole_plan(config)
    if len(plan.stages) != len(whole.stages) or len(plan.stem_channels) != len(whole.stem_channels):
        counts = [(len(own.stages), len(own.stem_channels)) for own in (whole, plan)]
        refuse("it", f"have {counts[0][0]} stages and {counts[0][1]} inner convolutions of a stem", counts[1])
    dims = [len(stage.channels) for stage in plan.stages]
    for number, (own, every) in enumerate(zip(plan.stem_channels, whole.stem_channels)):
        steps = len(plan.stem_channels) - number
        if dims[0] % 2**steps:
            refuse("stage 0", f"keep a multiple of {2**steps} channels, as the stem doubles them", dims[0])
        require(f"convolution {number} of the stem", own, len(every), dims[0] // 2**steps)
    for number, (stage, every) in enumerate(zip(plan.stages, whole.stages)):
        require(f"stage {number}", stage.channels, len(every.channels))
        next_dim = dims[number + 1] if every.downsample_channels else 0
        require(f"the downsampling of stage {number}", stage.downsample_channels, len(every.downsample_channels), next_dim)
        require(f"the blocks of stage {number}", [block.source for block in stage.blocks], len(every.blocks))
        for block in stage.blocks:
            where, dense = f"stage {number}, block {block.source}", every.blocks[block.source]
            require(f"{where}: hidden channels", block.hidden_channels, len(dense.hidden_channels))
            require(f"{where}: heads", block.heads, len(dense.heads))
            for name in ("score_channels", "value_channels"):
                kept, total = getattr(block, name), len(getattr(dense, name)[0]) if dense.heads else 0
                if len(kept) != len(block.heads) or len({len(own) for own in kept}) > 1:
                    refuse(f"{where}: {name}", "keep as many channels of each head", kept)
                for own in kept:
                    require(f"{where}: {name}", own, total)


def _mapped(plan: Any, convert: Callable[[list[int]], str]) -> Any:
    """A plan as JSON values with every list of numbers converted."""
    if isinstance(plan, PruningPlan | StagePlan | BlockPlan):
        return {name: _mapped(value, convert) for name, value in vars(plan).items()}
    if isinstance(plan, list) and (not plan or isinstance(plan[0], int)):
        return convert(plan)
    return [_mapped(item, convert) for item in plan] if isinstance(plan, list) else plan


def _as_text(numbers: list[int]) -> str:
    """ "0-7,9" for the numbers 0 to 7 and 9."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _numbers(text: str) -> list[int]:
    """What `_as_text` wrote."""
    ends = [[int(end) for end in run.split("-")] for run in text.split(",") if run]
    return [number for first, *last in ends for number in range(first, (last or [first])[0] + 1)]


def _of_each(texts: list[str] | str) -> list[list[int]]:
    """Several of them; an empty list is written as an empty text."""
    return [_numbers(text) for text in texts]


def _read_block(block: dict[str, Any]) -> BlockPlan:
    if not isinstance(block["source"], int):
        raise TypeError(f"the source of a block must be a number, got {block['source']!r}")
    return BlockPlan(
        source=block["source"],
        heads=_numbers(block["heads"]),
        score_channels=_of_each(block["score_channels"]),
        value_channels=_of_each(block["value_channels"]),
        hidden_channels=_numbers(block["hidden_channels"]),
    )
