"""Parts of blocks that act in training alone: stochastic depth, and gradient checkpointing that counts each image once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_swin_hf import SwinHfConfig


def drop_path_rate(config: SwinHfConfig, stage: int, block: int) -> float:
    """The share of samples that leave out a block, which rises evenly from block to block (Huang et al. 2016)."""
    last_block = max(sum(config.depths) - 1, 1)
    return config.drop_path_rate * (sum(config.depths[:stage]) + block) / last_block


class SwinHfDropPath(nn.Module):
    """Stochastic depth per sample (Huang et al. 2016, arXiv:1603.09382): identity outside training."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1.0 - self.drop_prob
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        return hidden_states * hidden_states.new_empty(shape).bernoulli_(keep_prob).div_(keep_prob)


class SwinHfCheckpointedLayer(GradientCheckpointingLayer):
    """A layer whose forward pass gradient checkpointing may repeat; statistics of batch normalisation are of the first pass.

    transformers sets the function that runs a pass now and again in the backward pass.
    """

    @property
    def _gradient_checkpointing_func(self) -> Callable:
        return partial(self._run_checkpointed, self._checkpoint)

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, checkpoint: Callable) -> None:
        self.__dict__["_checkpoint"] = checkpoint

    @_gradient_checkpointing_func.deleter
    def _gradient_checkpointing_func(self) -> None:
        del self.__dict__["_checkpoint"]

    def _run_checkpointed(self, checkpoint: Callable, forward: Callable, *args):
        if torch.compiler.is_compiling():  # which repeats operations, and none that changes a buffer
            return checkpoint(forward, *args)
        passes = []

        def run(*args):
            passes.append(forward)
            if len(passes) == 1:
                return forward(*args)
            with kept_statistics(self):
                return forward(*args)

        return checkpoint(run, *args)


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalisation in training leave its running statistics as they are, and save the same tensors as ever."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the share of the new statistics
    try:
        yield
    finally:
        for norm, momentum, num_batches in kept:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(num_batches)
