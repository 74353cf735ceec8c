"""How tokens are laid out and worked on for speed; none of it changes a result."""

# B batch, L tokens of a map, C channels

import torch

CPU_TOKENS = 2048  # that a CPU works on at a time: what their layers compute in between then stays in its cache
MIN_PARTS_IN_TRAINING = 6  # with fewer the sums of the parts' gradients cost more than that saves


def split_for_cpu(rows: torch.Tensor, tokens_per_row: int = 1, group: int = 1) -> tuple[torch.Tensor, ...]:
    """Parts of (rows, ...) that a CPU had better work on one after the other; on other devices, and of little, one part.

    A part holds whole groups of `group` rows. A training in less than float32 is not split, since it would round the sum
    of the parts' gradients.
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
    """What was computed from the parts of `split_for_cpu`, in one piece."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Reorder(torch.autograd.Function):
    """Tokens (B, L, C) in another order; unlike that of indexing, its gradient is a reordering too.

    order: (L,) the token that each place gets. places: (L,) its inverse.
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
