"""Whether the layers of a model are still those that its config makes, or were wrapped, replaced or quantized by others."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from .resizing_swin_hf import differing_sizes
from .stock_swin_hf import HUB_ARGUMENTS, saved_config


def replaced_layer(model: nn.Module, plain: nn.Module) -> str:
    """The first layer of a model that differs in kind from `plain`, a model as its config makes it; empty if there is none.

    A SyncBatchNorm counts as the BatchNorm that it was made of.
    """
    own = dict(model.named_modules())
    for name, module in plain.named_modules():
        found = own.get(name)
        is_synchronised = isinstance(module, _BatchNorm) and isinstance(found, nn.SyncBatchNorm)
        if type(found) is not type(module) and not is_synchronised:
            return f"{name} of type {type(found).__name__}" if found is not None else f"none named {name}"
    for name, weight in model.state_dict().items():
        kind = type(weight)
        if kind is not torch.Tensor and isinstance(weight, torch.Tensor):
            return f"{name} of type {kind.__name__}"
    differing = sorted(model.state_dict().keys() ^ plain.state_dict().keys())
    return f"other weights: {', '.join(differing[:3])}" if differing else ""


def require_plain_layers(model: PreTrainedModel, what: str, error: type[Exception] = ValueError) -> None:
    """Check that the layers of a model are those that its config makes, before something reads their weights.

    what: it cannot be otherwise.

    Raises:
        error: a layer is not; the message names it.
    """
    with torch.device("meta"):
        plain = model.empty_copy(model.config) if hasattr(model, "empty_copy") else type(model)(model.config)
    if replaced := replaced_layer(model, plain):
        raise error(
            f"the layers of {type(model).__name__} must be as its config makes them to be {what}, got {replaced}; do so "
            "before layers are wrapped or quantized, or merge what wraps them"
        )


def require_kept_sizes(path, kwargs: dict[str, Any], sizes: dict[str, Any], config_class: type) -> None:
    """Check that a checkpoint that is quantized, or is to be as it is loaded, is not loaded for other sizes than its own.

    kwargs: of `from_pretrained`. sizes: those asked for, by the name of their field.

    Raises:
        ValueError: it is.
    """
    quantized = kwargs.get("quantization_config") or saved_config(path, kwargs).get("quantization_config")
    if not quantized or not sizes:
        return
    where = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    saved = config_class.from_pretrained(path, **where)
    saved = getattr(saved, "backbone_config", saved)
    for name, size in differing_sizes(sizes, saved).items():
        raise ValueError(
            f"{name} must be {getattr(saved, name)}, that of {path}, while its weights are quantized, got {size}; load "
            f"them without quantization for this {name}, save_pretrained them to a folder, and quantize that"
        )
