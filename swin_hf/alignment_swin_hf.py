"""Loaded weights at addresses like those of new ones, so that a model computes the same bits before and after it was saved."""

import torch
from torch import nn

# In bytes, as PyTorch's allocator; in a file of safetensors, a tensor begins at any multiple of its elements' size.
ALIGNMENT = 64


class AlignsWeights:
    """A model whose weights `from_pretrained` moves to aligned addresses: matrix kernels round by where operands begin."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load as every model of transformers does."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        align_weights(loaded[0] if isinstance(loaded, tuple) else loaded)  # a pair with output_loading_info
        return loaded


def align_weights(model: nn.Module) -> None:
    """Copy each weight that lies in the memory of the CPU at an unaligned address."""
    for weight in (*model.parameters(), *model.buffers()):
        data = weight.data
        if type(data) is torch.Tensor and data.device.type == "cpu" and data.data_ptr() % ALIGNMENT:
            weight.data = data.clone()
