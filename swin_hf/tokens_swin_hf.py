"""How tokens are ordered and processed in parts for speed; none of it changes a result."""

# B batch, L tokens of a map, C channels

import torch

CPU_TOKENS = 2048  # that a CPU works on at a time, so that intermediate results stay in its cache
MIN_PARTS_IN_TRAINING = 6  # with fewer, adding up the gradients of the parts costs more than the cache saves


def split_for_cpu(rows: torch.Tensor, tokens_per_row: int = 1, group: int = 1) -> tuple[torch.Tensor, ...]:
    """Parts of (rows, ...) for a CPU to work on one after the other; a single part on other devices, or if there are few rows.

    A part holds whole groups of `group` rows. Training in less than float32 is not split, since the sum of the parts'
    gradients would be rounded.
    """
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return (rows,)
    if torch.is_grad_enabled() and (rows.dtype != torch.float32 or torch.is_autocast_enabled("cpu")):
        return (rows,)
    num_groups = len(rows) // group
    num_parts = len(rows) * tokens_per_row // CPU_TOKENS
    if num_parts < (MIN_PARTS_IN_TRAINING if torch.is_grad_enabled() else 2):
        return (rows,)
    return rows.split(-(-num_groups // num_parts) * group)


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    """Join what was computed from the parts of `split_for_cpu`."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Reorder(torch.autograd.Function):
    """Tokens (B, L, C) in another order; unlike the gradient of indexing, its gradient is a reordering too.

    order: (L,), the token for each place. places: (L,), its inverse.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: torch.Tensor, order: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return tokens.index_select(1, order)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, order, places = inputs
        ctx.save_for_backward(order, places)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        order, places = ctx.saved_tensors
        return Reorder.apply(gradient, places, order), None, None
