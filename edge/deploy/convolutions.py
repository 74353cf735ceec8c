"""Convolutions of hybrid models in the deploy form: batch normalisation is folded into them.

They work on (B, C, H, W) maps, and layers with windows on (B * L, C) tokens; `ToMap` and `ToTokens` lead from one to the
other.
"""

# B batch, H W feature map in patches, C channels, L tokens = H * W

import torch
from torch import nn

from edge.deploy.activations import deploy_activation
from edge.deploy.folding import conv, norm_after
from edge.deploy.view import InputView
from swin_hf.convolutions_swin_hf import SwinHfConvDownsample, SwinHfConvNorm, SwinHfConvStem, SwinHfLocalConv, SwinHfMBConv
from swin_hf.layers_swin_hf import SwinHfEmbeddings


class ToMap(nn.Module):
    """(B * L, C) tokens as a (B, C, H, W) map."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.view(-1, self.height, self.width, tokens.shape[1]).permute(0, 3, 1, 2)


class ToTokens(nn.Module):
    """A (B, C, H, W) map as (B * L, C) tokens."""

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return feature_map.permute(0, 2, 3, 1).reshape(-1, feature_map.shape[1])


def folded(layer: SwinHfConvNorm) -> nn.Conv2d:
    """A convolution with its batch normalisation inside."""
    return norm_after(layer.conv, layer.norm)[0]


class DeployConvStem(nn.Module):
    """Pixels to a map (B, C, H, W). The normalisation of the input is inside, but for the mean: borders are padded with it."""

    def __init__(self, embeddings: SwinHfEmbeddings, view: InputView, hidden_act: str):
        super().__init__()
        stem: SwinHfConvStem = embeddings.patch_embeddings
        self.channels_last = view.dtype == "uint8"
        mean, std = view.moments()
        self.register_buffer("minus_mean", -mean.float() if mean.any() else None)
        first, *others = (folded(layer) for layer in stem.convs)
        self.convs = nn.ModuleList([conv(first, first.weight.detach().double() / std, first.bias), *others])
        self.activation = deploy_activation(hidden_act, stem.activation_fn) if others else nn.Identity()
        self.grid = tuple(-(-side // patch) for side, patch in zip((view.height, view.width), embeddings.patch_size))
        positions = None
        if embeddings.position_embeddings is not None:
            positions = embeddings.positions(*self.grid).detach().permute(0, 3, 1, 2).contiguous()  # (1, C, H, W)
        self.register_buffer("positions", positions)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.channels_last:
            pixel_values = pixel_values.to(self.convs[0].weight.dtype).permute(0, 3, 1, 2)
        if self.minus_mean is not None:
            pixel_values = pixel_values + self.minus_mean
        feature_map = self.convs[0](pixel_values)
        for layer in self.convs[1:]:
            feature_map = layer(self.activation(feature_map))
        return feature_map if self.positions is None else feature_map + self.positions


class DeployInvertedResidual(nn.Module):
    """Widen, mix neighbours, narrow: what a convolutional block and a convolutional downsampling have in common."""

    def __init__(self, layers: SwinHfMBConv | SwinHfConvDownsample, hidden_act: str):
        super().__init__()
        self.expand, self.depthwise, self.project = map(folded, (layers.expand, layers.depthwise, layers.project))
        self.activation = deploy_activation(hidden_act, layers.activation_fn)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.project(self.activation(self.depthwise(self.activation(self.expand(feature_map)))))


class DeployMBConv(DeployInvertedResidual):
    """A convolutional block."""

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.activation(feature_map + super().forward(feature_map))


class DeployConvDownsample(DeployInvertedResidual):
    """A convolutional downsampling."""


class DeployLocalConv(nn.Module):
    """A depthwise convolution of (B * L, C) tokens of a map."""

    def __init__(self, layer: SwinHfLocalConv, height: int, width: int):
        super().__init__()
        self.to_map, self.depthwise, self.to_tokens = ToMap(height, width), folded(layer.depthwise), ToTokens()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.to_tokens(self.depthwise(self.to_map(tokens)))
