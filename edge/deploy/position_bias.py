"""Position biases of all pairs of tokens of a window, in a form that a program can hold.

Those of a small window are a constant. Those of a large one would outgrow the weights (windows of 14 x 14 add a fifth to
TinyViT-5M, those of 32 x 32 many times the weights), so the program lays them out itself from the biases of all offsets.
"""

# h heads, wh ww window, N tokens of a window = wh * ww, B rows that are laid out at a time

import torch
import torch.ao.quantization.fx._decomposed  # the quantized_decomposed operators
from torch import nn

LARGEST_CONSTANT = 64  # tokens of a window
LEVELS = 127  # of int8 on either side of 0


class LaidOutBias(nn.Module):
    """Biases (1, h, N, N) from those of offsets, in views, slices and permutations.

    The biases of one token towards all others are a stretch of the biases of offsets, which begins one step earlier for the
    next token. Copies of the whole, one for each token, laid end to end and cut into rows of a step less, stand under each
    other as they are needed: first so along the columns of the window, then along its rows.

    compact: in int8 with one scale, exact to 1 / 254 of the largest bias.
    """

    def __init__(self, bias: torch.Tensor, window: tuple[int, int], compact: bool):
        super().__init__()
        (wh, ww), self.num_heads = window, bias.shape[1]
        self.window, self.compact = window, compact
        table = nn.functional.pad(offset_biases(bias, window).flip(1, 2), (0, 1, 0, 1))  # (h, 2wh, 2ww): an offset, negated
        self.scale = (float(table.abs().max()) or 1.0) / LEVELS
        table = table.reshape(-1, 1, 2 * ww).contiguous()
        columns, rows = torch.zeros(1, ww, 1), torch.zeros(1, wh, 1)
        if compact:
            table, columns, rows = (torch.round(values / self.scale).to(torch.int8) for values in (table, columns, rows))
        self.register_buffer("table", table)
        self.register_buffer("columns", columns)  # zeros, whose sum with the biases is copies of them
        self.register_buffer("rows", rows)

    def forward(self) -> torch.Tensor:
        (wh, ww), h = self.window, self.num_heads
        by_column = self._stretches(self._read(self.table), self._read(self.columns), ww, 1)  # (h * 2wh, ww, ww)
        by_column = self._kept(self._kept(by_column.reshape(h, 2 * wh, ww, ww)).permute(0, 2, 1, 3))
        by_column = self._kept(by_column.reshape(h * ww, 1, 2 * wh * ww))
        by_row = self._stretches(by_column, self._read(self.rows), wh, ww)  # (h * ww, wh, N)
        by_row = self._kept(self._kept(by_row.reshape(h, ww, wh, wh * ww)).permute(0, 2, 1, 3))
        return by_row.reshape(1, h, wh * ww, wh * ww)

    def _stretches(self, whole: torch.Tensor, zeros: torch.Tensor, side: int, step: int) -> torch.Tensor:
        """From biases (B, 1, 2 * side * step), the `side` stretches of side * step that begin a step earlier each."""
        length = (2 * side - 1) * step
        copies = self._kept(self._kept(whole + zeros).reshape(whole.shape[0], -1))
        shifted = self._kept(self._kept(copies[:, : side * length]).reshape(-1, side, length))
        return self._kept(shifted[:, :, (side - 1) * step :])

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
