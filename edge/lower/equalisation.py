"""Equalisation: move scale between layers, without changing the function, so that one int8 scale suits all channels.

Two of these moves are free: between the value projection's channels and the output projection's columns, and between queries
and keys. The third, between the channels behind a norm and the columns of the layers that read it, costs a multiplication of
the map (RepQ-ViT, Li et al. 2023, arXiv:2212.08254; with the balance of SmoothQuant, Xiao et al. 2023, arXiv:2211.10438).
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from edge.deploy.folding import Affine, Rescale, scaled_rows, with_affine_before
from edge.deploy.layers import DeployBlock, DeployDotProductAttention, DeployPatchMerging, DeployPostNormBlock

SMALLEST_RANGE = 1e-5  # of a channel: smaller ones count as this
LARGEST_FACTOR = 32.0  # between channels: larger ones would blow up rare values


@dataclass(frozen=True)
class ChannelRanges:
    """Largest absolute values of the channels of a deploy form, and so of every form with the same weights.

    projections: of the queries, keys and values of each attention (channels,). behind_norms: of what each norm puts out (C,);
    empty if those are to stay as they are, since equalising them costs an operation each.
    """

    projections: list[tuple[torch.Tensor, ...]]
    behind_norms: list[torch.Tensor]


def channel_ranges(deployed: nn.Module, images: list[torch.Tensor], behind_norms: bool = False) -> ChannelRanges:
    """The ranges of a deploy form's channels on images, its inputs."""
    projections = [(module.q_proj, module.k_proj, module.v_proj) for module in _attentions(deployed)]
    readers = [layers[0] for _, _, layers in _readers_of_norms(deployed)] if behind_norms else []
    outputs, inputs = _watched(deployed, images, [layer for layers in projections for layer in layers], readers)
    return ChannelRanges(
        projections=[tuple(outputs[layer] for layer in layers) for layers in projections],
        behind_norms=[inputs[layer] for layer in readers],
    )


def equalise(deployed: nn.Module, ranges: ChannelRanges) -> nn.Module:
    """A deploy form that computes the same function, its channels of similar ranges.

    Methods of one program need the same `ranges`, so that they share their weights.
    """
    deployed = copy.deepcopy(deployed)
    for attention, projections in zip(_attentions(deployed), ranges.projections, strict=True):
        _equalise_attention(attention, *projections)
    for reader, behind in zip(_readers_of_norms(deployed), ranges.behind_norms):
        _equalise_norm(*reader, behind)
    return deployed


def _attentions(deployed: nn.Module) -> list[DeployDotProductAttention]:
    return [module for module in deployed.modules() if isinstance(module, DeployDotProductAttention)]


def _equalise_attention(attention: DeployDotProductAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    factor = _bounded(torch.sqrt(k / q))
    attention.q_proj = scaled_rows(attention.q_proj, factor)
    attention.k_proj = scaled_rows(attention.k_proj, 1 / factor)
    columns = attention.o_proj.weight.detach().abs().amax(dim=0).clamp(min=SMALLEST_RANGE)
    factor = _bounded(torch.sqrt(columns / v))
    attention.v_proj = scaled_rows(attention.v_proj, factor)
    attention.o_proj = with_affine_before(attention.o_proj, Affine(1 / factor, torch.zeros_like(factor)))


def _equalise_norm(owner: nn.Module, name: str, layers: list[nn.Linear], ranges: torch.Tensor) -> None:
    columns = torch.stack([layer.weight.detach().abs().amax(dim=0) for layer in layers]).amax(dim=0)
    factor = _bounded(torch.sqrt(columns.clamp(min=SMALLEST_RANGE) / ranges))
    setattr(owner, name, nn.Sequential(getattr(owner, name), Rescale(Affine(factor, torch.zeros_like(factor)))))
    for layer in layers:
        back = with_affine_before(layer, Affine(1 / factor, torch.zeros_like(factor)))
        layer.weight.data = back.weight.data


def _bounded(factor: torch.Tensor) -> torch.Tensor:
    """Factors with a geometric mean of 1, clamped."""
    factor = factor / factor.log().mean().exp()
    return factor.clamp(LARGEST_FACTOR**-0.5, LARGEST_FACTOR**0.5)


def _readers_of_norms(deployed: nn.Module) -> list[tuple[nn.Module, str, list[nn.Linear]]]:
    """Owner and name of each norm, with the linear layers that alone read its output."""
    readers = []
    for module in deployed.modules():
        if isinstance(module, DeployBlock) and not isinstance(module, DeployPostNormBlock):
            attention = module.attention
            readers.append((module, "norm_before", [attention.q_proj, attention.k_proj, attention.v_proj]))
            readers.append((module, "norm_after", [module.mlp.fc1]))
        elif isinstance(module, DeployPatchMerging) and not isinstance(module.norm_before, nn.Identity):
            readers.append((module, "norm_before", [module.reduction]))
    return readers


def _watched(
    deployed: nn.Module, images: list[torch.Tensor], of_outputs: list[nn.Linear], of_inputs: list[nn.Linear]
) -> tuple[dict[nn.Linear, torch.Tensor], dict[nn.Linear, torch.Tensor]]:
    """Largest absolute value of each channel: of the outputs of some layers and of the inputs of others."""
    outputs: dict[nn.Linear, torch.Tensor] = {}
    inputs: dict[nn.Linear, torch.Tensor] = {}

    def note(ranges: dict, layer: nn.Linear, values: torch.Tensor) -> None:
        largest = values.detach().abs().amax(dim=0).clamp(min=SMALLEST_RANGE)
        ranges[layer] = torch.maximum(ranges[layer], largest) if layer in ranges else largest

    hooks = [layer.register_forward_hook(lambda layer, _, out: note(outputs, layer, out)) for layer in of_outputs]
    hooks += [layer.register_forward_pre_hook(lambda layer, taken: note(inputs, layer, taken[0])) for layer in of_inputs]
    with torch.no_grad():
        for pixel_values in images:
            deployed(pixel_values)
    for hook in hooks:
        hook.remove()
    return outputs, inputs
