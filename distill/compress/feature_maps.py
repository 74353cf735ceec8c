"""The feature maps of any vision model of transformers: one for each resolution, the finest first."""

# B batch, C channels, h w positions of a map, N tokens

import inspect
import math
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import unwrap_model

from edge.device.errors import ExplainedError


class FeatureError(ExplainedError):
    """A model gives no feature maps; the message names it."""


class WithMaps:
    """A model to call, which keeps the feature maps of its last call.

    maps: (B, C, h, w) each, those after the last block of each resolution.
    """

    def __init__(self, model: nn.Module):
        self.model, self.maps = model, []
        own = unwrap_model(model)
        self._name = type(own).__name__
        # The hidden states of a Swin are those after its downsampling, where those before it have more to say.
        self._has_blocks = "output_block_hidden_states" in inspect.signature(type(own).forward).parameters

    def __call__(self, *, pixel_values: torch.Tensor, **inputs: Any):
        """What the model returns.

        Raises:
            FeatureError: it has no hidden states.
        """
        if self._has_blocks:
            inputs["output_block_hidden_states"] = True
        output = self.model(pixel_values=pixel_values, output_hidden_states=True, **inputs)
        states = [getattr(output, name, None) for name in ("block_hidden_states", "reshaped_hidden_states", "hidden_states")]
        found = next((state for state in states if state), None)
        if found is None:
            raise FeatureError(f"{self._name} must return hidden states to be compared by its features, it has none")
        self.maps = last_of_each_resolution([as_map(state, *pixel_values.shape[2:]) for state in found])
        return output


def as_map(state: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A hidden state (B, C, h, w), or one of tokens (B, N, C), as a map (B, C, h, w).

    height, width: of the image, which the tokens divide evenly; tokens before theirs, such as that of the class, are left out.
    """
    if state.ndim == 4:
        return state
    rows = math.isqrt(state.shape[1] * height // width)
    columns = round(rows * width / height)
    return state[:, state.shape[1] - rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


def last_of_each_resolution(maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """The last map of each size, the finest first."""
    last = {tuple(own.shape[2:]): own for own in maps}
    return [last[size] for size in sorted(last, key=math.prod, reverse=True)]
