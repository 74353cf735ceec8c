"""Geometry of shifted-window attention as pure functions (Liu et al. 2021, arXiv:2103.14030, sections 3.2 and 4)."""

# B batch, H W feature map, C channels, wh ww window, nW windows, N tokens of a window = wh * ww

import math
from collections.abc import Callable
from functools import lru_cache, wraps

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

REMEMBERED_CONSTANTS = 32  # of each kind: four stages at a few image sizes


def remembered(build: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Cache the latest results of a function that builds a constant tensor from hashable arguments.

    The cache belongs to the process, not to a model, so that models have no state beside their weights. While PyTorch
    records operations or fakes tensors, the constant is built anew and becomes part of what is recorded.
    """

    @lru_cache(maxsize=REMEMBERED_CONSTANTS)
    def build_once(*args) -> torch.Tensor:
        with torch.inference_mode(False):  # a constant first used in inference must also serve a later training
            return build(*args)

    @wraps(build)
    def call(*args) -> torch.Tensor:
        if is_recorded():
            return build(*args)
        return build_once(*args)

    call.remembered = build_once
    return call


def is_recorded() -> bool:
    """Whether PyTorch records operations to run them later: torch.compile, torch.export, torch.jit.trace, make_fx."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or _get_current_dispatch_mode() is not None


def padding(length: int, side: int) -> int:
    """What `length` lacks to be a multiple of `side`."""
    if torch.jit.is_tracing():
        return (side - length % side) % side  # recorded, so that what is traced pads images of other sizes rightly
    # Not -length % side: from the comparison, torch.compile knows from now on that nothing is left over.
    return side - length % side if length % side else 0


def pad_map(feature_map: torch.Tensor, sides: tuple[int, int], channels_first: bool = False) -> torch.Tensor:
    """A (B, H, W, C) map, padded on the right and bottom to multiples of `sides`; the same tensor if nothing is lacking.

    channels_first: it is (B, C, H, W).
    """
    size = feature_map.shape[2:] if channels_first else feature_map.shape[1:3]
    bottom, right = (padding(length, side) for length, side in zip(size, sides))
    if not torch.jit.is_tracing() and not (bottom or right):
        return feature_map
    channels = () if channels_first else (0, 0)
    return torch.nn.functional.pad(feature_map, (*channels, 0, right, 0, bottom))


def fit_window(
    height: int, width: int, window: tuple[int, int], shifted: bool
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Window (height, width) that a block uses on a map of this size, and its shift (rows, columns), if any.

    A window never exceeds the map, and a map that a window spans in either direction is not shifted, as in the original
    code.
    """
    # Not min(): while sizes are symbols, the window, and every size computed from it, would be an expression of them.
    fitted = (window[0] if window[0] <= height else height, window[1] if window[1] <= width else width)
    if not shifted or height <= window[0] or width <= window[1]:
        return fitted, None
    return fitted, (window[0] // 2, window[1] // 2)


def window_partition(feature_map: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """Cut a (B, H, W, C) map into (B * nW, N, C) windows; `window` must divide H and W."""
    B, H, W, C = feature_map.shape
    wh, ww = window
    windows = feature_map.view(B, H // wh, wh, W // ww, ww, C).transpose(2, 3)  # (B, H/wh, W/ww, wh, ww, C)
    return windows.reshape(B * (H // wh) * (W // ww), wh * ww, C)


def window_reverse(windows: torch.Tensor, window: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """Put (B * nW, N, C) windows back into a (B, H, W, C) map: the inverse of `window_partition`."""
    wh, ww = window
    B, C = windows.shape[0] // ((height // wh) * (width // ww)), windows.shape[-1]
    blocks = windows.view(B, height // wh, width // ww, wh, ww, C).transpose(2, 3)  # (B, H/wh, wh, W/ww, ww, C)
    return blocks.reshape(B, height, width, C)


@remembered
def shifted_token_order(
    height: int, width: int, window: tuple[int, int], shift: tuple[int, int], device: torch.device | None = None
) -> torch.Tensor:
    """Indices of the tokens of an (H, W) map in the order of its shifted windows, shape (H * W,), dtype int64."""
    numbers = torch.arange(height * width, device=device).view(1, height, width, 1)
    return window_partition(numbers.roll((-shift[0], -shift[1]), dims=(1, 2)), window).flatten()


@remembered
def shifted_token_places(
    height: int, width: int, window: tuple[int, int], shift: tuple[int, int], device: torch.device | None = None
) -> torch.Tensor:
    """Place of each token of an (H, W) map in the order of its shifted windows: the inverse of that order."""
    places = torch.arange(height * width, device=device).view(-1, window[0] * window[1], 1)
    return window_reverse(places, window, height, width).roll(shift, dims=(1, 2)).flatten()


@remembered
def relative_position_index(
    window: tuple[int, int], table_window: tuple[int, int], device: torch.device | None = None
) -> torch.Tensor:
    """Rows of a `table_window` bias table for all token pairs of `window`, shape (N * N,), dtype int64.

    The table has one row per offset (row difference, column difference), row-major from the most negative one. A
    `window` smaller than `table_window` reads the middle of the table, so an offset keeps its bias.
    """
    rows, columns = (torch.arange(side, device=device) for side in window)
    rows, columns = rows.repeat_interleave(window[1]), columns.repeat(window[0])  # of the N tokens
    row_offset = rows[:, None] - rows[None, :] + table_window[0] - 1  # (N, N)
    column_offset = columns[:, None] - columns[None, :] + table_window[1] - 1
    return (row_offset * (2 * table_window[1] - 1) + column_offset).flatten()


@remembered
def log_spaced_offsets(
    window: tuple[int, int], unit_window: tuple[int, int], device: torch.device | None = None
) -> torch.Tensor:
    """Log-spaced coordinates of all offsets inside `window`, ((2wh-1) * (2ww-1), 2) in the order of a bias table.

    An offset that spans `unit_window` is 8 before and log2(9) / 3 after the logarithm (Liu et al. 2022, arXiv:2111.09883,
    equation 4, with the constants of the authors' code).
    """
    sides = []
    for side, unit in zip(window, unit_window):
        offsets = torch.arange(1 - side, side, device=device, dtype=torch.float32) / max(unit - 1, 1) * 8
        sides.append(offsets.sign() * torch.log2(offsets.abs() + 1.0) / math.log2(8))
    rows, columns = sides
    return torch.stack((rows.repeat_interleave(len(columns)), columns.repeat(len(rows))), dim=1)


@remembered
def attention_mask(
    map_size: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int] | None,
    mask_padding: bool,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Which token pairs of each window may attend to each other, shape (nW, N, N), dtype bool.

    A map of `map_size` is padded on the right and bottom to whole windows, then rolled by `shift`, which brings rows from
    the far edge next to rows of the near edge. The regions that were not neighbours before are numbered and compared (figure
    4 of the paper). With `mask_padding`, padded tokens see padded tokens only.
    """

    sides = []
    for length, side, moved in zip(map_size, window, shift or (0, 0)):
        padded = length + padding(length, side)
        index = torch.arange(padded // side, device=device)[:, None] * side + torch.arange(side, device=device)
        region = (index >= padded - side).long() + (index >= padded - moved).long()
        sides.append((region, (index + moved) % padded < length))
    (rows, inside_rows), (columns, inside_columns) = sides  # (H/wh, wh) and (W/ww, ww)
    regions = rows[:, None, :, None] * 3 + columns[:, None, :]  # (H/wh, W/ww, wh, ww)
    if mask_padding:
        regions = torch.where(inside_rows[:, None, :, None] & inside_columns[:, None, :], regions, -1)
    regions = regions.flatten(2).flatten(0, 1)  # (nW, N)
    return regions[:, :, None] == regions[:, None, :]
