"""Convolutions of hybrid models, as in TinyViT (Wu et al. 2022, arXiv:2207.10666): stem, blocks, downsampling, local mixing.

Like the other layers they take and return (B, H, W, C) feature maps. An odd map loses no row: H becomes ceil(H / 2).
"""

# B batch, H W feature map in patches, C channels

from itertools import pairwise

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_swin_hf import STEM_STEPS, SwinHfConfig
from .training_layers_swin_hf import SwinHfCheckpointedLayer, SwinHfDropPath, drop_path_rate


class SwinHfConvNorm(nn.Module):
    """A convolution of (B, C, H, W) maps with batch normalisation; padded so that stride 1 keeps the size.

    starts_at_zero: the norm's new scale is 0.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        starts_at_zero: bool = False,
    ):
        super().__init__()
        groups = dim if depthwise else 1
        self.conv = nn.Conv2d(dim, out_dim, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)
        # Told to the layers themselves: with code from the Hub, transformers initialises only layers that hold weights.
        self.conv.is_normed, self.norm.starts_at_zero = True, starts_at_zero

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(feature_map))


class SwinHfConvStem(nn.Module):
    """Pixels to a map of tokens: convolutions of 3 x 3 and stride 2, with an activation between them."""

    def __init__(self, config: SwinHfConfig):
        super().__init__()
        steps = STEM_STEPS[config.patch_height_width[0]]
        dims = [config.num_channels, *(config.embed_dim // 2**step for step in reversed(range(steps)))]
        self.convs = nn.ModuleList(SwinHfConvNorm(*pair, kernel=3, stride=2) for pair in pairwise(dims))
        # An activation may have weights, which must take part in every step.
        self.activation_fn = ACT2FN[config.hidden_act] if steps > 1 else nn.Identity()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        first, *others = self.convs
        feature_map = first(pixel_values)
        for conv in others:
            feature_map = conv(self.activation_fn(feature_map))
        return feature_map.permute(0, 2, 3, 1)  # (B, H, W, C)


class SwinHfMBConv(SwinHfCheckpointedLayer):
    """An inverted residual: widen, mix 3 x 3 neighbours in each channel, narrow, add, activate."""

    def __init__(self, config: SwinHfConfig, stage: int, block: int):
        super().__init__()
        dim, hidden_dim = config.stage_dim(stage), config.block_widths(stage, block).mlp_dim
        self.expand = SwinHfConvNorm(dim, hidden_dim)
        self.depthwise = SwinHfConvNorm(hidden_dim, hidden_dim, kernel=3, depthwise=True)
        self.project = SwinHfConvNorm(hidden_dim, dim, starts_at_zero=True)  # the branch adds nothing yet (Goyal et al. 2017)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = SwinHfDropPath(drop_path_rate(config, stage, block))

    def forward(self, feature_map: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, None]:
        """The map after the block; there are no attention weights."""
        channels_first = feature_map.permute(0, 3, 1, 2)
        hidden = self.activation_fn(self.expand(channels_first))
        hidden = self.project(self.activation_fn(self.depthwise(hidden)))
        hidden = self.activation_fn(channels_first + self.drop_path(self.dropout(hidden)))
        return hidden.permute(0, 2, 3, 1), None


class SwinHfConvDownsample(nn.Module):
    """Half the size and the channels of the next stage: pointwise, depthwise of stride 2, pointwise."""

    def __init__(self, config: SwinHfConfig, stage: int):
        super().__init__()
        dim, out_dim = config.stage_dim(stage), config.stage_dim(stage + 1)
        self.expand = SwinHfConvNorm(dim, out_dim)
        self.depthwise = SwinHfConvNorm(out_dim, out_dim, kernel=3, stride=2, depthwise=True)
        self.project = SwinHfConvNorm(out_dim, out_dim)
        self.activation_fn = ACT2FN[config.hidden_act]

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        hidden = self.activation_fn(self.expand(feature_map.permute(0, 3, 1, 2)))
        return self.project(self.activation_fn(self.depthwise(hidden))).permute(0, 2, 3, 1)


class SwinHfLocalConv(nn.Module):
    """Mix the neighbours of each token, channel by channel; no residual connection leads around it."""

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.depthwise = SwinHfConvNorm(dim, dim, kernel=kernel, depthwise=True)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.depthwise(feature_map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
