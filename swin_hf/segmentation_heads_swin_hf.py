"""A light decode head for semantic segmentation on phones."""

# B batch, C channels, H W feature map, K classes

import torch
from torch import nn


def conv_norm_act(in_channels: int, out_channels: int, kernel_size: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size of a map, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def resized(feature_map: torch.Tensor, size: tuple[int, int] | torch.Size) -> torch.Tensor:
    """A map (B, C, H, W), or logits, at another (height, width), by bilinear interpolation."""
    if feature_map.shape[2:] == size:
        return feature_map
    return nn.functional.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)


class SwinHfLightHead(nn.Module):
    """Logits (B, K, H, W) from feature maps (B, C, H, W), the largest first, at the size of the largest.

    A feature pyramid (FPN, Lin et al. 2017, arXiv:1612.03144) whose levels are as narrow as `channels`: from the smallest map
    on, each is enlarged, the next one is added, and a depthwise and a pointwise convolution smooth the sum (separable, as in
    Xception and MobileNet). The smallest also gets the mean of its whole map, for context (ParseNet, Liu et al. 2015,
    arXiv:1506.04579).
    """

    def __init__(self, in_channels: list[int], channels: int, num_labels: int):
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(C, channels, 1, bias=False), nn.BatchNorm2d(channels)) for C in in_channels
        )
        self.context = nn.Conv2d(in_channels[-1], channels, 1)
        self.smooth = nn.ModuleList(
            nn.Sequential(conv_norm_act(channels, channels, 3, groups=channels), conv_norm_act(channels, channels))
            for _ in in_channels
        )
        self.classifier = nn.Conv2d(channels, num_labels, 1)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        summed: torch.Tensor = self.context(feature_maps[-1].mean(dim=(2, 3), keepdim=True))
        for feature_map, lateral, smooth in reversed(list(zip(feature_maps, self.laterals, self.smooth))):
            summed = smooth(nn.functional.relu(lateral(feature_map) + resized(summed, feature_map.shape[2:])))
        return self.classifier(summed)
