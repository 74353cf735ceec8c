"""The order of tokens in windows, for maps of a fixed size."""

# B batch, H W feature map in patches, wh ww window, nW windows, N tokens of a window, C channels, L tokens = H * W

import torch
from torch import nn


class WindowOrder(nn.Module):
    """Reorders the tokens of a map by windows, padded and shifted, and back."""

    def __init__(self, height: int, width: int, window: tuple[int, int], shift: tuple[int, int] | None):
        super().__init__()
        self.height, self.width, self.window, self.shift = height, width, window, shift
        self.pad_height, self.pad_width = -height % window[0], -width % window[1]
        self.spans_width = width + self.pad_width == window[1]  # windows then are rows of the map, in its own order

    def partition(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B * L, C) tokens in the order of the map to (B * nW * N, C) tokens in the order of the windows."""
        C = tokens.shape[1]
        feature_map = tokens.view(-1, self.height, self.width, C)
        if self.pad_height or self.pad_width:
            feature_map = nn.functional.pad(feature_map, (0, 0, 0, self.pad_width, 0, self.pad_height))
        if self.shift:
            feature_map = roll(feature_map, *self.shift)
        return self._by_window(feature_map).reshape(-1, C)

    def reverse(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of `partition`, without the padding."""
        C, H, W = tokens.shape[1], self.height + self.pad_height, self.width + self.pad_width
        wh, ww = self.window
        if not self.spans_width:
            tokens = tokens.view(-1, W // ww, wh, ww * C).permute(0, 2, 1, 3)  # (B * H/wh, wh, W/ww, ww * C)
        feature_map = tokens.reshape(-1, H, W, C)
        if self.shift:
            feature_map = roll(feature_map, -self.shift[0], -self.shift[1])
        if self.pad_height:
            feature_map = feature_map[:, : self.height]
        if self.pad_width:
            feature_map = feature_map[:, :, : self.width]
        return feature_map.reshape(-1, C)

    def _by_window(self, feature_map: torch.Tensor) -> torch.Tensor:
        if self.spans_width:
            return feature_map
        (wh, ww), (W, C) = self.window, feature_map.shape[2:]
        return feature_map.reshape(-1, wh, W // ww, ww * C).permute(0, 2, 1, 3)  # (B * H/wh, W/ww, wh, ww * C)


def roll(feature_map: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Cyclic shift of a (B, H, W, C) map up by `rows` and to the left by `columns`, as slices and concatenations."""
    if rows:
        feature_map = torch.cat((feature_map[:, rows:], feature_map[:, :rows]), dim=1)
    if columns:
        feature_map = torch.cat((feature_map[:, :, columns:], feature_map[:, :, :columns]), dim=2)
    return feature_map
