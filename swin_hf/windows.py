"""Geometry of shifted-window attention as pure functions (Liu et al. 2021, arXiv:2103.14030, sections 3.2 and 4)."""

# B batch, H W feature map, C channels, wh ww window, nW windows, N tokens of a window = wh * ww

import torch


def fit_window(height: int, width: int, window_size: int, shift_size: int) -> tuple[tuple[int, int], int]:
    """Window (height, width) and shift that a block uses on a map of this size.

    A window never exceeds the map, and a map that a window spans in either direction is not shifted, which is the
    rule of the original code.
    """
    window = (min(window_size, height), min(window_size, width))
    return window, 0 if min(height, width) <= window_size else shift_size


def window_partition(feature_map: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """Cut a (B, H, W, C) map into (B * nW, N, C) windows; `window` must divide H and W."""
    B, H, W, C = feature_map.shape
    wh, ww = window
    windows = feature_map.view(B, H // wh, wh, W // ww, ww, C).transpose(2, 3)  # (B, H/wh, W/ww, wh, ww, C)
    return windows.reshape(-1, wh * ww, C)


def window_reverse(windows: torch.Tensor, window: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """Put (B * nW, N, C) windows back into a (B, H, W, C) map: the inverse of `window_partition`."""
    wh, ww = window
    C = windows.shape[-1]
    blocks = windows.view(-1, height // wh, width // ww, wh, ww, C).transpose(2, 3)  # (B, H/wh, wh, W/ww, ww, C)
    return blocks.reshape(-1, height, width, C)


def relative_position_index(window: tuple[int, int], table_window: tuple[int, int]) -> torch.Tensor:
    """Rows of a `table_window` bias table for all token pairs of `window`, shape (N * N,), dtype int64.

    The table has one row per offset (row difference, column difference), row-major from the most negative one. A
    `window` smaller than `table_window` reads the middle of the table, so an offset keeps its bias.
    """
    rows, columns = torch.meshgrid(torch.arange(window[0]), torch.arange(window[1]), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    row_offset = rows[:, None] - rows[None, :] + table_window[0] - 1  # (N, N)
    column_offset = columns[:, None] - columns[None, :] + table_window[1] - 1
    return (row_offset * (2 * table_window[1] - 1) + column_offset).flatten()


def shifted_window_mask(
    height: int, width: int, window: tuple[int, int], shift_size: int, device: torch.device | None = None
) -> torch.Tensor:
    """Which token pairs of each shifted window were neighbours before the cyclic shift, shape (nW, N, N), dtype bool.

    `True` marks pairs that may attend to each other. The shift brings rows from the far edge next to rows of the near
    edge; the regions of a map that may not mix are numbered and compared (figure 4 of the paper).
    """

    def region(size: int, window_side: int) -> torch.Tensor:
        index = torch.arange(size, device=device)
        return (index >= size - window_side).long() + (index >= size - shift_size).long()

    regions = region(height, window[0])[:, None] * 3 + region(width, window[1])[None, :]  # (H, W)
    regions = window_partition(regions[None, :, :, None], window).squeeze(-1)  # (nW, N)
    return regions[:, :, None] == regions[:, None, :]
