"""How much a model multiplies."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


def count_macs(module: nn.Module, example: torch.Tensor) -> int:
    """Multiply-accumulate operations of a module for an input, matrix products of attention included.

    Counted as executed, by PyTorch's own counter, with attention spelled out: fused attention hides its products.
    """
    counted = copy.deepcopy(module).eval()
    for part in counted.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
            break  # what is inside of it follows
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        counted(example)
    return counter.get_total_flops() // 2
