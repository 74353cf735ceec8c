"""Position biases of all pairs of tokens of a window, in a form that a program can hold.

Those of a small window are a constant. Those of a large one would outgrow the weights (windows of 14 x 14 add a fifth to
TinyViT-5M, those of 32 x 32 many times the weights), so the program lays them out itself from the biases of all offsets.
"""

# h heads, wh ww window, N tokens of a window = wh * ww

import torch
import torch.ao.quantization.fx._decomposed  # the quantized_decomposed operators
from torch import nn

LARGEST_CONSTANT = 64  # tokens of a window
LEVELS = 127  # of int8 on either side of 0


class LaidOutBias(nn.Module):
    """Biases (1, h, N, N) from those of offsets.

    First along the columns of the window, by a product with a constant of zeros and ones. Then along its rows: the biases of
    one row of tokens towards all others are a stretch of those of all offsets, which begins one row earlier for the next row.
    Copies of the whole, laid end to end and cut into lengths of one row less, stand under each other as they are needed.

    compact: in int8 with one scale, exact to 1 / 254 of the largest bias.
    """

    def __init__(self, bias: torch.Tensor, window: tuple[int, int], compact: bool):
        super().__init__()
        (wh, ww), self.num_heads = window, bias.shape[1]
        self.window, self.compact = window, compact
        table = nn.functional.pad(offset_biases(bias, window).flip(1), (0, 0, 0, 1))  # (h, 2wh, 2ww-1); rows: key minus query
        self.scale = (float(table.abs().max()) or 1.0) / LEVELS
        table, rows = table.flatten(0, 1).contiguous(), torch.zeros(1, wh, 1)
        if compact:
            table, rows = (torch.round(values / self.scale).to(torch.int8) for values in (table, rows))
        self.register_buffer("table", table)
        self.register_buffer("rows", rows)  # zeros, whose sum with the biases is copies of them
        query, key = torch.arange(ww)[:, None], torch.arange(ww)
        offset_of_pair = nn.functional.one_hot((query - key + ww - 1).flatten(), 2 * ww - 1)
        self.register_buffer("columns", offset_of_pair.t().float().contiguous())  # (2ww-1, ww * ww)

    def forward(self) -> torch.Tensor:
        (wh, ww), h = self.window, self.num_heads
        by_column = self._kept(torch.mm(self._read(self.table), self.columns)).view(h, 2 * wh, ww, ww)
        by_column = self._kept(self._kept(by_column).permute(0, 2, 1, 3))
        by_column = self._kept(by_column.reshape(h * ww, 1, 2 * wh * ww))
        length = (2 * wh - 1) * ww
        copies = self._kept(self._kept(by_column + self._read(self.rows)).view(h * ww, -1))
        shifted = self._kept(self._kept(copies[:, : wh * length]).reshape(h * ww, wh, length))
        by_row = self._kept(shifted[:, :, (wh - 1) * ww :]).reshape(h, ww, wh, wh * ww)
        by_row = self._kept(self._kept(by_row).permute(0, 2, 1, 3))
        return by_row.reshape(1, h, wh * ww, wh * ww)

    def _read(self, values: torch.Tensor) -> torch.Tensor:
        if not self.compact:
            return values
        return torch.ops.quantized_decomposed.dequantize_per_tensor(values, self.scale, 0, -LEVELS - 1, LEVELS, torch.int8)

    def _kept(self, values: torch.Tensor) -> torch.Tensor:
        """The values in int8, if they are compact, so that the backend moves bytes."""
        if not self.compact:
            return values
        bounds = (self.scale, 0, -LEVELS - 1, LEVELS, torch.int8)
        return self._read(torch.ops.quantized_decomposed.quantize_per_tensor(values, *bounds))


def offset_biases(bias: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """The biases (h, 2wh-1, 2ww-1) of all offsets, query minus key, from those of all pairs, (1, h, N, N)."""
    of_pairs = bias[0].unflatten(1, window).unflatten(3, window)  # (h, wh, ww, wh, ww)
    down, across = (torch.arange(1 - side, side) for side in window)
    query, key = (down.clamp(min=0), across.clamp(min=0)), ((-down).clamp(min=0), (-across).clamp(min=0))
    return of_pairs[:, query[0][:, None], query[1], key[0][:, None], key[1]]
