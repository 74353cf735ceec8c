"""Change of resolution as pure functions: position biases and absolute positions for another image size or window."""

# wh ww window, h heads, H W grid of patches, C channels

import copy

import torch
from torch import nn

from .configuration_swin_hf import SwinHfConfig


def resized_config(
    config: SwinHfConfig,
    image_size: int | list[int] | tuple[int, int] | None = None,
    window_size: int | list[int] | tuple[int, int] | None = None,
) -> SwinHfConfig:
    """The config for another image size or window; V2's position networks keep the units that they were trained with.

    Raises:
        ValueError: a size is not positive.
    """
    resized = copy.deepcopy(config)
    if image_size is not None:
        resized.image_size = image_size
    if window_size is not None:
        resized.window_size = window_size
    resized.validate_sizes()
    stages = range(len(config.depths))
    if config.version == 2 and any(config.stage_window(stage) != resized.stage_window(stage) for stage in stages):
        resized.pretrained_window_sizes = [list(config.pretrained_window(stage)) for stage in stages]
    return resized


def resized_weights(weights: dict[str, torch.Tensor], config: SwinHfConfig, resized: SwinHfConfig) -> dict[str, torch.Tensor]:
    """The weights of a model of `config` for a model of `resized`, which differs only in image size and window."""
    result = dict(weights)
    for name, weight in weights.items():
        if name.endswith("relative_position_bias_table"):
            result[name] = resize_bias_table(weight, config.stage_window(0), resized.stage_window(0))
        elif name.endswith("position_embeddings"):
            result[name] = resize_position_embeddings(weight, config.grid, resized.grid)
    return result


def resize_bias_table(table: torch.Tensor, window: tuple[int, int], new_window: tuple[int, int]) -> torch.Tensor:
    """A V1 table of position biases ((2wh-1) * (2ww-1), h) for another window, bicubic, as in the original code.

    The middle of the table, offset 0, keeps its value; every other offset gets the bias from the same relative place in the
    old table.
    """
    if new_window == window:
        return table
    old, new = ([2 * side - 1 for side in sides] for sides in (window, new_window))
    return _interpolate(table.view(1, *old, -1), new).reshape(-1, table.shape[1])


def resize_position_embeddings(positions: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """Absolute position embeddings (1, H * W, C) for another grid of patches, bicubic."""
    if new_grid == grid and not torch.jit.is_tracing():  # which then records the interpolation, for images of other sizes
        return positions
    return _interpolate(positions.view(1, *grid, -1), new_grid).flatten(1, 2)


def _interpolate(values: torch.Tensor, size: tuple[int, int] | list[int]) -> torch.Tensor:
    """(1, H, W, C) values at another size."""
    channels_first = values.permute(0, 3, 1, 2).float()
    resized = nn.functional.interpolate(channels_first, size=tuple(size), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).to(values.dtype)
