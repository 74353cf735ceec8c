"""Change of resolution as pure functions: position biases and absolute positions for another image size or window."""

# wh ww window, h heads, H W grid of patches, C channels

import copy
import re
from typing import Any

import torch
from torch import nn

from .configuration_swin_hf import Size, SwinHfConfig, WindowOfEachStage, height_width

RESIZABLE = ("image_size", "window_size", "stage_windows")


def wanted_sizes(config: SwinHfConfig, saved: SwinHfConfig) -> dict[str, Any]:
    """The sizes that a config asks for when the weights of a model of `saved` are loaded for it; None is no wish."""
    sizes = {name: getattr(config, name) for name in RESIZABLE}
    if saved.stage_windows and not config.stage_windows:  # the same window everywhere
        sizes |= {"stage_windows": [list(height_width(config.window_size))] * len(config.depths), "window_size": None}
    return sizes


def differing_sizes(sizes: dict[str, Any], config: SwinHfConfig) -> dict[str, Any]:
    """Those of some sizes, by the name of their field, that are not the config's; None is no wish."""

    def plain(name: str, size: Any) -> Any:
        if size is None:
            return None
        return tuple(map(height_width, size)) if name == "stage_windows" else height_width(size)

    return {
        name: size
        for name, size in sizes.items()
        if size is not None and plain(name, size) != plain(name, getattr(config, name))
    }


def resized_config(
    config: SwinHfConfig,
    image_size: Size | None = None,
    window_size: Size | None = None,
    stage_windows: WindowOfEachStage | None = None,
) -> SwinHfConfig:
    """The config for another image size or window; V2's position networks keep the units that they were trained with.

    Raises:
        ValueError: a size is not positive, or `window_size` is given alone for a model with a window for each stage.
    """
    resized = copy.deepcopy(config)
    if image_size is not None:
        resized.image_size = image_size
    if window_size is not None:
        if config.stage_windows and stage_windows is None:
            raise ValueError(f"stage_windows must be given instead of window_size for stages of {config.stage_windows}")
        resized.window_size = window_size
    if stage_windows is not None:
        resized.stage_windows = stage_windows
    resized.validate_sizes()
    resized.validate_stages()
    stages = range(len(config.depths))
    if config.version == 2 and any(config.stage_window(stage) != resized.stage_window(stage) for stage in stages):
        resized.pretrained_window_sizes = [list(config.pretrained_window(stage)) for stage in stages]
    return resized


def resized_weights(weights: dict[str, torch.Tensor], config: SwinHfConfig, resized: SwinHfConfig) -> dict[str, torch.Tensor]:
    """The weights of a model of `config` for a model of `resized`, which differs only in image size and window."""
    result = dict(weights)
    for name, weight in weights.items():
        if name.endswith("relative_position_bias_table"):
            stage = int(re.search(r"layers\.(\d+)\.", name)[1])
            result[name] = resize_bias_table(weight, config.stage_window(stage), resized.stage_window(stage))
        elif name.endswith("position_embeddings"):
            result[name] = resize_position_embeddings(weight, config.grid, resized.grid)
    return result


def freeze_alike(model: nn.Module, resized: nn.Module) -> None:
    """Freeze the weights of a resized model that are frozen in the one it was made of."""
    for own, copied in zip(model.parameters(), resized.parameters(), strict=True):
        copied.requires_grad_(own.requires_grad)


def resize_bias_table(table: torch.Tensor, window: tuple[int, int], new_window: tuple[int, int]) -> torch.Tensor:
    """A V1 table of position biases ((2wh-1) * (2ww-1), h) for another window, bicubic, as in the original code.

    The middle of the table, offset 0, keeps its value; every other offset gets the bias from the same relative place in the
    old table. Biases of distances, the same for an offset and its mirror images, stay so to the last bit.
    """
    if new_window == window:
        return table
    old, new = ([2 * side - 1 for side in sides] for sides in (window, new_window))
    by_offset = table.view(*old, -1)
    resized = _interpolate(by_offset[None], new)[0]
    if is_mirrored(by_offset):
        rows, columns = (torch.arange(1 - side, side, device=table.device).abs() + side - 1 for side in new_window)
        resized = resized[rows[:, None], columns]
    return resized.reshape(-1, table.shape[1])


def is_mirrored(by_offset: torch.Tensor) -> bool:
    """Whether biases (2wh-1, 2ww-1, h) are the same for an offset and its mirror images."""
    return all(torch.equal(by_offset, by_offset.flip(axis)) for axis in (0, 1))


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
