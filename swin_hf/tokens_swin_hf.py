"""How tokens are ordered and processed in parts for speed; none of it changes a result."""

# B batch, L tokens of a map, C channels

import torch

from .windows import is_recorded, shifted_token_order, shifted_token_places, window_partition, window_reverse

CPU_TOKENS = 2048  # that a CPU works on at a time, so that intermediate results stay in its cache
MIN_PARTS_IN_TRAINING = 6  # with fewer, adding up the gradients of the parts costs more than the cache saves


def split_for_cpu(rows: torch.Tensor, tokens_per_row: int = 1, group: int = 1) -> tuple[torch.Tensor, ...]:
    """Parts of (rows, ...) for a CPU to work on one after the other; a single part on other devices, or if there are few rows.

    A part holds whole groups of `group` rows. Training in less than float32 is not split, since the sum of the parts'
    gradients would be rounded.
    """
    if rows.device.type != "cpu" or is_recorded():
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


def cut_windows(feature_map: torch.Tensor, window: tuple[int, int], shift: tuple[int, int] | None) -> torch.Tensor:
    """The windows (B * nW, N, C) of a (B, H, W, C) map, moved by `shift`; `window` must divide H and W."""
    if shift is None:
        return window_partition(feature_map, window)
    if is_recorded():  # compilers fuse these, and know them, unlike `Reorder`
        return window_partition(feature_map.roll((-shift[0], -shift[1]), dims=(1, 2)), window)
    order, places = _orders(feature_map.shape[1:3], window, shift, feature_map.device)
    return _reorder(feature_map.flatten(1, 2), order, places).view(-1, window[0] * window[1], feature_map.shape[-1])


def join_windows(
    windows: torch.Tensor, window: tuple[int, int], shift: tuple[int, int] | None, size: tuple[int, int]
) -> torch.Tensor:
    """A map (B, H, W, C) of this (height, width) from its windows: the inverse of `cut_windows`."""
    if shift is None:
        return window_reverse(windows, window, *size)
    if is_recorded():
        return window_reverse(windows, window, *size).roll(shift, dims=(1, 2))
    order, places = _orders(size, window, shift, windows.device)
    tokens = windows.view(-1, size[0] * size[1], windows.shape[-1])
    return _reorder(tokens, places, order).unflatten(1, size)


def _orders(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    return shifted_token_order(*size, window, shift, device), shifted_token_places(*size, window, shift, device)


def _reorder(tokens: torch.Tensor, order: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return Reorder.apply(tokens, order, places) if torch.is_grad_enabled() else tokens.index_select(1, order)


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
        ctx.save_for_forward(order, places)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        order, places = ctx.saved_tensors
        return Reorder.apply(gradient, places, order), None, None

    @staticmethod
    def jvp(ctx, tangent: torch.Tensor, *_: None) -> torch.Tensor:
        order, places = ctx.saved_tensors
        return Reorder.apply(tangent, order, places)
