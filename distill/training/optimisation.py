"""What is trained and how fast: layer-wise parameter groups, frozen stages and averaged weights."""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel

from distill.errors import require
from edge.device.errors import ExplainedError

# Position tables and temperatures are not decayed either (Liu et al. 2021 and 2022, the authors' code).
UNDECAYED = re.compile(r"position_bias|position_embeddings|logit_scale|mask_token")
STAGE = re.compile(r"encoder\.layers\.(\d+)\.")
BLOCK = re.compile(r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class OptimisationSettings:
    heading = "optimisation"

    global_batch_size: int = field(
        default=0, metadata={"help": "Images per step over all processes and accumulated batches; 0: not fixed."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Ratio of a block's learning rate to the next block's (0.7 to 0.9 for fine-tuning)."}
    )
    lamb: bool = field(default=False, metadata={"help": "Use LAMB instead of --optim, for batches of thousands."})
    frozen_stages: int = field(default=0, metadata={"help": "Number of first stages to freeze, with the embeddings."})
    ema_decay: float = field(default=0.0, metadata={"help": "Decay of averaged weights, which are evaluated and saved."})
    sync_batch_norm: bool = field(
        default=False, metadata={"help": "Batch normalisation counts the images of all GPUs together, for few on each."}
    )
    class_weights: str = field(default="none", metadata={"help": "none, or balanced: by the inverse frequency of a class."})

    def __post_init__(self):
        require(self.global_batch_size >= 0, "global_batch_size", "not be negative", self.global_batch_size)
        require(0 < self.layer_decay <= 1, "layer_decay", "lie in (0, 1]", self.layer_decay)
        require(self.frozen_stages >= 0, "frozen_stages", "not be negative", self.frozen_stages)
        require(0 <= self.ema_decay < 1, "ema_decay", "lie in [0, 1)", self.ema_decay)
        require(self.class_weights in ("none", "balanced"), "class_weights", "be none or balanced", self.class_weights)


class LayerError(ExplainedError):
    """A model has no stages, or not enough; the message says which setting needs them."""


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, object]]:
    """Groups for an optimiser: by depth, each block with `layer_decay` times the next one's rate, and by weight decay.

    The heads have `learning_rate`, the embeddings the lowest rate (Clark et al. 2020, arXiv:2003.10555; Bao et al. 2022,
    arXiv:2106.08254). Vectors, position tables and temperatures get no weight decay.
    """
    depth_of = _depths(model) if layer_decay < 1 else lambda name: 0
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    deepest = max(depth_of(name) for name, _ in trained)
    groups = defaultdict(list)
    for name, parameter in trained:
        decayed = parameter.ndim > 1 and not UNDECAYED.search(name)
        groups[deepest - depth_of(name), decayed].append(parameter)
    return [
        {"params": params, "lr": learning_rate * layer_decay**height, "weight_decay": weight_decay if decayed else 0.0}
        for (height, decayed), params in sorted(groups.items())
    ]


def _depths(model: nn.Module):
    """A function from a parameter's name to its depth: 0 for the embeddings, 1 more for each block, the heads last."""
    blocks = sorted({tuple(map(int, match.groups())) for name, _ in model.named_parameters() if (match := BLOCK.search(name))})
    if not blocks:
        raise LayerError(f"--layer_decay needs a Swin with encoder.layers.*.blocks.*, {type(model).__name__} has none; use 1")
    depths = {block: depth for depth, block in enumerate(blocks, start=1)}

    def depth_of(name: str) -> int:
        if "embeddings." in name:
            return 0
        if match := BLOCK.search(name):
            return depths[tuple(map(int, match.groups()))]
        if match := STAGE.search(name):  # the patch merging after a stage belongs to its last block
            return max(depth for (stage, _), depth in depths.items() if stage == int(match.group(1)))
        return len(blocks) + 1

    return depth_of


def freeze_stages(model: nn.Module, num_stages: int) -> None:
    """Freeze the embeddings and the first stages of a Swin.

    Raises:
        LayerError: the model is not a Swin, or no stage would be left to train.
    """
    if num_stages == 0:
        return
    stages = {int(match.group(1)) for name, _ in model.named_parameters() if (match := STAGE.search(name))}
    if not num_stages < len(stages):
        raise LayerError(f"--frozen_stages must be below the {len(stages)} stages of {type(model).__name__}, got {num_stages}")
    for name, parameter in model.named_parameters():
        match = STAGE.search(name)
        if "embeddings." in name or (match and int(match.group(1)) < num_stages):
            parameter.requires_grad_(False)


def synchronised(model: PreTrainedModel, num_processes: int, device: torch.device) -> PreTrainedModel:
    """The model with batch norms that count the images of all processes together; the same model for one process.

    Raises:
        SettingsError: the processes are not on GPUs, where alone PyTorch has such norms.
    """
    if num_processes == 1:
        return model
    require(device.type == "cuda", "sync_batch_norm", "be false where there are several processes without GPUs", True)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


class WeightAverage:
    """Exponential moving average of a model's weights; in its first steps it follows the model closely.

    After n steps the decay is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage. The statistics of
    batch normalisation are averaged with the weights that they belong to, as in timm.
    """

    def __init__(self, model: PreTrainedModel, decay: float):
        self.decay = decay
        self.averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)

    def _average(self, averaged: list[torch.Tensor], current: list[torch.Tensor], num_averaged: torch.Tensor) -> None:
        if not averaged[0].is_floating_point():  # counters
            torch._foreach_copy_(averaged, current)
            return
        steps = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(self.decay, (1 + steps) / (10 + steps)))

    def update(self, model: nn.Module) -> None:
        """Include the weights after a step."""
        self.averaged.update_parameters(model)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Put the averaged weights into `model` for a while."""
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.averaged.module.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(own)
