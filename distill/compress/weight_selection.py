"""Weight selection: a new Swin starts with some of the weights of a larger one (Xu et al. 2024, arXiv:2311.18823).

Of every kind of channel it takes as many as it has, spread evenly: the same ones wherever the residual stream of a stage
passes, whole heads, the first blocks of each stage. What has no counterpart keeps its new weights.
"""

# h heads, d head width

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.compress.channels import Group, axes_of, blocks_of, encoder_of, group_size, selected
from distill.compress.teachers import distinct_names
from edge.device.errors import ExplainedError
from swin_hf import SwinHfModel
from swin_hf.configuration_swin_hf import SwinHfConfig
from swin_hf.convolutions_swin_hf import SwinHfConvNorm
from swin_hf.plain_layers_swin_hf import require_plain_layers
from swin_hf.resizing_swin_hf import resize_bias_table, resize_position_embeddings

NORMS = (nn.LayerNorm, nn.RMSNorm, _BatchNorm)


class SelectionError(ExplainedError):
    """A model cannot start with the weights of another; the message says what differs."""


@dataclass(kw_only=True)
class Selection:
    """What was taken: weights, as the student's tensors, and whole blocks out of all blocks of the student."""

    taken: list[torch.Tensor] = field(default_factory=list)
    num_blocks: int
    of_blocks: int

    def share_of(self, model: nn.Module) -> float:
        """The share of a model's parameters that was taken."""
        taken = {tensor.data_ptr() for tensor in self.taken}
        sizes = [(parameter.data_ptr() in taken, parameter.numel()) for parameter in model.parameters()]
        return sum(size for was_taken, size in sizes if was_taken) / sum(size for _, size in sizes)

    def take(self, own: torch.Tensor, other: torch.Tensor) -> None:
        own.data.copy_(other)
        self.taken.append(own.data)


def evenly(count: int, total: int) -> torch.Tensor:
    """`count` of the numbers below `total`, spread evenly, beginning with 0."""
    return torch.arange(count) * total // count


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


def is_larger_everywhere(larger: SwinHfConfig, student: SwinHfConfig) -> bool:
    """Whether every block and layer of a model of the one config has its counterpart in a larger model of the other."""
    try:
        check_selectable(student, larger)
    except SelectionError:
        return False
    with torch.device("meta"):
        own, other = SwinHfModel(student), SwinHfModel(larger)
    if student.num_channels != larger.num_channels or _new_blocks(own, other) or _new_layers(own, other):
        return False
    others = dict(other.named_parameters())
    kernels = {name: own.shape[2:] for name, own in own.named_parameters() if own.ndim == 4}  # those of convolutions
    has_all = all(name in others for name, _ in own.named_parameters())
    return has_all and all(others[name].shape[2:] == kernel for name, kernel in kernels.items())


@torch.no_grad()
def select_weights(student: nn.Module, larger: nn.Module) -> Selection:
    """Let one of our models start with the weights of a larger one, in place; both have an encoder, and heads of any kind.

    Position biases are resized to the student's windows. A classifier's weights are taken if both know the same classes.

    Raises:
        NotOursError: one of them is none of our models.
        SelectionError: the larger one is of another version, lacks a stage, or is narrower than the student; layers of one of
            them were wrapped or quantized.
    """
    own, other = encoder_of(student), encoder_of(larger)
    for model in (student, larger):
        require_plain_layers(model, "selected from", SelectionError)
    check_selectable(own.config, other.config)
    new_blocks, axes = _new_blocks(own, other), axes_of(other)
    new = [*new_blocks, *_new_layers(own, other)]
    tensors, others = (dict(model.named_parameters()) | dict(model.named_buffers()) for model in (own, other))
    chosen = {
        name: selected(
            _resized(name, others[name], own, other),
            axes.get(name, ()),
            lambda group: _evenly(group, own.config, other.config),
        )
        for name in tensors.keys() & others.keys()
        if not any(name.startswith(f"{start}.") for start in new)
    }
    fits = {name: tensors[name].shape == tensor.shape for name, tensor in chosen.items()}  # not if kernels differ
    of_blocks = sum(map(len, blocks_of(own)))
    selection = Selection(num_blocks=of_blocks - len(new_blocks), of_blocks=of_blocks)
    for name, tensor in chosen.items():
        conv, _, value = name.rpartition(".norm.")
        if fits[name] and (not value or fits.get(f"{conv}.conv.weight", True)):  # a norm comes with its convolution
            selection.take(tensors[name], tensor)
    if own.layernorm is not None and other.layernorm is not None and len(own.config.depths) == len(other.config.depths):
        _take_classifier(selection, student, larger)
    return selection


def _new_blocks(own: SwinHfModel, other: SwinHfModel) -> list[str]:
    """The names of blocks that are not taken: the larger one must be of the same kind and at least as wide inside."""
    new = []
    for stage, blocks in enumerate(blocks_of(own)):
        larger = blocks_of(other)[stage] if stage < len(other.encoder.layers) else []
        for number, block in enumerate(blocks):
            widths = [vars(model.config.block_widths(stage, number)) for model in (own, other)] if number < len(larger) else []
            if not (
                widths and type(block) is type(larger[number]) and all(widths[0][key] <= widths[1][key] for key in widths[0])
            ):
                new.append(f"encoder.layers.{stage}.blocks.{number}")
    return new


def _new_layers(own: SwinHfModel, other: SwinHfModel) -> list[str]:
    """The names of layers outside blocks that are not taken, and of all norms if they are of another kind."""
    new = [] if own.embeddings.patch_size == other.embeddings.patch_size else ["embeddings.patch_embeddings"]
    if len(own.config.depths) != len(other.config.depths):
        new.append("layernorm")
    if own.config.norm != other.config.norm:
        of_convolutions = {module.norm for module in own.modules() if isinstance(module, SwinHfConvNorm)}
        new += [name for name, module in own.named_modules() if isinstance(module, NORMS) and module not in of_convolutions]
    return new


def _resized(name: str, tensor: torch.Tensor, own: SwinHfModel, other: SwinHfModel) -> torch.Tensor:
    """Position biases and absolute positions of the larger model, at the sizes of the student's."""
    if name.endswith("relative_position_bias_table"):
        stage = int(name.split(".")[2])  # encoder.layers.<stage>.
        return resize_bias_table(tensor, other.config.stage_window(stage), own.config.stage_window(stage))
    if name == "embeddings.position_embeddings":
        return resize_position_embeddings(tensor, other.embeddings.grid, own.embeddings.grid)
    return tensor


def _evenly(group: Group, own: SwinHfConfig, other: SwinHfConfig) -> list[int]:
    """The channels of a group that a model of the one config takes from one of the other."""
    sizes, others = group_size(group, own), group_size(group, other)
    chosen = [evenly(count, total) for count, total in zip(sizes, others)]
    if len(chosen) == 1:
        return chosen[0].tolist()
    heads, channels = chosen
    return (heads[:, None] * others[1] + channels).flatten().tolist()  # (h, d) -> (h * d)


def _take_classifier(selection: Selection, student: nn.Module, larger: nn.Module) -> None:
    head, larger_head = getattr(student, "classifier", None), getattr(larger, "classifier", None)
    if not (isinstance(head, nn.Linear) and isinstance(larger_head, nn.Linear)):
        return
    try:
        names, larger_names = distinct_names(student.config), distinct_names(larger.config)
    except ValueError:  # one of them does not name its classes
        return
    if sorted(names) == sorted(larger_names):
        order = [larger_names.index(name) for name in names]
        channels = evenly(head.in_features, larger_head.in_features)
        selection.take(head.weight, larger_head.weight[order][:, channels])
        selection.take(head.bias, larger_head.bias[order])
