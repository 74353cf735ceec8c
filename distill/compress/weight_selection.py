"""Weight selection: a new Swin starts with some of the weights of a larger one (Xu et al. 2024, arXiv:2311.18823).

Of every kind of channel it takes as many as it has, spread evenly: the same ones wherever the residual stream of a stage
passes, whole heads, the first blocks of each stage. What has no counterpart keeps its new weights.
"""

# h heads, d head width, C channels of a stage

from dataclasses import dataclass, field

import torch
from torch import nn

from distill.compress.teachers import distinct_names
from edge.device.errors import ExplainedError
from swin_hf import SwinHfModel
from swin_hf.configuration_swin_hf import SwinHfConfig
from swin_hf.convolutions_swin_hf import SwinHfConvDownsample, SwinHfConvStem, SwinHfMBConv
from swin_hf.layers_swin_hf import (
    SwinHfAttention,
    SwinHfBlock,
    SwinHfEmbeddings,
    SwinHfPatchMerging,
    SwinHfRelativePositionBias,
)
from swin_hf.plain_layers_swin_hf import require_plain_layers
from swin_hf.resizing_swin_hf import resize_bias_table, resize_position_embeddings


class SelectionError(ExplainedError):
    """A model cannot start with the weights of another; the message says what differs."""


@dataclass
class Selection:
    """What was taken: weights, as the student's tensors, and whole blocks out of all blocks of the student."""

    taken: list[torch.Tensor] = field(default_factory=list)
    num_blocks: int = 0
    of_blocks: int = 0

    def share_of(self, model: nn.Module) -> float:
        """The share of a model's parameters that was taken."""
        taken = {tensor.data_ptr() for tensor in self.taken}
        sizes = [(parameter.data_ptr() in taken, parameter.numel()) for parameter in model.parameters()]
        return sum(size for was_taken, size in sizes if was_taken) / sum(size for _, size in sizes)

    def take(self, own: torch.Tensor, other: torch.Tensor) -> bool:
        """Take one tensor, already selected; it is left out if the shapes differ, as those of kernels may."""
        if own.shape != other.shape:
            return False
        own.data.copy_(other)
        self.taken.append(own.data)
        return True

    def take_layer(
        self, own: nn.Module, other: nn.Module, outputs: torch.Tensor | None = None, inputs: torch.Tensor | None = None
    ) -> bool:
        """Take the weights and statistics of a linear layer, a convolution or a norm, at these channels; None: at all.

        Returns whether all were taken.
        """
        taken = True
        others = dict(other.named_parameters()) | dict(other.named_buffers())
        for name, tensor in [*own.named_parameters(), *own.named_buffers()]:
            source = others.get(name)
            if source is None:
                continue
            if outputs is not None and source.ndim > 0:
                source = source[outputs]
            if inputs is not None and source.ndim > 1:
                source = source[:, inputs]
            taken &= self.take(tensor, source)
        return taken


def evenly(count: int, total: int) -> torch.Tensor:
    """`count` of the numbers below `total`, spread evenly, beginning with 0."""
    return torch.arange(count) * total // count


def encoder_of(model: nn.Module) -> SwinHfModel:
    """The encoder in one of our models.

    Raises:
        SelectionError: there is none.
    """
    for part in model.modules():
        if isinstance(part, SwinHfModel):
            return part
    raise SelectionError(f"both models must be Swins of ours, got {type(model).__name__}")


def check_selectable(student: SwinHfConfig, larger: SwinHfConfig) -> None:
    """Find out whether a model of one config can start with the weights of a model of another.

    Raises:
        SelectionError: it cannot.
    """
    dims, larger_dims = ([config.stage_dim(stage) for stage in range(len(config.depths))] for config in (student, larger))
    if student.version != larger.version:
        raise SelectionError(f"both models must be of the same version, got {student.version} and {larger.version}")
    if len(dims) > len(larger_dims) or any(own > other for own, other in zip(dims, larger_dims)):
        raise SelectionError(
            f"the larger model must have every stage of the smaller one at its width or more, got widths of {larger_dims} "
            f"for {dims}"
        )


@torch.no_grad()
def select_weights(student: nn.Module, larger: nn.Module) -> Selection:
    """Let one of our models start with the weights of a larger one, in place; both have an encoder, and heads of any kind.

    Position biases are resized to the student's windows. A classifier's weights are taken if both know the same classes.

    Raises:
        SelectionError: the larger one is of another version, lacks a stage, or is narrower than the student; one of them is
            not ours, or has layers that were wrapped or quantized.
    """
    own, other = encoder_of(student), encoder_of(larger)
    for model in (student, larger):
        require_plain_layers(model, "selected from", SelectionError)
    check_selectable(own.config, other.config)
    stages = range(min(len(own.encoder.layers), len(other.encoder.layers)))
    residual = [evenly(own.config.stage_dim(stage), other.config.stage_dim(stage)) for stage in range(len(own.config.depths))]
    selection = Selection(of_blocks=sum(len(stage.blocks) for stage in own.encoder.layers))
    same_norm = own.config.norm == other.config.norm
    _take_embeddings(selection, own.embeddings, other.embeddings, residual[0], same_norm)
    for number in stages:
        stage, larger_stage = own.encoder.layers[number], other.encoder.layers[number]
        for block, larger_block in zip(stage.blocks, larger_stage.blocks):
            windows = own.config.stage_window(number), other.config.stage_window(number)
            selection.num_blocks += _take_block(selection, block, larger_block, residual[number], windows, same_norm)
        if stage.downsample is not None and type(stage.downsample) is type(larger_stage.downsample):
            channels = residual[number], residual[number + 1]
            _take_downsample(selection, stage.downsample, larger_stage.downsample, *channels, same_norm)
    if own.layernorm is not None and other.layernorm is not None and len(own.config.depths) == len(other.config.depths):
        if same_norm:
            selection.take_layer(own.layernorm, other.layernorm, residual[-1])
        _take_classifier(selection, student, larger, residual[-1])
    return selection


def _take_embeddings(
    selection: Selection, own: SwinHfEmbeddings, other: SwinHfEmbeddings, channels: torch.Tensor, same_norm: bool
) -> None:
    stem, larger = own.patch_embeddings, other.patch_embeddings
    if own.patch_size == other.patch_size and type(stem) is type(larger):
        if isinstance(stem, SwinHfConvStem):
            inputs = None
            for number, (conv, larger_conv) in enumerate(zip(stem.convs, larger.convs)):
                dims = [part.conv.out_channels for part in (conv, larger_conv)]
                outputs = channels if number + 1 == len(stem.convs) else evenly(*dims)
                _take_conv(selection, conv, larger_conv, outputs, inputs)
                inputs = outputs
        else:
            selection.take_layer(stem.projection, larger.projection, channels)
    if own.norm is not None and other.norm is not None and same_norm:
        selection.take_layer(own.norm, other.norm, channels)
    if own.mask_token is not None and other.mask_token is not None:
        selection.take(own.mask_token, other.mask_token[..., channels])
    if own.position_embeddings is not None and other.position_embeddings is not None:
        positions = resize_position_embeddings(other.position_embeddings, other.grid, own.grid)
        selection.take(own.position_embeddings, positions[..., channels])


def _take_conv(
    selection: Selection, own: nn.Module, other: nn.Module, outputs: torch.Tensor, inputs: torch.Tensor | None = None
) -> None:
    """A convolution with its norm, or neither; `inputs` of None: all, or the one of a depthwise convolution."""
    if selection.take_layer(own.conv, other.conv, outputs, inputs):
        selection.take_layer(own.norm, other.norm, outputs)


def _take_block(
    selection: Selection,
    own: SwinHfBlock | SwinHfMBConv,
    other: SwinHfBlock | SwinHfMBConv,
    channels: torch.Tensor,
    windows: tuple[tuple[int, int], tuple[int, int]],
    same_norm: bool,
) -> bool:
    """Take a block, and say whether it was taken: the larger one must be of the same kind and at least as wide inside."""
    if type(own) is not type(other) or any(mine > theirs for mine, theirs in zip(_inner_widths(own), _inner_widths(other))):
        return False
    if isinstance(own, SwinHfMBConv):
        hidden = evenly(own.expand.conv.out_channels, other.expand.conv.out_channels)
        _take_conv(selection, own.expand, other.expand, hidden, channels)
        _take_conv(selection, own.depthwise, other.depthwise, hidden)
        _take_conv(selection, own.project, other.project, channels, hidden)
        return True
    if same_norm:
        selection.take_layer(own.layernorm_before, other.layernorm_before, channels)
        selection.take_layer(own.layernorm_after, other.layernorm_after, channels)
    _take_attention(selection, own.attention, other.attention, channels, windows)
    if own.local_conv is not None and other.local_conv is not None:
        _take_conv(selection, own.local_conv.depthwise, other.local_conv.depthwise, channels)
    hidden = evenly(own.mlp.fc1.out_features, other.mlp.fc1.out_features)
    selection.take_layer(own.mlp.fc1, other.mlp.fc1, hidden, channels)
    selection.take_layer(own.mlp.fc2, other.mlp.fc2, channels, hidden)
    return True


def _inner_widths(block: SwinHfBlock | SwinHfMBConv) -> tuple[int, ...]:
    if isinstance(block, SwinHfMBConv):
        return (block.expand.conv.out_channels,)
    attention = block.attention
    num_heads = attention.q_proj.out_features // attention.head_dim
    return num_heads, attention.head_dim, attention.value_head_dim, block.mlp.fc1.out_features


def _take_attention(
    selection: Selection,
    own: SwinHfAttention,
    other: SwinHfAttention,
    channels: torch.Tensor,
    windows: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    heads = evenly(*(part.q_proj.out_features // part.head_dim for part in (own, other)))

    def channels_of_heads(head_dim: int, larger_head_dim: int) -> torch.Tensor:
        return (heads[:, None] * larger_head_dim + evenly(head_dim, larger_head_dim)).flatten()  # (h, d) -> (h * d)

    scores, values = (
        channels_of_heads(own.head_dim, other.head_dim),
        channels_of_heads(own.value_head_dim, other.value_head_dim),
    )
    selection.take_layer(own.q_proj, other.q_proj, scores, channels)
    selection.take_layer(own.k_proj, other.k_proj, scores, channels)
    selection.take_layer(own.v_proj, other.v_proj, values, channels)
    selection.take_layer(own.o_proj, other.o_proj, channels, values)
    bias, larger_bias = own.relative_position_bias, other.relative_position_bias
    if isinstance(bias, SwinHfRelativePositionBias):
        table = resize_bias_table(larger_bias.relative_position_bias_table, windows[1], windows[0])
        selection.take(bias.relative_position_bias_table, table[:, heads])
        return
    network, larger_network = bias.continuous_position_bias_mlp, larger_bias.continuous_position_bias_mlp
    selection.take_layer(network[0], larger_network[0])
    selection.take_layer(network[2], larger_network[2], heads)
    selection.take(own.logit_scale, other.logit_scale[heads])


def _take_downsample(
    selection: Selection,
    own: SwinHfPatchMerging | SwinHfConvDownsample,
    other: SwinHfPatchMerging | SwinHfConvDownsample,
    channels: torch.Tensor,
    next_channels: torch.Tensor,
    same_norm: bool,
) -> None:
    if isinstance(own, SwinHfConvDownsample):
        _take_conv(selection, own.expand, other.expand, next_channels, channels)
        _take_conv(selection, own.depthwise, other.depthwise, next_channels)
        _take_conv(selection, own.project, other.project, next_channels, next_channels)
        return
    larger_dim = other.reduction.in_features // 4
    joined = torch.cat([copy * larger_dim + channels for copy in range(4)])  # the four tokens lie one after the other
    selection.take_layer(own.reduction, other.reduction, next_channels, joined)
    if same_norm:
        selection.take_layer(own.norm, other.norm, next_channels if own.post_norm else joined)


def _take_classifier(selection: Selection, student: nn.Module, larger: nn.Module, channels: torch.Tensor) -> None:
    head, larger_head = getattr(student, "classifier", None), getattr(larger, "classifier", None)
    if not (isinstance(head, nn.Linear) and isinstance(larger_head, nn.Linear)):
        return
    try:
        names, larger_names = distinct_names(student.config), distinct_names(larger.config)
    except ValueError:  # one of them does not name its classes
        return
    if sorted(names) == sorted(larger_names):
        order = torch.tensor([larger_names.index(name) for name in names])
        selection.take_layer(head, larger_head, order, channels)
