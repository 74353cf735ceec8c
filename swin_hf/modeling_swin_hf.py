"""Swin Transformer models (Liu et al. 2021, arXiv:2103.14030) for the Hugging Face `from_pretrained` world."""

# B batch, H W feature map in patches, C channels, nW windows, N tokens of a window, h heads, d head width, K classes

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple

from .configuration_swin_hf import BlockWidths, SwinHfConfig
from .windows import fit_window, relative_position_index, shifted_window_mask, window_partition, window_reverse

MASKED_SCORE = -100.0  # what a pair of tokens that may not mix gets added to its score, as in the original code


@dataclass
class SwinHfModelOutput(ModelOutput):
    """Output of `SwinHfModel`.

    last_hidden_state: (B, H * W, C) normalised tokens of the last stage.
    pooler_output: (B, C), their mean.
    hidden_states: with `output_hidden_states`, the embeddings and the output of each stage after its downsampling,
        each (B, H * W, C).
    reshaped_hidden_states: the same as (B, C, H, W) maps.
    attentions: with `output_attentions`, for every block the probabilities (B * nW, h, N, N).
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    reshaped_hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class SwinHfImageClassifierOutput(ModelOutput):
    """Output of `SwinHfForImageClassification`.

    loss: scalar, with labels.
    logits: (B, K).
    hidden_states, reshaped_hidden_states, attentions: as in `SwinHfModelOutput`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    reshaped_hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class SwinHfDropPath(nn.Module):
    """Stochastic depth per sample (Huang et al. 2016, arXiv:1603.09382): identity outside training."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1.0 - self.drop_prob
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        return hidden_states * hidden_states.new_empty(shape).bernoulli_(keep_prob).div_(keep_prob)


class SwinHfPatchEmbeddings(nn.Module):
    """Cut the image into patches, padding it on the right and bottom to whole patches, and project each to C channels."""

    def __init__(self, config: SwinHfConfig):
        super().__init__()
        self.patch_size = config.patch_height_width
        self.projection = nn.Conv2d(config.num_channels, config.embed_dim, self.patch_size, stride=self.patch_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        expected = self.projection.in_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != expected:
            raise ValueError(
                f"pixel_values must have shape (batch, {expected}, height, width), got {tuple(pixel_values.shape)}"
            )
        pad_height, pad_width = (-size % patch for size, patch in zip(pixel_values.shape[2:], self.patch_size))
        if pad_height or pad_width:
            pixel_values = nn.functional.pad(pixel_values, (0, pad_width, 0, pad_height))
        return self.projection(pixel_values).permute(0, 2, 3, 1)  # (B, H, W, C)


class SwinHfEmbeddings(nn.Module):
    """Patch embeddings, normalised, plus absolute position embeddings where the config wants them."""

    def __init__(self, config: SwinHfConfig):
        super().__init__()
        self.patch_embeddings = SwinHfPatchEmbeddings(config)
        self.norm = nn.LayerNorm(config.embed_dim)  # with PyTorch's default eps, as in every Swin implementation
        self.grid = tuple(size // patch for size, patch in zip(config.image_height_width, config.patch_height_width))
        self.position_embeddings = None
        if config.use_absolute_embeddings:
            self.position_embeddings = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], config.embed_dim))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def positions(self, height: int, width: int) -> torch.Tensor:
        """Position embeddings for a (height, width) grid, (1, H, W, C): interpolated where it is not the trained one."""
        positions = self.position_embeddings.view(1, *self.grid, -1)
        if (height, width) == self.grid:
            return positions
        positions = nn.functional.interpolate(positions.permute(0, 3, 1, 2), size=(height, width), mode="bicubic")
        return positions.permute(0, 2, 3, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        feature_map = self.norm(self.patch_embeddings(pixel_values))
        if self.position_embeddings is not None:
            feature_map = feature_map + self.positions(*feature_map.shape[1:3])
        return self.dropout(feature_map)


class SwinHfRelativePositionBias(nn.Module):
    """A learned bias for every offset between two tokens of a window, one per head (section 3.2, equation 4)."""

    def __init__(self, num_heads: int, window_size: int):
        super().__init__()
        self.window = (window_size, window_size)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(self.window, self.window), persistent=False)

    def forward(self, window: tuple[int, int]) -> torch.Tensor:
        """Bias of a window of this size, at most the configured one, (1, h, N, N)."""
        index = self.relative_position_index
        if window != self.window:
            index = relative_position_index(window, self.window).to(index.device)
        N = window[0] * window[1]
        return self.relative_position_bias_table[index].view(N, N, -1).permute(2, 0, 1).unsqueeze(0)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain matrix products: queries, keys and values (B * nW, h, N, d) to (B * nW, N, h, d) and weights."""
    weights = query @ key.transpose(2, 3) * scaling + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SwinHfAttention(nn.Module):
    """Multi-head self-attention inside windows, with a relative position bias."""

    def __init__(self, config: SwinHfConfig, dim: int, widths: BlockWidths):
        super().__init__()
        self.config = config
        self.head_dim = widths.head_dim
        self.scaling = widths.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        inner_dim = widths.num_heads * widths.head_dim
        self.q_proj = nn.Linear(dim, inner_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(dim, inner_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(dim, inner_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner_dim, dim)
        self.relative_position_bias = SwinHfRelativePositionBias(widths.num_heads, config.window_size)

    def forward(
        self, windows: torch.Tensor, window: tuple[int, int], mask: torch.Tensor | None, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend inside each of the (B * nW, N, C) windows; `mask` (nW, N, N) is True where a pair may mix."""
        total_windows, N, _ = windows.shape
        query, key, value = (
            projection(windows).view(total_windows, N, -1, self.head_dim).transpose(1, 2)  # (B * nW, h, N, d)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = self.relative_position_bias(window).to(query.dtype)  # (1, h, N, N)
        if mask is not None:
            penalty = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, MASKED_SCORE)
            bias = bias + penalty[:, None]  # (nW, h, N, N)
            bias = bias.expand(total_windows // mask.shape[0], -1, -1, -1, -1).flatten(0, 1)  # (B * nW, h, N, N)

        attention: Callable = eager_attention_forward
        if not output_attentions:
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, attention)
        dropout = self.dropout if self.training else 0.0
        context, weights = attention(self, query, key, value, bias, scaling=self.scaling, dropout=dropout)
        return self.o_proj(context.reshape(total_windows, N, -1)), weights


class SwinHfMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: SwinHfConfig, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class SwinHfBlock(GradientCheckpointingLayer):
    """Window attention and an MLP, each normalised first and added to its input (figure 3b)."""

    def __init__(self, config: SwinHfConfig, dim: int, widths: BlockWidths, shift_size: int, drop_path: float):
        super().__init__()
        self.window_size = config.window_size
        self.shift_size = shift_size
        self.layernorm_before = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = SwinHfAttention(config, dim, widths)
        self.layernorm_after = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = SwinHfMLP(config, dim, widths.mlp_dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = SwinHfDropPath(drop_path)

    def forward(self, feature_map: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.attend(self.layernorm_before(feature_map), output_attentions)
        feature_map = feature_map + self.drop_path(self.dropout(attended))
        transformed = self.mlp(self.layernorm_after(feature_map))
        return feature_map + self.drop_path(self.dropout(transformed)), weights

    def attend(self, feature_map: torch.Tensor, output_attentions: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention in (shifted) windows over a (B, H, W, C) map, which is padded to whole windows in between."""
        _, H, W, _ = feature_map.shape
        window, shift = fit_window(H, W, self.window_size, self.shift_size)
        padded_height, padded_width = H + -H % window[0], W + -W % window[1]
        if (padded_height, padded_width) != (H, W):
            feature_map = nn.functional.pad(feature_map, (0, 0, 0, padded_width - W, 0, padded_height - H))

        mask = None
        if shift:
            feature_map = torch.roll(feature_map, shifts=(-shift, -shift), dims=(1, 2))
            mask = shifted_window_mask(padded_height, padded_width, window, shift, device=feature_map.device)
        windows, weights = self.attention(window_partition(feature_map, window), window, mask, output_attentions)
        feature_map = window_reverse(windows, window, padded_height, padded_width)
        if shift:
            feature_map = torch.roll(feature_map, shifts=(shift, shift), dims=(1, 2))
        return feature_map[:, :H, :W], weights


class SwinHfPatchMerging(nn.Module):
    """Join each 2 x 2 group of tokens into one of twice the channels (section 3.1), padding odd maps."""

    def __init__(self, config: SwinHfConfig, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)  # with PyTorch's default eps, as in every Swin implementation
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        B, H, W, C = feature_map.shape
        if H % 2 or W % 2:
            feature_map = nn.functional.pad(feature_map, (0, 0, 0, W % 2, 0, H % 2))
            H, W = H + H % 2, W + W % 2
        groups = feature_map.reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5)  # (.., column, row, C)
        return self.reduction(self.norm(groups.flatten(3)))  # (B, H/2, W/2, 4C) to (B, H/2, W/2, 2C)


class SwinHfStage(nn.Module):
    """Blocks at one resolution, plain and shifted in turn, then patch merging except after the last stage."""

    def __init__(self, config: SwinHfConfig, stage: int):
        super().__init__()
        dim, first_block = config.stage_dim(stage), sum(config.depths[:stage])
        last_index = max(sum(config.depths) - 1, 1)
        self.blocks = nn.ModuleList(
            SwinHfBlock(
                config,
                dim,
                config.block_widths(stage, block),
                shift_size=config.window_size // 2 if block % 2 else 0,
                drop_path=config.drop_path_rate * (first_block + block) / last_index,
            )
            for block in range(config.depths[stage])
        )
        self.downsample = SwinHfPatchMerging(config, dim) if stage < len(config.depths) - 1 else None

    def forward(self, feature_map: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
        attentions = []
        for block in self.blocks:
            feature_map, weights = block(feature_map, output_attentions)
            if output_attentions:
                attentions.append(weights)
        return feature_map if self.downsample is None else self.downsample(feature_map), attentions


class SwinHfEncoder(nn.Module):
    """All stages in a row."""

    def __init__(self, config: SwinHfConfig):
        super().__init__()
        self.layers = nn.ModuleList(SwinHfStage(config, stage) for stage in range(len(config.depths)))

    def forward(
        self, feature_map: torch.Tensor, output_attentions: bool = False
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Feature maps (the input and the output of each stage, (B, H, W, C)) and attention weights of all blocks."""
        feature_maps, attentions = [feature_map], []
        for stage in self.layers:
            feature_map, weights = stage(feature_map, output_attentions)
            feature_maps.append(feature_map)
            attentions.extend(weights)
        return feature_maps, attentions


class SwinHfPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by the Swin models."""

    config_class = SwinHfConfig
    base_model_prefix = "swin"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SwinHfStage"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            std = self.config.initializer_range
            if self.config.weight_init == "fan_in":
                std = module.weight[0].numel() ** -0.5
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SwinHfEmbeddings) and module.position_embeddings is not None:
            init.zeros_(module.position_embeddings)
        elif isinstance(module, SwinHfRelativePositionBias):
            # Models are built on the meta device: a buffer that is not saved has to be filled here.
            init.zeros_(module.relative_position_bias_table)
            init.copy_(module.relative_position_index, relative_position_index(module.window, module.window))


class SwinHfModel(SwinHfPreTrainedModel):
    """The Swin encoder: an image to a map of features and their mean."""

    def __init__(self, config: SwinHfConfig):
        super().__init__(config)
        self.embeddings = SwinHfEmbeddings(config)
        self.encoder = SwinHfEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> SwinHfModelOutput:
        """Encode images (B, num_channels, height, width) of any height and width.

        Raises:
            ValueError: `pixel_values` is not 4-D or has another number of channels than the config.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        feature_maps, attentions = self.encoder(self.embeddings(pixel_values), output_attentions)
        last_hidden_state = self.layernorm(feature_maps[-1].flatten(1, 2))  # (B, H * W, C)
        return SwinHfModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=last_hidden_state.mean(dim=1),
            hidden_states=tuple(fm.flatten(1, 2) for fm in feature_maps) if output_hidden_states else None,
            reshaped_hidden_states=tuple(fm.permute(0, 3, 1, 2) for fm in feature_maps) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


class SwinHfForImageClassification(SwinHfPreTrainedModel):
    """The Swin encoder with a linear classifier on the mean of its last tokens."""

    def __init__(self, config: SwinHfConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.swin = SwinHfModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs) -> SwinHfImageClassifierOutput:
        """Classify images (B, num_channels, height, width).

        labels: (B,) class indices, or (B, K) class probabilities (mixup), or what `config.problem_type`
            "multi_label_classification" (B, K) or "regression" ask for.
        """
        outputs = self.swin(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        return SwinHfImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            reshaped_hidden_states=outputs.reshaped_hidden_states,
            attentions=outputs.attentions,
        )


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Loss of (B, K) logits; float labels are class probabilities unless `problem_type` says otherwise.

    The stock models take float labels for a multi-label problem and train binary cross-entropy without a word.
    """
    if problem_type == "regression":
        return nn.functional.mse_loss(logits.view_as(labels), labels.to(logits.dtype))
    if problem_type == "multi_label_classification":
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return nn.functional.cross_entropy(logits, labels)
