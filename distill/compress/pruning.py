"""Structured pruning of attention heads and hidden channels: torch-pruning ranks them, the config records the new widths.

Hidden channels are those of a block's MLP, or of the inverted residual of a convolutional block, which has no heads. The
pruned model is an ordinary model of a smaller config. The width of the residual stream does not change, so that a pruned
student still matches its teacher's stages.
"""

# h heads, d head width, C channels of the stage

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import nn

from edge.device.errors import ExplainedError
from swin_hf import SwinHfForImageClassification
from swin_hf.convolutions_swin_hf import SwinHfMBConv
from swin_hf.layers_swin_hf import SwinHfAttention, SwinHfBlock
from swin_hf.plain_layers_swin_hf import require_plain_layers

MLP_MULTIPLE = 8  # matrix kernels work in tiles of 8 channels


class PruningError(ExplainedError):
    """The requested share cannot be removed from this model; the message says how much can be."""


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """What is kept: for every block, in order, the sorted indices of its heads and of its hidden channels."""

    heads: list[list[int]]
    mlp_channels: list[list[int]]

    def removed_shares(self, importance: list["BlockImportance"]) -> dict[str, float]:
        """Shares of all heads and of all MLP channels that are removed; 0 of the heads of a model that has none."""
        heads, channels = sum(len(block.heads) for block in importance), sum(len(block.mlp_channels) for block in importance)
        return {
            "removed_heads": 1 - sum(map(len, self.heads)) / heads if heads else 0.0,
            "removed_mlp": 1 - sum(map(len, self.mlp_channels)) / channels,
        }


@dataclass(frozen=True, kw_only=True)
class BlockImportance:
    """Importance of each head and of each hidden channel of one block; the mean over a block is 1."""

    heads: torch.Tensor
    mlp_channels: torch.Tensor


def blocks_of(model: SwinHfForImageClassification) -> list[SwinHfBlock | SwinHfMBConv]:
    return [block for stage in model.swin.encoder.layers for block in stage.blocks]


def check_prunable(model: SwinHfForImageClassification, prune_heads: float, prune_mlp: float) -> None:
    """Find out before any training whether these shares can be removed from a model of this architecture.

    Raises:
        PruningError: they cannot, or the heads cannot be ranked.
    """
    _require_equal_head_widths(model)
    widths = [
        model.config.block_widths(stage, block) for stage, depth in enumerate(model.config.depths) for block in range(depth)
    ]
    every = [BlockImportance(heads=torch.ones(own.num_heads), mlp_channels=torch.ones(own.mlp_dim)) for own in widths]
    make_plan(every, prune_heads, prune_mlp)


def _require_equal_head_widths(model: SwinHfForImageClassification) -> None:
    attentions = [block.attention for block in blocks_of(model) if isinstance(block, SwinHfBlock)]
    for attention in attentions:
        if attention.head_dim != attention.value_head_dim:
            raise PruningError(
                "heads must have queries and values of the same width to be ranked, got widths of "
                f"{attention.head_dim} and {attention.value_head_dim}; take a student without block_value_head_dim"
            )


def measure_importance(model: SwinHfForImageClassification, losses: Iterable[torch.Tensor]) -> list[BlockImportance]:
    """First-order Taylor importance |w * dL/dw| of torch-pruning, averaged over the losses (Molchanov et al. 2019).

    losses: one per batch, ideally the distillation loss; computed one at a time, each by a forward pass of `model`.

    Raises:
        PruningError: queries and values have different widths, so that their channels do not correspond, or layers were
            wrapped or quantized.
    """
    require_plain_layers(model, "pruned", PruningError)
    _require_equal_head_widths(model)
    importance = tp.importance.GroupTaylorImportance(normalizer="mean")
    groups = [(_head_group(block), _hidden_group(block)) for block in blocks_of(model)]
    totals = None
    for loss in losses:
        model.zero_grad()
        loss.backward()
        scores = [
            (importance(heads) if heads is not None else torch.zeros(0), importance(channels)) for heads, channels in groups
        ]
        totals = scores if totals is None else [(old[0] + new[0], old[1] + new[1]) for old, new in zip(totals, scores)]
    model.zero_grad()
    return [
        BlockImportance(heads=_mean_one(heads.view(-1, _head_dim(block)).sum(dim=1)), mlp_channels=_mean_one(channels))
        for block, (heads, channels) in zip(blocks_of(model), totals)
    ]


def _head_dim(block: SwinHfBlock | SwinHfMBConv) -> int:
    return block.attention.head_dim if isinstance(block, SwinHfBlock) else 1


def _mean_one(scores: torch.Tensor) -> torch.Tensor:
    if not len(scores):
        return scores
    return scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)


def _hidden_group(block: SwinHfBlock | SwinHfMBConv) -> tp.Group:
    """The rows of fc1 with the columns of fc2 that they feed; of an inverted residual, of its two pointwise layers.

    torch-pruning follows the channels through the depthwise layer and the norms between these, and does not count them.
    """
    if isinstance(block, SwinHfMBConv):
        layers, dim = nn.Sequential(block.expand, block.depthwise, block.project).eval(), block.expand.conv.in_channels
        graph = tp.DependencyGraph().build_dependency(layers, torch.zeros(1, dim, 3, 3), verbose=False)
        every = list(range(block.expand.conv.out_channels))
        return graph.get_pruning_group(block.expand.conv, tp.prune_conv_out_channels, every)
    graph = tp.DependencyGraph().build_dependency(block.mlp, torch.zeros(1, 1, block.mlp.fc1.in_features), verbose=False)
    return graph.get_pruning_group(block.mlp.fc1, tp.prune_linear_out_channels, list(range(block.mlp.fc1.out_features)))


class _HeadChannels(nn.Module):
    """How the channels of the heads depend on each other, for torch-pruning to trace: q, k and v into the output.

    Attention itself mixes tokens, never channels, so a product of q, k and v has the dependencies of the real thing.
    """

    def __init__(self, attention: SwinHfAttention):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.o_proj = attention.o_proj

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        mixed = self.q_proj(hidden_states) * self.k_proj(hidden_states) * self.v_proj(hidden_states)
        return self.o_proj(mixed)


def _head_group(block: SwinHfBlock | SwinHfMBConv) -> tp.Group | None:
    """The rows of q, k and v with the columns of the output projection that belong to the same channel of a head."""
    if isinstance(block, SwinHfMBConv):
        return None
    attention = block.attention
    channels = _HeadChannels(attention)
    graph = tp.DependencyGraph().build_dependency(channels, torch.zeros(1, 1, attention.q_proj.in_features), verbose=False)
    every = list(range(attention.q_proj.out_features))
    return graph.get_pruning_group(channels.q_proj, tp.prune_linear_out_channels, every)


def make_plan(importance: list[BlockImportance], prune_heads: float, prune_mlp: float) -> PruningPlan:
    """Keep the most important heads and MLP channels, each kind ranked over all blocks, and at least one unit in every block.

    prune_heads, prune_mlp: shares of all heads and of all MLP channels to remove.
    MLP widths are multiples of 8 where the dense width allows it.

    Raises:
        PruningError: the shares are so large that blocks would be empty.
    """
    return PruningPlan(
        heads=_keep([block.heads for block in importance], prune_heads, multiple=1, kind="heads"),
        mlp_channels=_keep([block.mlp_channels for block in importance], prune_mlp, MLP_MULTIPLE, kind="mlp"),
    )


def _keep(scores: list[torch.Tensor], share: float, multiple: int, kind: str) -> list[list[int]]:
    """Indices to keep in each block: repeatedly drop the globally least important unit of `multiple` channels."""
    # The channels of a block are dropped in ascending order of importance, in units scored by the mean of their channels.
    total = sum(map(len, scores))
    to_remove = int(share * total / multiple + 1e-9) * multiple
    units = []
    for block, block_scores in enumerate(scores):
        ascending = block_scores.argsort(stable=True)
        spare = (len(block_scores) - 1) // multiple * multiple  # the last unit of a block always stays
        for start in range(0, spare, multiple):
            unit = ascending[start : start + multiple]
            units.append((block_scores[unit].mean().item(), block, unit.tolist()))
    if to_remove > len(units) * multiple:
        raise PruningError(
            f"prune_{kind} must leave something in every block: at most {len(units) * multiple / total:.2f} of the "
            f"{total} can be removed, got {share}"
        )
    dropped: list[set[int]] = [set() for _ in scores]
    for _, block, unit in sorted(units, key=lambda entry: (entry[0], entry[1]))[: to_remove // multiple]:
        dropped[block].update(unit)
    return [[index for index in range(len(block)) if index not in gone] for block, gone in zip(scores, dropped)]


def prune(model: SwinHfForImageClassification, plan: PruningPlan) -> SwinHfForImageClassification:
    """A new model with only what the plan keeps; `model` is not changed.

    Raises:
        PruningError: layers were wrapped or quantized.
    """
    require_plain_layers(model, "pruned", PruningError)
    config = copy.deepcopy(model.config)
    config.block_num_heads = _by_stage(map(len, plan.heads), config.depths)
    config.block_mlp_dim = _by_stage(map(len, plan.mlp_channels), config.depths)
    head_dims = (block.attention.head_dim if isinstance(block, SwinHfBlock) else 0 for block in blocks_of(model))
    config.block_head_dim = _by_stage(head_dims, config.depths)
    pruned = SwinHfForImageClassification(config)
    pruned.load_state_dict(_kept_weights(model, plan))
    return pruned.train(model.training)


def _by_stage(widths: Iterable[int], depths: Iterable[int]) -> list[list[int]]:
    widths = iter(widths)
    return [[next(widths) for _ in range(depth)] for depth in depths]


def _kept_weights(model: SwinHfForImageClassification, plan: PruningPlan) -> dict[str, torch.Tensor]:
    state = dict(model.state_dict())
    names = {module: name for name, module in model.named_modules()}
    for block, heads, channels in zip(blocks_of(model), plan.heads, plan.mlp_channels):
        name = names[block]
        if isinstance(block, SwinHfMBConv):
            for part in ("expand", "depthwise"):
                _select(state, f"{name}.{part}.conv", rows=channels)
                for values in ("weight", "bias", "running_mean", "running_var"):
                    state[f"{name}.{part}.norm.{values}"] = state[f"{name}.{part}.norm.{values}"][channels]
            _select(state, f"{name}.project.conv", columns=channels)
            continue
        attention = block.attention
        for projection in ("q_proj", "k_proj"):
            _select(state, f"{name}.attention.{projection}", rows=_channels_of(heads, attention.head_dim))
        _select(state, f"{name}.attention.v_proj", rows=_channels_of(heads, attention.value_head_dim))
        _select(state, f"{name}.attention.o_proj", columns=_channels_of(heads, attention.value_head_dim))
        bias = f"{name}.attention.relative_position_bias"
        if model.config.version == 2:
            _select(state, f"{bias}.continuous_position_bias_mlp.2", rows=heads)
            state[f"{name}.attention.logit_scale"] = state[f"{name}.attention.logit_scale"][heads]
        else:
            state[f"{bias}.relative_position_bias_table"] = state[f"{bias}.relative_position_bias_table"][:, heads]
        _select(state, f"{name}.mlp.fc1", rows=channels)
        _select(state, f"{name}.mlp.fc2", columns=channels)
    return state


def _channels_of(heads: list[int], head_dim: int) -> list[int]:
    return [head * head_dim + offset for head in heads for offset in range(head_dim)]


def _select(
    state: dict[str, torch.Tensor], layer: str, rows: list[int] | None = None, columns: list[int] | None = None
) -> None:
    """Cut a linear layer or a convolution down to some outputs (rows, with their biases) or some inputs (columns)."""
    if columns is not None:
        state[f"{layer}.weight"] = state[f"{layer}.weight"][:, columns]
    if rows is not None:
        state[f"{layer}.weight"] = state[f"{layer}.weight"][rows]
        if f"{layer}.bias" in state:
            state[f"{layer}.bias"] = state[f"{layer}.bias"][rows]
