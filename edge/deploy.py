"""The deploy form: an inference-only rewrite of a Swin classifier for one image of fixed size.

It computes the same function as the model in operations that a mobile backend takes whole: constant biases and masks
instead of look-ups, slices instead of rolls, 3-D batched products, normalisation as matrix products with a constant
column, and the input normalisation folded into the patch embedding, so that the program takes pixels in [0, 1].
"""

# H W feature map in patches, C channels, nW windows, N tokens of a window, h heads, d head width, L tokens = H * W

import copy

import torch
from torch import nn

from swin_hf.configuration_swin_hf import SwinHfConfig
from swin_hf.layers_swin_hf import (
    SwinHfAttention,
    SwinHfBlock,
    SwinHfEmbeddings,
    SwinHfPatchMerging,
)
from swin_hf.modeling_swin_hf import SwinHfForImageClassification
from swin_hf.windows import attention_mask, fit_window

MASKED_SCORE = -100.0  # added to the score of a pair of tokens that may not mix, as in the original code


class DeployError(ValueError):
    """A model has a part that the deploy form cannot express yet; the message names it."""


def deploy(
    model: SwinHfForImageClassification, image_mean: tuple[float, ...], image_std: tuple[float, ...]
) -> "DeployClassifier":
    """Deploy form of `model` for one image of `model.config.image_size`; the model is left as it is.

    The result maps pixel values in [0, 1], shape (1, channels, height, width), to logits (1, K).

    Raises:
        DeployError: the model is of version 2 or has other norms than LayerNorm.
    """
    check_deployable(model.config)
    return DeployClassifier(copy.deepcopy(model).eval().float(), image_mean, image_std).requires_grad_(False)


def check_deployable(config: SwinHfConfig) -> None:
    """Check that there is a deploy form for models of this config.

    Raises:
        DeployError: there is none.
    """
    for name, supported in (("version", 1), ("norm", "layer")):
        if getattr(config, name) != supported:
            raise DeployError(
                f"a model can be exported with {name} {supported!r} only, this one has {getattr(config, name)!r}"
            )


class DeployClassifier(nn.Module):
    def __init__(self, model: SwinHfForImageClassification, image_mean: tuple[float, ...], image_std: tuple[float, ...]):
        super().__init__()
        config, swin = model.config, model.swin
        self.embeddings = DeployEmbeddings(config, swin.embeddings, image_mean, image_std)
        height, width = self.embeddings.grid
        blocks = []
        for stage in swin.encoder.layers:
            blocks.extend(DeployBlock(block, height, width) for block in stage.blocks)
            if stage.downsample is not None:
                blocks.append(DeployPatchMerging(stage.downsample, height, width))
                height, width = (height + 1) // 2, (width + 1) // 2
        self.blocks = nn.Sequential(*blocks)
        self.layernorm = DeployLayerNorm(swin.layernorm)
        self.grid = (height, width)
        self.classifier = model.classifier

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.layernorm(self.blocks(self.embeddings(pixel_values)))  # (L, C)
        feature_map = tokens.view(1, *self.grid, -1).permute(0, 3, 1, 2)  # the only mean XNNPACK takes is over H, W
        return self.classifier(feature_map.mean(dim=(2, 3), keepdim=True).flatten(1))


class DeployLayerNorm(nn.Module):
    """LayerNorm over the channels of (L, C) tokens, its two means written as products with a column of 1 / C."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        C = norm.normalized_shape[0]
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("mean_column", torch.full((C, 1), 1.0 / C))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        centred = tokens - torch.mm(tokens, self.mean_column)
        variance = torch.mm(centred * centred, self.mean_column)
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class DeployEmbeddings(nn.Module):
    """Pixels in [0, 1] to (L, C) tokens; the input normalisation lives in the weights of the projection."""

    def __init__(
        self,
        config: SwinHfConfig,
        embeddings: SwinHfEmbeddings,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
    ):
        super().__init__()
        (height, width), (patch_height, patch_width) = config.image_height_width, config.patch_height_width
        mean = torch.tensor(image_mean).view(1, -1, 1, 1)
        std = torch.tensor(image_std).view(1, -1, 1, 1)
        self.pad_height, self.pad_width = -height % patch_height, -width % patch_width
        # The model pads normalised pixels with 0, which is the mean before normalisation.
        self.register_buffer("pad_right", mean.expand(1, -1, height, self.pad_width).contiguous())
        self.register_buffer("pad_bottom", mean.expand(1, -1, self.pad_height, width + self.pad_width).contiguous())
        self.grid = ((height + self.pad_height) // patch_height, (width + self.pad_width) // patch_width)

        self.projection = embeddings.patch_embeddings.projection
        weight = self.projection.weight.data
        self.projection.bias.data = self.projection.bias.data - (weight * mean / std).sum(dim=(1, 2, 3))
        self.projection.weight.data = weight / std
        self.norm = DeployLayerNorm(embeddings.norm)
        positions = None
        if embeddings.position_embeddings is not None:
            positions = embeddings.positions(*self.grid).detach().reshape(self.grid[0] * self.grid[1], -1)
        self.register_buffer("positions", positions)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.pad_width:
            pixel_values = torch.cat((pixel_values, self.pad_right), dim=3)
        if self.pad_height:
            pixel_values = torch.cat((pixel_values, self.pad_bottom), dim=2)
        patches = self.projection(pixel_values)  # (1, C, H, W)
        tokens = self.norm(patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1]))
        return tokens if self.positions is None else tokens + self.positions


class DeployAttention(nn.Module):
    """Attention inside windows, the scale in the query weights and the mask of a shifted map as a constant."""

    def __init__(self, attention: SwinHfAttention, window: tuple[int, int], mask: torch.Tensor | None):
        super().__init__()
        self.head_dim, self.value_head_dim = attention.head_dim, attention.value_head_dim
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.o_proj = attention.o_proj
        self.q_proj.weight.data = self.q_proj.weight.data * attention.scaling
        if self.q_proj.bias is not None:
            self.q_proj.bias.data = self.q_proj.bias.data * attention.scaling
        # Cloned, since `contiguous` keeps the odd strides that a permutation leaves on a dimension of size one (a single
        # head), from which the exporter derives a wrong dimension order: the program then fails when it is run.
        bias = attention.relative_position_bias(window).detach().clone(memory_format=torch.contiguous_format)
        self.register_buffer("bias", bias)  # (1, h, N, N)
        self.num_heads, self.N = bias.shape[1:3]
        self.register_buffer("mask", None if mask is None else (~mask).float()[:, None] * MASKED_SCORE)  # (nW, 1, N, N)

    def heads(self, projected: torch.Tensor, head_dim: int, order: tuple[int, ...]) -> torch.Tensor:
        """(nW * N, h * d) to one matrix per window and head, its axes in `order`."""
        heads = projected.view(-1, self.N, self.num_heads, head_dim).permute(order)
        return heads.reshape(-1, *heads.shape[2:])  # (nW * h, .., ..)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        query = self.heads(self.q_proj(windows), self.head_dim, (0, 2, 1, 3))  # (nW * h, N, d)
        key = self.heads(self.k_proj(windows), self.head_dim, (0, 2, 3, 1))  # (nW * h, d, N)
        value = self.heads(self.v_proj(windows), self.value_head_dim, (0, 2, 1, 3))
        scores = torch.bmm(query, key).view(-1, self.num_heads, self.N, self.N) + self.bias
        if self.mask is not None:
            scores = scores + self.mask
        weights = scores.softmax(dim=-1).view(-1, self.N, self.N)
        context = torch.bmm(weights, value).view(-1, self.num_heads, self.N, self.value_head_dim)
        return self.o_proj(context.permute(0, 2, 1, 3).reshape(windows.shape[0], -1))  # (nW * N, C)


class DeployBlock(nn.Module):
    """One Swin block on (L, C) tokens of a map whose height and width are fixed."""

    def __init__(self, block: SwinHfBlock, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width
        self.window, self.shift = fit_window(height, width, block.window, block.shifted)
        self.pad_height, self.pad_width = -height % self.window[0], -width % self.window[1]
        mask = None
        if self.shift or (block.mask_padding and (self.pad_height or self.pad_width)):
            mask = attention_mask((height, width), self.window, self.shift, block.mask_padding)
        self.layernorm_before = DeployLayerNorm(block.layernorm_before)
        self.attention = DeployAttention(block.attention, self.window, mask)
        self.layernorm_after = DeployLayerNorm(block.layernorm_after)
        self.mlp = block.mlp

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.reverse(self.attention(self.partition(self.layernorm_before(tokens))))
        return tokens + self.mlp(self.layernorm_after(tokens))

    def partition(self, tokens: torch.Tensor) -> torch.Tensor:
        """(L, C) tokens in the order of the map to (nW * N, C) tokens in the order of the shifted windows."""
        C, (wh, ww) = tokens.shape[1], self.window
        feature_map = tokens.view(self.height, self.width, C)
        if self.pad_height or self.pad_width:
            feature_map = nn.functional.pad(feature_map, (0, 0, 0, self.pad_width, 0, self.pad_height))
        if self.shift:
            feature_map = roll(feature_map, *self.shift)
        H, W = feature_map.shape[:2]
        return feature_map.view(H // wh, wh, W // ww, ww, C).permute(0, 2, 1, 3, 4).reshape(-1, C)

    def reverse(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of `partition`, without the padding."""
        C, (wh, ww) = tokens.shape[1], self.window
        H, W = self.height + self.pad_height, self.width + self.pad_width
        feature_map = tokens.view(H // wh, W // ww, wh, ww, C).permute(0, 2, 1, 3, 4).reshape(H, W, C)
        if self.shift:
            feature_map = roll(feature_map, -self.shift[0], -self.shift[1])
        if self.pad_height or self.pad_width:
            feature_map = feature_map[: self.height, : self.width]
        return feature_map.reshape(-1, C)


class DeployPatchMerging(nn.Module):
    """Patch merging on (L, C) tokens of a map whose height and width are fixed."""

    def __init__(self, merging: SwinHfPatchMerging, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width
        self.norm = DeployLayerNorm(merging.norm)
        self.reduction = merging.reduction

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        C = tokens.shape[1]
        feature_map = tokens.view(self.height, self.width, C)
        H, W = self.height + self.height % 2, self.width + self.width % 2
        if (self.height, self.width) != (H, W):
            feature_map = nn.functional.pad(feature_map, (0, 0, 0, W - self.width, 0, H - self.height))
        groups = feature_map.view(H // 2, 2, W // 2, 2, C).permute(0, 2, 3, 1, 4)  # (.., column, row, C)
        return self.reduction(self.norm(groups.reshape(-1, 4 * C)))


def roll(feature_map: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Cyclic shift of an (H, W, C) map up by `rows` and to the left by `columns`, as slices and concatenations."""
    if rows:
        feature_map = torch.cat((feature_map[rows:], feature_map[:rows]), dim=0)
    if columns:
        feature_map = torch.cat((feature_map[:, columns:], feature_map[:, :columns]), dim=1)
    return feature_map
