"""The device of a training, and the numbers that it computes in."""

import torch
from transformers import TrainingArguments

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def computes_in_bfloat16(device_type: str) -> bool:
    """Whether a device of this type, "cuda" or another, is a GPU here that computes in bfloat16 itself."""
    return device_type == "cuda" and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def mixed_precision(arguments: TrainingArguments) -> torch.autocast:
    """A context in which a model computes as in a training with these arguments."""
    dtype = DTYPES.get(arguments.mixed_precision)
    return torch.autocast(arguments.device.type, dtype=dtype, enabled=dtype is not None)


def device_in_words(arguments: TrainingArguments) -> str:
    """The device that trains, and its mixed precision."""
    device = arguments.device
    if device.type == "cpu":
        name = f"the CPU, {torch.get_num_threads()} threads"
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    precision = arguments.mixed_precision  # by these arguments, or by `accelerate launch`
    return name if precision == "no" else f"{name}, in mixed precision ({precision})"
