"""Layers of the Swin Transformers: V1 (Liu et al. 2021, arXiv:2103.14030) and V2 (Liu et al. 2022, arXiv:2111.09883).

All of them work on (B, H, W, C) feature maps, keep no state between calls, and derive windows from the size of the map.
"""

# B batch, H W feature map in patches, C channels, nW windows, N tokens of a window, h heads, d head width

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_swin_hf import SwinHfConfig
from .convolutions_swin_hf import SwinHfConvDownsample, SwinHfConvStem, SwinHfLocalConv, SwinHfMBConv
from .resizing_swin_hf import resize_position_embeddings
from .tokens_swin_hf import cut_windows, join, join_windows, split_for_cpu
from .training_layers_swin_hf import SwinHfCheckpointedLayer, SwinHfDropPath, drop_path_rate
from .windows import attention_mask, fit_window, log_spaced_offsets, pad_map, relative_position_index

MAX_LOGIT_SCALE = math.log(100.0)  # cosine attention divides by a temperature of at least 0.01 (V2, section 3.3)
POSITION_NETWORK_DIM = 512  # hidden channels of V2's position network, in the authors' code
MIN_NORM = 1e-12  # of queries and keys in cosine attention, as in torch.nn.functional.normalize
MAX_POSITION_BIAS = 16.0  # the position network's output goes through 16 * sigmoid, in the authors' code


def make_norm(config: SwinHfConfig, dim: int, eps: float = 1e-5) -> nn.Module:
    """The norm that the config asks for, to be called through `apply_norm`."""
    norms = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "batch": nn.BatchNorm1d}
    return norms[config.norm](dim, eps=eps)


def apply_norm(norm: nn.Module, hidden_states: torch.Tensor, kind: str) -> torch.Tensor:
    """Normalise (..., C) tokens; batch normalisation ("batch") is over all of them.

    The norm may be what others made of ours, a SyncBatchNorm for instance.
    """
    if kind != "batch":
        return norm(hidden_states)
    return norm(hidden_states.flatten(0, -2)).reshape(hidden_states.shape)


class SwinHfPatchEmbeddings(nn.Module):
    """Cut the image into patches, padding it on the right and bottom to whole patches, and project each to C channels."""

    def __init__(self, config: SwinHfConfig):
        super().__init__()
        self.patch_size = config.patch_height_width
        self.projection = nn.Conv2d(config.num_channels, config.embed_dim, self.patch_size, stride=self.patch_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        padded = pad_map(pixel_values, self.patch_size, channels_first=True)
        return self.projection(padded).permute(0, 2, 3, 1)  # (B, H, W, C)


class SwinHfEmbeddings(nn.Module):
    """Tokens of an image: patch embeddings, normalised, or those of a convolutional stem, which has norms of its own.

    With a token for masked patches and absolute positions if they are asked for. From a convolutional stem, which sees pixels
    of neighbouring patches, the pixels of masked ones are hidden too: they become 0, the mean.
    """

    def __init__(self, config: SwinHfConfig, use_mask_token: bool = False):
        super().__init__()
        self.num_channels, self.patch_size = config.num_channels, config.patch_height_width
        self.patch_embeddings = SwinHfConvStem(config) if config.stem == "conv" else SwinHfPatchEmbeddings(config)
        # With PyTorch's default eps, as in every Swin implementation.
        self.norm = make_norm(config, config.embed_dim) if config.stem == "patch" else None
        self.norm_kind = config.norm
        self.grid = config.grid
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim)) if use_mask_token else None
        self.position_embeddings = None
        if config.use_absolute_embeddings:
            self.position_embeddings = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], config.embed_dim))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def positions(self, height: int, width: int) -> torch.Tensor:
        """Position embeddings (1, H, W, C) for a (height, width) grid, interpolated if it is not the trained one."""
        positions = resize_position_embeddings(self.position_embeddings, self.grid, (height, width))
        return positions.view(1, height, width, -1)

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values must have shape (batch, {self.num_channels}, height, width), got {tuple(pixel_values.shape)}"
            )
        masked = None if bool_masked_pos is None else self.masked_patches(bool_masked_pos, pixel_values)
        if masked is not None and self.norm is None:
            pixel_values = pixel_values.masked_fill(pixels_of_patches(masked, self.patch_size, pixel_values.shape[2:]), 0.0)
        feature_map = self.patch_embeddings(pixel_values)
        if self.norm is not None:
            feature_map = apply_norm(self.norm, feature_map, self.norm_kind)
        if masked is not None:
            feature_map = torch.where(masked, self.mask_token.to(feature_map.dtype), feature_map)
        if self.position_embeddings is not None:
            feature_map = feature_map + self.positions(*feature_map.shape[1:3])
        return self.dropout(feature_map)

    def masked_patches(self, bool_masked_pos: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """`bool_masked_pos` (B, H * W) or (B, H, W), for the patches of an image, as a (B, H, W, 1) map."""
        B, (height, width) = pixel_values.shape[0], pixel_values.shape[2:]
        H, W = -(-height // self.patch_size[0]), -(-width // self.patch_size[1])
        if self.mask_token is None:
            raise ValueError("bool_masked_pos needs a model made with use_mask_token=True")
        if bool_masked_pos.shape[0] != B or bool_masked_pos.numel() != B * H * W:
            raise ValueError(
                f"bool_masked_pos must have shape ({B}, {H * W}) for {H} x {W} patches, got {tuple(bool_masked_pos.shape)}"
            )
        return bool_masked_pos.bool().view(B, H, W, 1)


def pixels_of_patches(masked: torch.Tensor, patch_size: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """A map of patches (B, H, W, 1) as one of pixels, (B, 1, height, width), for images of this size."""
    pixels = masked.permute(0, 3, 1, 2).repeat_interleave(patch_size[0], 2).repeat_interleave(patch_size[1], 3)
    return pixels[:, :, : size[0], : size[1]]


def bias_of_pairs(table: torch.Tensor, window: tuple[int, int], table_window: tuple[int, int]) -> torch.Tensor:
    """Biases (1, h, N, N) of all token pairs of `window`, from a table ((2wh-1) * (2ww-1), h) for `table_window`."""
    N = window[0] * window[1]
    index = relative_position_index(window, table_window, table.device)
    return table.t().index_select(1, index).view(1, -1, N, N)


class SwinHfRelativePositionBias(nn.Module):
    """V1: a learned bias for every offset between two tokens of a window, one per head (section 3.2, equation 4)."""

    def __init__(self, num_heads: int, window: tuple[int, int]):
        super().__init__()
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window[0] - 1) * (2 * window[1] - 1), num_heads))

    def forward(self, window: tuple[int, int], like: torch.Tensor | None = None) -> torch.Tensor:
        """Bias of a window of this size, at most the configured one, (1, h, N, N)."""
        return bias_of_pairs(self.relative_position_bias_table, window, self.window)


class SwinHfContinuousPositionBias(nn.Module):
    """V2: the bias of an offset is a small network's output for its log-spaced coordinates (section 3.2, equation 4).

    unit_window: the window whose span is the unit of the coordinates: the one the network was trained with.
    """

    def __init__(self, num_heads: int, window: tuple[int, int], unit_window: tuple[int, int]):
        super().__init__()
        self.window, self.unit_window = window, unit_window
        self.continuous_position_bias_mlp = nn.Sequential(
            nn.Linear(2, POSITION_NETWORK_DIM), nn.ReLU(), nn.Linear(POSITION_NETWORK_DIM, num_heads, bias=False)
        )

    def forward(self, window: tuple[int, int], like: torch.Tensor | None = None) -> torch.Tensor:
        """Bias of a window of this size, at most the configured one, (1, h, N, N), on the device and in the type of `like`.

        Without `like` in float32 on the CPU.
        """
        like = torch.empty(0) if like is None else like
        offsets = log_spaced_offsets(window, self.unit_window, like.device)
        table = MAX_POSITION_BIAS * torch.sigmoid(self.continuous_position_bias_mlp(offsets.to(like.dtype)))
        return bias_of_pairs(table, window, window)


def make_position_bias(config: SwinHfConfig, stage: int, num_heads: int) -> nn.Module:
    """The position bias of the config's version."""
    window = config.stage_window(stage)
    if config.version == 2:
        return SwinHfContinuousPositionBias(num_heads, window, config.pretrained_window(stage))
    return SwinHfRelativePositionBias(num_heads, window)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float,
    position_bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain matrix products: queries, keys and values (B * nW, h, N, d) to (B * nW, N, h, d) and weights.

    position_bias: (1 or nW, h, N, N).
    """
    scores = query * scaling @ key.transpose(2, 3)
    scores.unflatten(0, (-1, position_bias.shape[0])).add_(position_bias)  # in place: no backward needs the products
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SwinHfAttention(nn.Module):
    """Multi-head self-attention inside windows, with a bias for the relative position."""

    def __init__(self, config: SwinHfConfig, stage: int, block: int):
        super().__init__()
        dim, widths = config.stage_dim(stage), config.block_widths(stage, block)
        self.config = config
        self.head_dim, self.value_head_dim = widths.head_dim, widths.value_head_dim
        self.scaling = widths.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(dim, widths.num_heads * widths.head_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(dim, widths.num_heads * widths.head_dim, bias=config.qkv_bias and config.version == 1)
        self.v_proj = nn.Linear(dim, widths.num_heads * widths.value_head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(widths.num_heads * widths.value_head_dim, dim)
        self.relative_position_bias = make_position_bias(config, stage, widths.num_heads)

    def scaled(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Queries and keys, and the factor that turns their products into scores."""
        return query, key, self.scaling

    def forward(
        self, windows: torch.Tensor, window: tuple[int, int], mask: torch.Tensor | None, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend inside each of the (B * nW, N, C) windows; `mask` (nW, N, N) is True where a pair may mix."""
        bias = self.relative_position_bias(window, windows)  # (1, h, N, N)
        if mask is not None:
            bias = torch.where(mask[:, None], bias, -math.inf)  # (nW, h, N, N)
        if output_attentions:
            return self.attend(windows, bias, eager_attention_forward)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        on_cpu_with_gradient = bias.requires_grad and bias.device.type == "cpu"
        if self.config._attn_implementation == "sdpa" and on_cpu_with_gradient and not torch.jit.is_tracing():
            attention = eager_attention_forward  # on a CPU PyTorch has no fused kernel with a gradient for the bias
        parts = split_for_cpu(windows, windows.shape[1], bias.shape[0])
        return join([self.attend(part, bias, attention)[0] for part in parts]), None

    def attend(
        self, windows: torch.Tensor, bias: torch.Tensor, attention: Callable
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention with one of the backends, with a bias (1 or nW, h, N, N)."""
        total_windows, N, _ = windows.shape
        query = self.q_proj(windows).view(total_windows, N, -1, self.head_dim).transpose(1, 2)  # (B * nW, h, N, d)
        key = self.k_proj(windows).view(total_windows, N, -1, self.head_dim).transpose(1, 2)
        value = self.v_proj(windows).view(total_windows, N, -1, self.value_head_dim).transpose(1, 2)
        query, key, scaling = self.scaled(query, key)
        if attention is not eager_attention_forward and 1 < bias.shape[0] < total_windows:
            bias = bias.expand(total_windows // bias.shape[0], -1, -1, -1, -1).flatten(0, 1)  # (B * nW, h, N, N)
        if self.config._attn_implementation == "flex_attention":
            bias = bias.expand(total_windows, -1, -1, -1)  # a view, since it looks biases up by window
        dropout = self.dropout if self.training else 0.0
        # As a bias, not as a mask: transformers' flex_attention takes a mask for one that all heads share.
        context, weights = attention(
            self, query, key, value, None, scaling=scaling, dropout=dropout, position_bias=bias.to(query.dtype)
        )
        return self.o_proj(context.reshape(total_windows, N, -1)), weights


def inverse_norm(heads: torch.Tensor) -> torch.Tensor:
    """1 / norm of (..., d) vectors; 1 for those of length 0, the keys of padding.

    `torch.nn.functional.normalize` divides them by 1e-12, and in half precision their gradients overflow.
    """
    norm = torch.linalg.vector_norm(heads, dim=-1, keepdim=True)
    if norm.dtype == torch.float16:
        norm = norm.float()  # the inverse of a short vector's norm is more than float16 can hold
    return norm.masked_fill(norm <= MIN_NORM, 1.0).reciprocal()


class SwinHfCosineAttention(SwinHfAttention):
    """V2: scores are cosines of queries and keys times a learned scale of each head (section 3.3, equation 2)."""

    def __init__(self, config: SwinHfConfig, stage: int, block: int):
        super().__init__(config, stage, block)
        num_heads = config.block_widths(stage, block).num_heads
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))

    def scaled(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        scaled_query = query * (scale * inverse_norm(query))
        return scaled_query.to(query.dtype), (key * inverse_norm(key)).to(key.dtype), 1.0


class SwinHfMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: SwinHfConfig, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        parts = split_for_cpu(hidden_states.flatten(0, -2))
        transformed = join([self.fc2(self.activation_fn(self.fc1(part))) for part in parts])
        return transformed.view(*hidden_states.shape[:-1], -1)


class SwinHfBlock(SwinHfCheckpointedLayer):
    """Window attention and an MLP, each added to its input; normalised before (V1, figure 3b) or after (V2, figure 1).

    Between them a depthwise convolution, if the config asks for one.
    """

    def __init__(self, config: SwinHfConfig, stage: int, block: int):
        super().__init__()
        dim = config.stage_dim(stage)
        self.window = config.stage_window(stage)
        self.shifted = config.is_shifted(stage, block)
        self.mask_padding, self.pads_first = config.mask_padding, config.padding == "tiny_vit"
        self.post_norm, self.norm_kind = config.version == 2, config.norm
        self.layernorm_before = make_norm(config, dim, config.layer_norm_eps)
        self.attention = (SwinHfCosineAttention if config.version == 2 else SwinHfAttention)(config, stage, block)
        self.local_conv = SwinHfLocalConv(dim, config.local_conv) if config.local_conv else None
        self.layernorm_after = make_norm(config, dim, config.layer_norm_eps)
        self.mlp = SwinHfMLP(config, dim, config.block_widths(stage, block).mlp_dim)
        for end in (self.layernorm_before, self.layernorm_after) if self.post_norm else (self.attention.o_proj, self.mlp.fc2):
            end.starts_at_zero = config.zero_init_residual
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = SwinHfDropPath(drop_path_rate(config, stage, block))

    def forward(self, feature_map: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.post_norm:
            attended, weights = self.attend(feature_map, output_attentions)
            feature_map = feature_map + self.drop_path(self.normalise(self.layernorm_before, self.dropout(attended)))
            feature_map = self.mix_locally(feature_map)
            transformed = self.normalise(self.layernorm_after, self.dropout(self.mlp(feature_map)))
            return feature_map + self.drop_path(transformed), weights
        attended, weights = self.attend(feature_map, output_attentions)
        feature_map = self.mix_locally(feature_map + self.drop_path(self.dropout(attended)))
        transformed = self.dropout(self.mlp(self.normalise(self.layernorm_after, feature_map)))
        return feature_map + self.drop_path(transformed), weights

    def normalise(self, norm: nn.Module, feature_map: torch.Tensor) -> torch.Tensor:
        return apply_norm(norm, feature_map, self.norm_kind)

    def mix_locally(self, feature_map: torch.Tensor) -> torch.Tensor:
        return feature_map if self.local_conv is None else self.local_conv(feature_map)

    def fit_window(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int] | None]:
        """Window and shift for a map of this size."""
        window, shift = fit_window(height, width, self.window, self.shifted)
        return (self.window if self.pads_first else window), shift

    def attend(self, feature_map: torch.Tensor, output_attentions: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention in (shifted) windows over a (B, H, W, C) map, which is padded to whole windows in between.

        In V1 of the normalised map.
        """
        _, H, W, _ = feature_map.shape
        window, shift = self.fit_window(H, W)
        if not (self.post_norm or self.pads_first):
            feature_map = self.normalise(self.layernorm_before, feature_map)
        padded = pad_map(feature_map, window)
        is_padded, mask = padded is not feature_map, None
        if self.pads_first:
            padded = self.normalise(self.layernorm_before, padded)
        if shift or (is_padded and self.mask_padding):
            mask = attention_mask((H, W), window, shift, self.mask_padding, feature_map.device)
        windows, weights = self.attention(cut_windows(padded, window, shift), window, mask, output_attentions)
        attended = join_windows(windows, window, shift, padded.shape[1:3])
        return (attended[:, :H, :W] if is_padded else attended), weights


class SwinHfPatchMerging(nn.Module):
    """Join each 2 x 2 group of tokens into one of more channels (section 3.1), padding odd maps.

    Normalised before the projection in V1, after it in V2.
    """

    def __init__(self, config: SwinHfConfig, stage: int):
        super().__init__()
        dim, out_dim = config.stage_dim(stage), config.stage_dim(stage + 1)
        self.post_norm, self.norm_kind = config.version == 2, config.norm
        self.norm = make_norm(config, out_dim if self.post_norm else 4 * dim)  # with PyTorch's default eps, as everywhere
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        feature_map = pad_map(feature_map, (2, 2))
        B, H, W, C = feature_map.shape
        groups = feature_map.reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5)  # (.., column, row, C)
        groups = groups.flatten(3)  # (B, H/2, W/2, 4C)
        if self.post_norm:
            return apply_norm(self.norm, self.reduction(groups), self.norm_kind)
        return self.reduction(apply_norm(self.norm, groups, self.norm_kind))


def make_block(config: SwinHfConfig, stage: int, block: int) -> SwinHfBlock | SwinHfMBConv:
    """A block of the kind that the config asks for in this stage."""
    if config.is_convolutional(stage):
        return SwinHfMBConv(config, stage, block)
    return SwinHfBlock(config, stage, block)


class SwinHfStage(nn.Module):
    """Blocks at one resolution, then the downsampling if there is a next stage.

    Blocks with windows are plain and shifted in turn.
    """

    def __init__(self, config: SwinHfConfig, stage: int, downsample: bool):
        super().__init__()
        self.blocks = nn.ModuleList(make_block(config, stage, block) for block in range(config.depths[stage]))
        kind = SwinHfConvDownsample if config.downsample == "conv" else SwinHfPatchMerging
        self.downsample = kind(config, stage) if downsample else None

    def forward(
        self, feature_map: torch.Tensor, output_attentions: bool = False, output_block_maps: bool = False
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """The map for the next stage, the maps after every block or only the last, and attention weights if asked for.

        Convolutional blocks have no attention weights.
        """
        block_maps, attentions = [], []
        for block in self.blocks:
            feature_map, weights = block(feature_map, output_attentions)
            block_maps = [*block_maps, feature_map] if output_block_maps else [feature_map]
            if weights is not None:
                attentions.append(weights)
        return feature_map if self.downsample is None else self.downsample(feature_map), block_maps, attentions
