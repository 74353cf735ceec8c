"""Layers of the deploy form: each computes what one layer of the model does, for maps of a fixed size.

They work on (B * L, C) tokens in the order of the map. No view or permutation has more than four dimensions, the most that
phones' accelerators take (XNNPACK takes six).
"""

# B batch, H W feature map in patches, C channels, nW windows, N tokens of a window, h heads, d head width, L tokens = H * W

from dataclasses import dataclass

import torch
from torch import nn

from edge.deploy.activations import deploy_activation
from edge.deploy.constants import constant
from edge.deploy.convolutions import DeployConvDownsample, DeployConvStem, DeployLocalConv, DeployMBConv
from edge.deploy.folding import (
    Affine,
    InverseRoot,
    Rescale,
    conv,
    norm_after,
    scaled_rows,
    take_apart,
    with_affine_before,
)
from edge.deploy.position_bias import LARGEST_CONSTANT, LaidOutBias
from edge.deploy.view import InputView
from edge.deploy.window_order import WindowOrder
from swin_hf.convolutions_swin_hf import SwinHfConvDownsample, SwinHfMBConv
from swin_hf.layers_swin_hf import (
    MAX_LOGIT_SCALE,
    SwinHfAttention,
    SwinHfBlock,
    SwinHfCosineAttention,
    SwinHfEmbeddings,
    SwinHfMLP,
    SwinHfPatchMerging,
)
from swin_hf.windows import attention_mask

MASKED_SCORE = -1e4  # added to the score of a pair of tokens that may not mix: its softmax is 0, and float16 can hold it
SMALLEST_SQUARED_NORM = 1e-24  # of queries and keys in cosine attention, reached by padding, as in the model


@dataclass(frozen=True, kw_only=True)
class DeployPlan:
    """Settings that all layers of one deploy form share.

    compact: store position biases and masks as int8.
    """

    hidden_act: str
    batch_size: int
    compact: bool

    def constant(self, values: torch.Tensor) -> nn.Module:
        return constant(values, self.compact)

    def position_bias(self, bias: torch.Tensor, window: tuple[int, int]) -> nn.Module:
        """What gives a bias (h, N, N) of a window."""
        whole = constant(bias, self.compact)
        return whole if whole.values.nbytes <= LARGEST_CONSTANT else LaidOutBias(bias, window, self.compact)


class RowColumnMask(nn.Module):
    """The mask of a shifted map, (nW, 1, N, N), as the sum of a mask for each row of windows and one for each column."""

    def __init__(self, rows: nn.Module, columns: nn.Module):
        super().__init__()
        self.rows, self.columns = rows, columns  # (nW rows, 1, N, N), (1, nW columns, N, N)

    def forward(self) -> torch.Tensor:
        mask = self.rows() + self.columns()
        return mask.view(-1, 1, *mask.shape[2:])


def deploy_mask(mask: torch.Tensor, rows_of_windows: int, plan: DeployPlan) -> nn.Module:
    """What is added to the scores of pairs of tokens for a `mask` (nW, N, N) that is True where a pair may mix."""
    scores = (~mask).float() * MASKED_SCORE
    by_place = mask.unflatten(0, (rows_of_windows, -1))  # (nW rows, nW columns, N, N)
    rows, columns = by_place[:, :1], by_place[:1]
    if torch.equal(rows & columns, by_place):
        by_place = scores.unflatten(0, (rows_of_windows, -1))
        return RowColumnMask(plan.constant(by_place[:, :1].clone()), plan.constant(by_place[:1].clone()))
    return plan.constant(scores[:, None])  # with masked padding the mask is no such sum


class DeployEmbeddings(nn.Module):
    """Pixels to (B * L, C) tokens; the input normalisation is folded into the weights of the projection."""

    def __init__(self, embeddings: SwinHfEmbeddings, view: InputView):
        super().__init__()
        projection = embeddings.patch_embeddings.projection
        patch_height, patch_width = embeddings.patch_embeddings.patch_size
        mean, std = view.moments()
        self.channels_last = view.dtype == "uint8"
        self.pad_height, self.pad_width = -view.height % patch_height, -view.width % patch_width
        # The model pads normalised pixels with 0; before normalisation that is the mean.
        mean_pixel = mean.float().expand(view.batch_size, -1, -1, -1)
        self.register_buffer("pad_right", mean_pixel.expand(-1, -1, view.height, self.pad_width).contiguous())
        whole_width = view.width + self.pad_width
        self.register_buffer("pad_bottom", mean_pixel.expand(-1, -1, self.pad_height, whole_width).contiguous())
        self.grid = ((view.height + self.pad_height) // patch_height, whole_width // patch_width)

        weight, bias = projection.weight.detach().double(), projection.bias.detach().double()
        bias = bias - (weight * mean / std).sum(dim=(1, 2, 3))
        self.projection, self.norm = norm_after(conv(projection, weight / std, bias), embeddings.norm)
        positions = None
        if embeddings.position_embeddings is not None:
            positions = embeddings.positions(*self.grid).detach().flatten(1, 2)  # (1, L, C)
        self.register_buffer("positions", positions)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.channels_last:
            pixel_values = pixel_values.to(self.projection.weight.dtype).permute(0, 3, 1, 2)
        if self.pad_width:
            pixel_values = torch.cat((pixel_values, self.pad_right), dim=3)
        if self.pad_height:
            pixel_values = torch.cat((pixel_values, self.pad_bottom), dim=2)
        patches = self.projection(pixel_values)  # (B, C, H, W)
        tokens = self.norm(patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1]))
        if self.positions is None:
            return tokens
        return (tokens.view(-1, *self.positions.shape[1:]) + self.positions).view(tokens.shape)


class DeployAttention(nn.Module):
    """Attention inside windows, with the scale in the query weights and constant position bias and mask.

    Shapes with B * nW first, below, are without it for the single window of a single image.

    first: scale and shift of the incoming channels, folded into the projections of queries, keys and values.
    mask: added to the scores of an image, (nW, 1, N, N).
    """

    def __init__(
        self, attention: SwinHfAttention, first: Affine, window: tuple[int, int], mask: nn.Module | None, plan: DeployPlan
    ):
        super().__init__()
        self.head_dim, self.value_head_dim, self.batch_size = attention.head_dim, attention.value_head_dim, plan.batch_size
        self.q_proj, self.k_proj, self.v_proj = (
            with_affine_before(projection, first) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        self.o_proj = attention.o_proj
        # `contiguous` would keep the odd strides that a permutation leaves on a dimension of size one (a single head). The
        # exporter derives a wrong dimension order from them, and the program fails when it is run. A clone has none.
        bias = attention.relative_position_bias(window).detach().clone(memory_format=torch.contiguous_format)
        self.num_heads, self.N = bias.shape[1:3]
        self.bias = plan.position_bias(bias[0], window)  # (h, N, N)
        self.mask = mask

    def heads(self, projected: torch.Tensor, head_dim: int, order: tuple[int, int, int] = (1, 0, 2)) -> torch.Tensor:
        """(B * nW * N, h * d) to one matrix per window and head, (B * nW, h, N, d), or in another order of (N, h, d)."""
        return reordered(projected.view(*self.leading(projected), self.N, self.num_heads, head_dim), order)

    def leading(self, projected: torch.Tensor) -> tuple[int, ...]:
        """The sizes that a view of tokens by windows begins with: (-1,), or none for a single window."""
        return () if projected.shape[0] == self.N else (-1,)

    def queries_and_keys(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (B * nW, h, N, d) and transposed keys (B * nW, h, d, N), whose products are the scores."""
        keys = self.heads(self.k_proj(windows), self.head_dim, order=(1, 2, 0))
        return self.heads(self.q_proj(windows), self.head_dim), keys

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        query, key = self.queries_and_keys(windows)
        value = self.heads(self.v_proj(windows), self.value_head_dim)
        scores = matrix_products(query, key) + self.bias()
        if self.mask is not None:
            scores = self.masked(scores)
        context = reordered(matrix_products(scores.softmax(dim=-1), value), (1, 0, 2))
        return self.o_proj(context.reshape(windows.shape[0], -1))  # (B * nW * N, C)

    def masked(self, scores: torch.Tensor) -> torch.Tensor:
        mask = self.mask()
        if scores.ndim == 3:
            return scores + mask.view(mask.shape[1:])
        if self.batch_size == 1:
            return scores + mask
        # One mask for all images, in four dimensions.
        by_image = scores.view(self.batch_size, -1, self.num_heads, self.N * self.N)
        return (by_image + mask.view(1, -1, 1, self.N * self.N)).view(scores.shape)


def reordered(values: torch.Tensor, order: tuple[int, int, int]) -> torch.Tensor:
    """The values with their last three dimensions in another order."""
    leading = values.ndim - 3
    return values.permute(*range(leading), *(leading + dimension for dimension in order))


def matrix_products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The products of matrices, with a dimension of windows before that of heads or without; `bmm` takes three dimensions."""
    if left.ndim == 3:
        return torch.bmm(left, right)
    products = torch.bmm(left.reshape(-1, *left.shape[2:]), right.reshape(-1, *right.shape[2:]))
    return products.view(*left.shape[:2], *products.shape[1:])


class DeployDotProductAttention(DeployAttention):
    """Swin: scores are scaled products of queries and keys."""

    def __init__(self, attention: SwinHfAttention, *arguments):
        super().__init__(attention, *arguments)
        self.q_proj = scaled_rows(self.q_proj, attention.scaling)


class DeployCosineAttention(DeployAttention):
    """Swin V2: scores are cosines of queries and keys times a constant per head."""

    def __init__(self, attention: SwinHfCosineAttention, *arguments):
        super().__init__(attention, *arguments)
        scale = attention.logit_scale.detach().clamp(max=MAX_LOGIT_SCALE).exp()
        self.register_buffer("scale", scale.view(-1, 1, 1))
        self.register_buffer("sum_column", torch.ones(self.head_dim, 1))
        self.inverse_root, self.smallest_squared_norm = InverseRoot(), SMALLEST_SQUARED_NORM

    def inverse_norm(self, heads: torch.Tensor) -> torch.Tensor:
        """1 / norm of (B * nW, h, N, d) vectors, (B * nW, h, N, 1)."""
        squares = (heads * heads).reshape(-1, self.head_dim)
        squared_norm = torch.mm(squares, self.sum_column).view(*heads.shape[:-1], 1)
        return self.inverse_root(torch.clamp(squared_norm, min=self.smallest_squared_norm))

    def queries_and_keys(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key = (self.heads(projection(windows), self.head_dim) for projection in (self.q_proj, self.k_proj))
        query = query * (self.inverse_norm(query) * self.scale)
        return query, reordered(key * self.inverse_norm(key), (0, 2, 1))


class DeployMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, mlp: SwinHfMLP, hidden_act: str):
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2
        self.activation = deploy_activation(hidden_act, mlp.activation_fn)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(tokens)))


class DeployBlock(nn.Module):
    """One Swin block, normalised before each branch, on the tokens of a map of a fixed size."""

    def __init__(self, block: SwinHfBlock, height: int, width: int, plan: DeployPlan):
        super().__init__()
        window, shift = block.fit_window(height, width)
        self.order = WindowOrder(height, width, window, shift)
        padded = bool(self.order.pad_height or self.order.pad_width)
        mask = None
        if shift or (block.mask_padding and padded):
            may_mix = attention_mask((height, width), window, shift, block.mask_padding)
            mask = deploy_mask(may_mix, (height + self.order.pad_height) // window[0], plan)
        self._fill(block, padded, plan, (window, mask, plan))
        self.pads_first = block.pads_first
        self.local_conv = nn.Identity() if block.local_conv is None else DeployLocalConv(block.local_conv, height, width)

    def _fill(self, block: SwinHfBlock, padded: bool, plan: DeployPlan, attention_arguments: tuple) -> None:
        self.norm_before, affine = take_apart(block.layernorm_before)
        if padded and not block.pads_first:
            # Padding is added after scale and shift, which therefore cannot be folded into the projections.
            self.norm_before = nn.Sequential(self.norm_before, Rescale(affine))
            affine = Affine.identity(len(affine.scale))
        self.attention = DeployDotProductAttention(block.attention, affine, *attention_arguments)
        self.norm_after, affine = take_apart(block.layernorm_after)
        self.mlp = DeployMLP(block.mlp, plan.hidden_act)
        self.mlp.fc1 = with_affine_before(self.mlp.fc1, affine)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.local_conv(tokens + self.order.reverse(self.attention(self.windows(tokens))))
        return tokens + self.mlp(self.norm_after(tokens))

    def windows(self, tokens: torch.Tensor) -> torch.Tensor:
        """Normalised tokens in the order of the windows."""
        if self.pads_first:
            return self.norm_before(self.order.partition(tokens))
        return self.order.partition(self.norm_before(tokens))


class DeployPostNormBlock(DeployBlock):
    """One Swin V2 block, normalised after each branch."""

    def _fill(self, block: SwinHfBlock, padded: bool, plan: DeployPlan, attention_arguments: tuple) -> None:
        identity = Affine.identity(block.attention.o_proj.out_features)
        self.attention = DeployCosineAttention(block.attention, identity, *attention_arguments)
        self.attention.o_proj, self.norm_before = norm_after(self.attention.o_proj, block.layernorm_before)
        self.mlp = DeployMLP(block.mlp, plan.hidden_act)
        self.mlp.fc2, self.norm_after = norm_after(self.mlp.fc2, block.layernorm_after)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        attended = self.attention(self.order.partition(tokens))
        tokens = self.local_conv(tokens + self.norm_before(self.order.reverse(attended)))
        return tokens + self.norm_after(self.mlp(tokens))


class DeployPatchMerging(nn.Module):
    """Patch merging on the tokens of a map of a fixed size."""

    def __init__(self, merging: SwinHfPatchMerging, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width
        if merging.post_norm:
            self.norm_before = nn.Identity()
            self.reduction, self.norm_after = norm_after(merging.reduction, merging.norm)
        else:
            self.norm_before, affine = take_apart(merging.norm)
            self.reduction, self.norm_after = with_affine_before(merging.reduction, affine), nn.Identity()
        self._reorder_groups()

    def _reorder_groups(self) -> None:
        """The model joins the four tokens of a group column by column; row by row, four dimensions suffice."""
        weight = self.reduction.weight
        weight.data = weight.data.view(weight.shape[0], 2, 2, -1).transpose(1, 2).reshape(weight.shape)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        C = tokens.shape[1]
        H, W = self.height + self.height % 2, self.width + self.width % 2
        if (self.height, self.width) != (H, W):
            feature_map = tokens.view(-1, self.height, self.width, C)
            tokens = nn.functional.pad(feature_map, (0, 0, 0, W - self.width, 0, H - self.height))
        groups = tokens.reshape(-1, 2, W // 2, 2 * C).permute(0, 2, 1, 3)  # (B * H/2, W/2, row, column * C)
        return self.norm_after(self.reduction(self.norm_before(groups.reshape(-1, 4 * C))))


def deploy_embeddings(embeddings: SwinHfEmbeddings, view: InputView, plan: DeployPlan) -> DeployEmbeddings | DeployConvStem:
    """The deploy form of the stem of either kind."""
    if embeddings.norm is None:
        return DeployConvStem(embeddings, view, plan.hidden_act)
    return DeployEmbeddings(embeddings, view)


def deploy_block(block: SwinHfBlock | SwinHfMBConv, height: int, width: int, plan: DeployPlan) -> DeployBlock | DeployMBConv:
    """The deploy form of a block of any kind."""
    if isinstance(block, SwinHfMBConv):
        return DeployMBConv(block, plan.hidden_act)
    kind = DeployPostNormBlock if block.post_norm else DeployBlock
    return kind(block, height, width, plan)


def deploy_downsample(
    downsample: SwinHfPatchMerging | SwinHfConvDownsample, height: int, width: int, plan: DeployPlan
) -> DeployPatchMerging | DeployConvDownsample:
    """The deploy form of a downsampling of either kind."""
    if isinstance(downsample, SwinHfConvDownsample):
        return DeployConvDownsample(downsample, plan.hidden_act)
    return DeployPatchMerging(downsample, height, width)
