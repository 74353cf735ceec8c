"""Which channels a Swin has, and along which axes of which weights they lie: what weight selection and pruning work on.

Channels that must be kept or dropped together are one group: the residual stream of a stage, the hidden channels of a block,
the channels of its queries and keys, those of its values, and its heads.
"""

# h heads, d head width, C channels of a stage

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from edge.device.errors import ExplainedError
from swin_hf import SwinHfBackbone, SwinHfForMaskedImageModeling, SwinHfForSemanticSegmentation, SwinHfModel
from swin_hf.configuration_swin_hf import STEM_STEPS, SwinHfConfig
from swin_hf.convolutions_swin_hf import SwinHfConvDownsample, SwinHfConvNorm, SwinHfConvStem, SwinHfMBConv
from swin_hf.layers_swin_hf import SwinHfBlock, SwinHfContinuousPositionBias
from swin_hf.segmentation_heads_swin_hf import SwinHfLightHead
from swin_hf.segmentation_swin_hf import AUXILIARY_STAGE

STAGE, STEM, DOWNSAMPLE, HIDDEN, SCORES, VALUES, HEADS = (
    *("stage", "stem", "downsample"),
    *("hidden", "scores", "values", "heads"),
)


@dataclass(frozen=True, kw_only=True, order=True)
class Group:
    """Channels that are kept or dropped together.

    kind: STAGE, the residual stream of a stage; STEM, between two convolutions of a stem; DOWNSAMPLE, inside a convolutional
        downsampling; or of a block: HIDDEN, SCORES (queries and keys, h * d), VALUES (h * d) and HEADS.
    stage: or the number of a convolution of the stem.
    """

    kind: str
    stage: int
    block: int = 0


@dataclass(frozen=True)
class Axis:
    """Where the channels of a group lie along an axis of a tensor: `copies` times one after the other, then `others`."""

    group: Group
    copies: int = 1
    others: int = 0

    def indices(self, kept: list[int], size: int) -> torch.Tensor:
        """The indices of the kept channels along this axis, which has `size` entries."""
        total = (size - self.others) // self.copies
        channels = torch.tensor(kept, dtype=torch.int64)
        return torch.cat([*(copy * total + channels for copy in range(self.copies)), torch.arange(size - self.others, size)])


def inner_convolutions(config: SwinHfConfig) -> int:
    """The convolutions of a stem but the last, each of half the channels of the next; 0 without such a stem."""
    return STEM_STEPS[config.patch_height_width[0]] - 1 if config.stem == "conv" else 0


def group_size(group: Group, config: SwinHfConfig) -> tuple[int, ...]:
    """The number of channels of a group; of SCORES and VALUES (h, d)."""
    if group.kind == STAGE:
        return (config.stage_dim(group.stage),)
    if group.kind == DOWNSAMPLE:
        return (config.stage_dim(group.stage + 1),)
    if group.kind == STEM:
        return (config.embed_dim // 2 ** (inner_convolutions(config) - group.stage),)
    widths = config.block_widths(group.stage, group.block)
    sizes = {HIDDEN: (widths.mlp_dim,), HEADS: (widths.num_heads,)}
    sizes |= {SCORES: (widths.num_heads, widths.head_dim), VALUES: (widths.num_heads, widths.value_head_dim)}
    return sizes[group.kind]


def groups_of(config: SwinHfConfig) -> list[Group]:
    """All groups of a model of this config."""
    groups = [Group(kind=STEM, stage=number) for number in range(inner_convolutions(config))]
    for stage, depth in enumerate(config.depths):
        groups.append(Group(kind=STAGE, stage=stage))
        if config.downsample == "conv" and stage + 1 < len(config.depths):
            groups.append(Group(kind=DOWNSAMPLE, stage=stage))
        kinds = (HIDDEN,) if config.is_convolutional(stage) else (HIDDEN, SCORES, VALUES, HEADS)
        groups += [Group(kind=kind, stage=stage, block=block) for block in range(depth) for kind in kinds]
    return groups


Axes = tuple[Axis | None, ...]  # of the axes of a tensor; None, or not there: all of it is kept


class NotOursError(ExplainedError):
    """A model has no Swin of ours in it."""


def encoder_of(model: nn.Module) -> SwinHfModel:
    """The encoder in one of our models.

    Raises:
        NotOursError: there is none.
    """
    for part in model.modules():
        if isinstance(part, SwinHfModel):
            return part
    raise NotOursError(
        f"the model must be a Swin of ours, got {type(model).__name__}; python -m swin_hf.convert makes one of others"
    )


def blocks_of(model: nn.Module) -> list[list[SwinHfBlock | SwinHfMBConv]]:
    """The blocks of each stage."""
    return [list(stage.blocks) for stage in encoder_of(model).encoder.layers]


def axes_of(model: nn.Module) -> dict[str, Axes]:
    """The axes of every weight and statistic of one of our models, with any head, that has channels which can be dropped.

    Raises:
        NotOursError: it is not one of ours.
    """
    table: dict[str, Axes] = {}
    encoder, names = encoder_of(model), {module: name for name, module in model.named_modules()}
    for layer, outputs, inputs in layers_of(model):
        for name in [*dict(layer.named_parameters()), *dict(layer.named_buffers())]:
            if name != "num_batches_tracked":
                table[f"{names[layer]}.{name}"] = (outputs, inputs) if name == "weight" else (outputs,)
    first = Axis(Group(kind=STAGE, stage=0))
    for name in ("mask_token", "position_embeddings"):
        if getattr(encoder.embeddings, name) is not None:
            table[f"{names[encoder.embeddings]}.{name}"] = (None, None, first)
    for stage, blocks in enumerate(blocks_of(model)):
        for number, block in enumerate(blocks):
            if not isinstance(block, SwinHfBlock):
                continue
            heads, attention = Axis(Group(kind=HEADS, stage=stage, block=number)), block.attention
            if isinstance(attention.relative_position_bias, SwinHfContinuousPositionBias):
                table[f"{names[attention]}.logit_scale"] = (heads,)
            else:
                table[f"{names[attention.relative_position_bias]}.relative_position_bias_table"] = (None, heads)
    return table


def layers_of(model: nn.Module) -> Iterator[tuple[nn.Module, Axis | None, Axis | None]]:
    """Every layer with its outputs and its inputs: linear ones, convolutions, and norms, which have outputs alone."""
    encoder = encoder_of(model)
    yield from _of_embeddings(encoder)
    for stage, layers in enumerate(encoder.encoder.layers):
        residual = Axis(Group(kind=STAGE, stage=stage))
        for number, block in enumerate(layers.blocks):
            yield from _of_block(block, residual, stage, number)
        if isinstance(layers.downsample, SwinHfConvDownsample):
            yield from _of_bottleneck(layers.downsample, residual, Group(kind=DOWNSAMPLE, stage=stage), _next(residual))
        elif layers.downsample is not None:
            joined = Axis(residual.group, copies=4)  # the four tokens lie one after the other
            yield layers.downsample.reduction, _next(residual), joined
            yield layers.downsample.norm, _next(residual) if layers.downsample.post_norm else joined, None
    if encoder.layernorm is not None:
        yield encoder.layernorm, residual, None
    yield from _of_heads(model, residual)


def _next(residual: Axis) -> Axis:
    return Axis(Group(kind=STAGE, stage=residual.group.stage + 1))


def _of_embeddings(encoder: SwinHfModel) -> Iterator[tuple[nn.Module, Axis | None, Axis | None]]:
    stem, first = encoder.embeddings.patch_embeddings, Axis(Group(kind=STAGE, stage=0))
    if isinstance(stem, SwinHfConvStem):
        inner = [Axis(Group(kind=STEM, stage=number)) for number in range(len(stem.convs) - 1)]
        for conv, (inputs, outputs) in zip(stem.convs, pairwise([None, *inner, first])):
            yield from _with_norm(conv, outputs, inputs)
    else:
        yield stem.projection, first, None
    if encoder.embeddings.norm is not None:
        yield encoder.embeddings.norm, first, None


def _of_block(
    block: SwinHfBlock | SwinHfMBConv, residual: Axis, stage: int, number: int
) -> Iterator[tuple[nn.Module, Axis | None, Axis | None]]:
    def own(kind: str) -> Group:
        return Group(kind=kind, stage=stage, block=number)

    if isinstance(block, SwinHfMBConv):
        yield from _of_bottleneck(block, residual, own(HIDDEN), residual)
        return
    attention, scores, values = block.attention, Axis(own(SCORES)), Axis(own(VALUES))
    yield block.layernorm_before, residual, None
    yield attention.q_proj, scores, residual
    yield attention.k_proj, scores, residual
    yield attention.v_proj, values, residual
    yield attention.o_proj, residual, values
    if isinstance(attention.relative_position_bias, SwinHfContinuousPositionBias):
        yield attention.relative_position_bias.continuous_position_bias_mlp[2], Axis(own(HEADS)), None
    if block.local_conv is not None:
        yield from _with_norm(block.local_conv.depthwise, residual)
    yield block.layernorm_after, residual, None
    yield block.mlp.fc1, Axis(own(HIDDEN)), residual
    yield block.mlp.fc2, residual, Axis(own(HIDDEN))


def _of_bottleneck(
    layers: SwinHfMBConv | SwinHfConvDownsample, inputs: Axis, hidden: Group, outputs: Axis
) -> Iterator[tuple[nn.Module, Axis | None, Axis | None]]:
    yield from _with_norm(layers.expand, Axis(hidden), inputs)
    yield from _with_norm(layers.depthwise, Axis(hidden))
    yield from _with_norm(layers.project, outputs, Axis(hidden))


def _with_norm(
    conv: SwinHfConvNorm, outputs: Axis, inputs: Axis | None = None
) -> Iterator[tuple[nn.Module, Axis | None, Axis | None]]:
    """A convolution, whose `inputs` are None if it has those of an image, or is depthwise, and its norm."""
    yield conv.conv, outputs, inputs
    yield conv.norm, outputs, None


def _of_heads(model: nn.Module, last: Axis) -> Iterator[tuple[nn.Module, Axis | None, Axis | None]]:
    """What reads the maps of the encoder."""
    if isinstance(classifier := getattr(model, "classifier", None), nn.Linear):
        yield classifier, None, last
    if isinstance(model, SwinHfForMaskedImageModeling):
        yield model.decoder[0], None, last
    backbones = [part for part in model.modules() if isinstance(part, SwinHfBackbone)]
    maps = [Axis(Group(kind=STAGE, stage=stage_of(name))) for backbone in backbones[:1] for name in backbone.out_features]
    for backbone in backbones:
        yield from ((norm, axis, None) for norm, axis in zip(backbone.hidden_states_norms.values(), maps))
    if isinstance(model, SwinHfForSemanticSegmentation):
        of_head = _of_light_head if isinstance(model.decode_head, SwinHfLightHead) else _of_uper_head
        yield from of_head(model.decode_head, maps)
        if isinstance(model.auxiliary_head, UperNetFCNHead):
            yield from _of_auxiliary_head(model.auxiliary_head, maps[AUXILIARY_STAGE])


def _of_uper_head(head: UperNetHead, maps: list[Axis]) -> Iterator[tuple[nn.Module, Axis | None, Axis | None]]:
    for lateral, axis in zip(head.lateral_convs, maps):
        yield lateral.conv, None, axis
    for pooled in head.psp_modules.modules():
        if isinstance(pooled, nn.Conv2d):
            yield pooled, None, maps[-1]
    others = head.bottleneck.conv.in_channels - head.in_channels[-1]
    yield head.bottleneck.conv, None, Axis(maps[-1].group, others=others)


def _of_light_head(head: SwinHfLightHead, maps: list[Axis]) -> Iterator[tuple[nn.Module, Axis | None, Axis | None]]:
    for lateral, axis in zip(head.laterals, maps):
        yield lateral[0], None, axis
    yield head.context, None, maps[-1]


def _of_auxiliary_head(head: UperNetFCNHead, axis: Axis) -> Iterator[tuple[nn.Module, Axis | None, Axis | None]]:
    """Its first layer reads the map; one that joins the map with what was made of it reads it too, first."""
    convolutions = [part for part in head.convs.modules() if isinstance(part, nn.Conv2d)]
    yield (convolutions[0] if convolutions else head.classifier), None, axis
    if head.concat_input and convolutions:  # without any, no width of the map but the present one can be built
        channels = head.conv_cat.conv.in_channels - head.in_channels
        yield head.conv_cat.conv, None, Axis(axis.group, others=channels)


def stage_of(name: str) -> int:
    """The stage, from 0, whose residual stream a map of a backbone has, by the map's name; "stem" has that of the first."""
    return max(int(re.sub(r"\D", "", name) or 1) - 1, 0)


def selected(tensor: torch.Tensor, axes: Axes, kept: Callable[[Group], list[int]]) -> torch.Tensor:
    """A tensor with what is kept along its axes."""
    for number, axis in enumerate(axes):
        if axis is not None and number < tensor.ndim:
            tensor = tensor.index_select(number, axis.indices(kept(axis.group), tensor.shape[number]).to(tensor.device))
    return tensor
