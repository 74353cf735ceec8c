"""Position biases of all pairs of tokens of a window, in a form that a program can hold.

Few are a constant. Many would outgrow the weights (windows of 14 x 14 add a fifth to TinyViT-5M, those of 32 x 32 many times
the weights), so the program lays them out itself from the biases of all offsets.
"""

# h heads, wh ww window, N tokens of a window = wh * ww

from collections.abc import Callable

import torch
from torch import nn

from edge.deploy.constants import constant

LARGEST_CONSTANT = 2**13  # bytes of biases, as float32 or int8, that are a constant; the instructions that lay out take 3 kB
MOST_JOINED = 5  # tensors that the backend joins in one operation


class LaidOutBias(nn.Module):
    """Biases (h, N, N) from those of offsets.

    First along the columns of the window, by a product with a constant of zeros and ones. Then along its rows: the biases of
    one row of queries towards all keys are a stretch of those towards all rows, which begins one row earlier for the next row.

    compact: in int8 with one scale, exact to 1 / 254 of the largest bias.
    """

    def __init__(self, bias: torch.Tensor, window: tuple[int, int], compact: bool):
        super().__init__()
        (_, ww), self.num_heads = window, bias.shape[0]
        self.window = window
        table = offset_biases(bias, window).flip(1).flatten(0, 1).contiguous()  # (h * (2wh-1), 2ww-1); rows: key minus query
        self.table = constant(table, compact)
        query, key = torch.arange(ww)[:, None], torch.arange(ww)
        offset_of_pair = nn.functional.one_hot((query - key + ww - 1).flatten(), 2 * ww - 1)
        self.register_buffer("columns", offset_of_pair.t().float().contiguous())  # (2ww-1, ww * ww)

    def forward(self) -> torch.Tensor:
        (wh, ww), h = self.window, self.num_heads
        rows = 2 * wh - 1  # of keys, from as far above a query as they can be to as far below
        by_column = self._computed(lambda table: torch.mm(table, self.columns), self.table.values)  # (h * rows, ww * ww)
        by_column = self._computed(lambda biases: biases.view(h, rows, ww, ww), by_column)  # .., column of query, of key
        by_column = self._computed(lambda biases: biases.permute(0, 2, 1, 3), by_column)
        by_column = self._computed(lambda biases: biases.reshape(h, ww, rows * ww), by_column)
        return self.table.read(self._rows(by_column, wh))

    def _rows(self, of_row: torch.Tensor, count: int) -> torch.Tensor:
        """Biases (h, count * ww, T - (count-1) * ww) of `count` rows of queries, from (h, ww, T) of one row, stored.

        A few rows are laid out in the same way and read once for each group of so many: otherwise large windows would be
        copied again with each tensor that is joined to those before.
        """
        if count == 1:
            return of_row
        ww = self.window[1]
        length = of_row.shape[-1] - (count - 1) * ww
        size = -(-count // MOST_JOINED)  # rows of a group
        group, stretches = self._rows(of_row, size), []
        for first in range(0, count, size):
            number = min(size, count - first)
            rows, start = group, (count - first - number) * ww
            if number < size:
                rows = self._computed(lambda biases, skipped=size - number: biases[:, skipped * ww :], group)
            stretches.append(self._computed(lambda biases, start=start: biases[:, :, start : start + length], rows))
        return self._computed(lambda *parts: torch.cat(parts, dim=1), *stretches)

    def _computed(self, function: Callable[..., torch.Tensor], *stored: torch.Tensor) -> torch.Tensor:
        """The outputs of a function, stored like its inputs, as the table is: where that is int8, the backend moves bytes."""
        return self.table.store(function(*map(self.table.read, stored)))


def offset_biases(bias: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """The biases (h, 2wh-1, 2ww-1) of all offsets, query minus key, from those of all pairs, (h, N, N)."""
    of_pairs = bias.unflatten(1, window).unflatten(3, window)  # (h, wh, ww, wh, ww)
    down, across = (torch.arange(1 - side, side) for side in window)
    query, key = (down.clamp(min=0), across.clamp(min=0)), ((-down).clamp(min=0), (-across).clamp(min=0))
    return of_pairs[:, query[0][:, None], query[1], key[0][:, None], key[1]]
