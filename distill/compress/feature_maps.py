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
    indices: of these among all hidden states; given for images of another size, where stages may have the same resolution.
    """

    def __init__(self, model: nn.Module, indices: list[int] | None = None):
        self.model, self.indices, self.maps = model, indices, []
        own = unwrap_model(model)
        self._name = type(own).__name__
        # The hidden states of a Swin are those after its downsampling, where those before it have more to say.
        self._has_blocks = "output_block_hidden_states" in inspect.signature(type(own).forward).parameters

    def __call__(self, *, pixel_values: torch.Tensor, **inputs: Any):
        """What the model returns.

        Raises:
            FeatureError: it has no hidden states, or some that are no maps.
        """
        if self._has_blocks:
            inputs["output_block_hidden_states"] = True
        output = self.model(pixel_values=pixel_values, output_hidden_states=True, **inputs)
        states = [getattr(output, name, None) for name in ("block_hidden_states", "reshaped_hidden_states", "hidden_states")]
        found = next((state for state in states if state), None)
        if found is None:
            raise FeatureError(f"{self._name} must return hidden states to be compared by its features, it has none")
        tokens = states[-1] if states[-1] is not None and len(states[-1]) == len(found) else [None] * len(found)
        maps = [as_map(state, *pixel_values.shape[2:], self._name, own) for state, own in zip(found, tokens)]
        self.indices = last_of_each_resolution(maps) if self.indices is None else self.indices
        self.maps = [maps[index] for index in self.indices]
        return output


def as_map(
    state: torch.Tensor, height: int, width: int, name: str = "the model", tokens: torch.Tensor | None = None
) -> torch.Tensor:
    """A hidden state as a map (B, C, h, w): tokens (B, N, C), or a map with its channels first or last.

    height, width: of the image, which the tokens divide evenly; tokens before theirs, such as that of the class, are left out.
    tokens: the same state as (B, N, C), if the model returns that too; otherwise the map must have the shape of the image.

    Raises:
        FeatureError: the state is neither.
    """
    if state.ndim == 3:
        rows = math.isqrt(state.shape[1] * height // width)
        columns = round(rows * width / height)
        return state[:, state.shape[1] - rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))
    if state.ndim == 4:
        channels = tokens.shape[-1] if tokens is not None and tokens.ndim == 3 else None
        if channels in (None, state.shape[1]) and _is_like(state.shape[2:], height, width):
            return state
        if channels in (None, state.shape[3]) and _is_like(state.shape[1:3], height, width):
            return state.permute(0, 3, 1, 2)
    raise FeatureError(f"{name} must return feature maps of its images to be compared by them, got {tuple(state.shape)}")


def _is_like(sides: tuple[int, int], height: int, width: int) -> bool:
    """Whether a map has about the shape of an image, whose sides may have been rounded."""
    return abs(sides[0] * width - sides[1] * height) < max(height, width)


def last_of_each_resolution(maps: list[torch.Tensor]) -> list[int]:
    """The index of the last map of each size, the finest first."""
    last = {tuple(own.shape[2:]): index for index, own in enumerate(maps)}
    return [last[size] for size in sorted(last, key=math.prod, reverse=True)]
