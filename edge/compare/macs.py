"""Multiply-accumulate operations of a model."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


def count_macs(module: nn.Module, example: torch.Tensor) -> int:
    """Multiply-accumulate operations of a module for an input, matrix products of attention included.

    PyTorch's own counter counts what is executed, with eager attention, since fused attention hides its products.
    """
    counted = copy.deepcopy(module).eval()
    for part in counted.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
            break  # this sets the models inside it too
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        counted(example)
    return counter.get_total_flops() // 2
