"""How much each channel, head and block of a Swin matters: torch-pruning's criteria for channels, leave-one-out for blocks.

A group of channels is scored by every linear layer and pointwise or dense convolution that writes or reads it. Norms and
depthwise convolutions only scale and mix what is there.
"""

# h heads, d head width, K classes

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch_pruning as tp
from torch import nn

from distill.compress.channels import (
    HEADS,
    SCORES,
    VALUES,
    Axis,
    Group,
    blocks_of,
    encoder_of,
    group_size,
    groups_of,
    layers_of,
)
from distill.pruning.targets import CRITERIA
from edge.device.errors import ExplainedError
from swin_hf.configuration_swin_hf import SwinHfConfig
from swin_hf.plain_layers_swin_hf import require_plain_layers

OUTPUTS = {nn.Linear: tp.prune_linear_out_channels, nn.Conv2d: tp.prune_conv_out_channels}
INPUTS = {nn.Linear: tp.prune_linear_in_channels, nn.Conv2d: tp.prune_conv_in_channels}


class ImportanceError(ExplainedError):
    """What matters in a model cannot be found out; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Scores of what can be removed; those of a group have a mean of 1, so that groups can be compared.

    channels: for each group (n,), or (h, d) for queries with keys and for values; heads (h,) are the sum of both.
    blocks: for each (stage, block) the divergence of the outputs without it; empty if it was not measured.
    """

    channels: dict[Group, torch.Tensor]
    blocks: dict[tuple[int, int], float] = field(default_factory=dict)


def uniform_importance(config: SwinHfConfig) -> Importance:
    """The same score for everything in a model of this config, where only numbers matter."""
    blocks = {(stage, block): 1.0 for stage, depth in enumerate(config.depths) for block in range(depth)}
    return Importance(channels={group: torch.ones(group_size(group, config)) for group in groups_of(config)}, blocks=blocks)


def importance_for(
    model: nn.Module,
    scopes: tuple[str, ...],
    criterion: str,
    losses: Iterable[torch.Tensor],
    inputs: Iterable[torch.Tensor],
) -> Importance:
    """What the scopes need: scores of channels by a criterion, and of blocks if they may be removed.

    losses: see `measure_importance`; not used for "magnitude". inputs: see `measure_blocks`.
    """
    channels = measure_importance(model, () if criterion == "magnitude" else losses, criterion)
    return Importance(channels=channels, blocks=measure_blocks(model, inputs) if "blocks" in scopes else {})


def measure_importance(
    model: nn.Module, losses: Iterable[torch.Tensor] = (), criterion: str = "taylor"
) -> dict[Group, torch.Tensor]:
    """Scores of the channels of one of our models, by one of torch-pruning's criteria.

    criterion: "taylor", |w * dL/dw| averaged over the losses (Molchanov et al. 2019); "hessian", w^2 * (dL/dw)^2 with the
        mean of the squares (optimal brain damage, LeCun et al. 1989, with the empirical Fisher matrix), which asks for losses
        of single images; "magnitude", w^2, which needs no losses.
    losses: computed one at a time, each by a forward pass of `model`; ideally the loss of distillation. Frozen weights count
        too, as long as the losses are computed here, by a generator.

    Raises:
        ImportanceError: the criterion is unknown, there are no losses, or they reach no weight; layers were wrapped.
        NotOursError: the model is none of ours.
    """
    if criterion not in CRITERIA:
        raise ImportanceError(f"the criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    require_plain_layers(model, "pruned", ImportanceError)
    groups = _torch_pruning_groups(model)
    with _unfrozen(model):
        scores = _sensitivities(model, groups, losses, criterion) if criterion != "magnitude" else _magnitudes(groups)
    config, found = encoder_of(model).config, {}
    for group, channels in scores.items():
        size = group_size(group, config)
        found[group] = channels.view(size) if len(size) > 1 else channels
    for group in [group for group in found if group.kind == SCORES]:
        place = {"stage": group.stage, "block": group.block}
        both = found[group].sum(dim=1) + found[Group(kind=VALUES, **place)].sum(dim=1)
        found[Group(kind=HEADS, **place)] = both
    return {group: _mean_one(channels) for group, channels in found.items()}


@contextmanager
def _unfrozen(model: nn.Module) -> Iterator[None]:
    """Without gradients, the channels of a frozen stage would be those that matter least."""
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    model.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _mean_one(scores: torch.Tensor) -> torch.Tensor:
    return scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)


def _torch_pruning_groups(model: nn.Module) -> dict[Group, tp.Group]:
    """The groups as torch-pruning's criteria take them, with the layers of each as if it had traced them.

    It cannot trace Swins: their strided slices and views look like slices of channels to it.
    """
    groups: dict[Group, tp.Group] = {}
    for layer, outputs, inputs in layers_of(model):
        if not isinstance(layer, tuple(OUTPUTS)) or getattr(layer, "groups", 1) > 1:
            continue
        for axis, functions, dim in ((outputs, OUTPUTS, 0), (inputs, INPUTS, 1)):
            if axis is None or axis.group.kind == HEADS:
                continue
            _add(groups.setdefault(axis.group, tp.Group()), layer, functions[type(layer)], axis, layer.weight.shape[dim])
    return groups


def _add(group: tp.Group, layer: nn.Module, function: object, axis: Axis, size: int) -> None:
    total = (size - axis.others) // axis.copies
    node = tp.dependency.Node(layer, type(layer).__name__)
    group.add_dep(tp.Dependency(function, function, node, node), list(range(total * axis.copies)))
    group[len(group) - 1].root_idxs = list(range(total)) * axis.copies


def _magnitudes(groups: dict[Group, tp.Group]) -> dict[Group, torch.Tensor]:
    criterion = tp.importance.GroupMagnitudeImportance(group_reduction="sum", normalizer=None)
    return {group: criterion(layers) for group, layers in groups.items()}


def _sensitivities(
    model: nn.Module, groups: dict[Group, tp.Group], losses: Iterable[torch.Tensor], criterion: str
) -> dict[Group, torch.Tensor]:
    """Scores from gradients. Squares of gradients are summed here: torch-pruning 1.6 keeps those of the last loss alone."""
    totals: dict[Group, torch.Tensor] = {}
    squares: dict[nn.Parameter, torch.Tensor] = {}
    taylor = tp.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None)
    hessian = tp.importance.GroupHessianImportance(group_reduction="sum", normalizer=None)
    count = 0
    for loss in losses:
        model.zero_grad()
        loss.backward()
        count += 1
        weights = [dep.target.module.weight for layers in groups.values() for dep, _ in layers]
        for weight in dict.fromkeys(weights):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)  # a stage that the loss does not reach
            if criterion == "hessian":
                squares[weight] = squares.get(weight, 0) + weight.grad.square()
        if criterion == "taylor":
            for group, layers in groups.items():
                totals[group] = totals.get(group, 0) + taylor(layers)
    if not count:
        raise ImportanceError(f"the criterion {criterion!r} needs losses, got none; take 'magnitude' without images")
    if criterion == "hessian":
        for weight, total in squares.items():
            weight.grad = total / count
        totals = {group: hessian(layers) for group, layers in groups.items()}
    model.zero_grad()
    if not all(total.isfinite().all() for total in totals.values()):
        raise ImportanceError("importance must be finite, got NaN or infinity: the losses or their gradients are not")
    if not any(total.any() for total in totals.values()):
        raise ImportanceError("no loss depends on the weights: they must require gradients, and the loss must depend on them")
    return totals


@torch.no_grad()
def measure_blocks(model: nn.Module, batches: Iterable[torch.Tensor]) -> dict[tuple[int, int], float]:
    """How far the outputs move without each block: the divergence KL(with || without) of the class probabilities, in nats.

    batches: pixel values (B, num_channels, H, W). A block is left out by passing its input on.

    Raises:
        ImportanceError: the model has no logits, or there are no batches.
    """
    totals: dict[tuple[int, int], float] = {}
    places = [(stage, number, block) for stage, own in enumerate(blocks_of(model)) for number, block in enumerate(own)]
    count = 0
    for pixel_values in batches:
        count += 1
        expected = _log_probabilities(model, pixel_values)
        for stage, number, block in places:
            hook = block.register_forward_hook(lambda module, inputs, outputs: (inputs[0], outputs[1]))
            try:
                without = _log_probabilities(model, pixel_values)
            finally:
                hook.remove()
            divergence = (expected.exp() * (expected - without)).sum(dim=1).mean()
            totals[stage, number] = totals.get((stage, number), 0.0) + float(divergence)
    if not count:
        raise ImportanceError("the importance of blocks needs images, got none")
    return {place: total / count for place, total in totals.items()}


def _log_probabilities(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """(B, K, ...) of a classifier or a segmenter."""
    logits = getattr(model(pixel_values=pixel_values), "logits", None)
    if logits is None:
        raise ImportanceError(f"blocks can be ranked by what logits they change, which a {type(model).__name__} does not have")
    return logits.log_softmax(dim=1)
