"""Segmenters in the deploy form: the decode heads, with batch normalisation and the norms of the feature maps folded in."""

# B batch, C channels, H W feature map, K classes

import torch
from torch import nn
from transformers.models.upernet.modeling_upernet import UperNetConvModule, UperNetHead

from edge.deploy.activations import DeployActivation
from edge.deploy.encoder import DeployBackbone
from edge.deploy.folding import Affine, norm_after, with_affine_before
from edge.deploy.layers import DeployPlan
from edge.deploy.view import InputView
from swin_hf import SwinHfForSemanticSegmentation
from swin_hf.segmentation_heads_swin_hf import SwinHfLightHead, resized


class DeploySegmenter(nn.Module):
    """Pixels to logits (B, K, H, W), at the size of the largest feature map or, as the model's config says, of the image."""

    def __init__(self, model: SwinHfForSemanticSegmentation, view: InputView, plan: DeployPlan):
        super().__init__()
        is_light, num_maps = isinstance(model.decode_head, SwinHfLightHead), len(model.backbone.channels)
        self.backbone = DeployBackbone(model.backbone, view, plan, range(num_maps if is_light else num_maps - 1))
        sizes = [self.backbone.encoder.grids[stage] for stage in self.backbone.stages]
        self.head = (DeployLightHead if is_light else DeployUperHead)(model.decode_head, self.backbone.affines, sizes)
        self.resize = Resize((view.height, view.width)) if model.config.resize_logits else nn.Identity()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.resize(self.head(self.backbone(pixel_values)))


class Resize(nn.Module):
    """Maps at a fixed (height, width), by bilinear interpolation."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return resized(feature_map, self.size)


class ClassMap(nn.Module):
    """Classes (B, height, width), as bytes, of what a segmenter says of each pixel of its input."""

    def __init__(self, segmenter: nn.Module, height: int, width: int):
        super().__init__()
        self.segmenter, self.resize = segmenter, Resize((height, width))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.resize(self.segmenter(pixel_values)).argmax(dim=1).to(torch.uint8)


class DeployLightHead(nn.Module):
    """`SwinHfLightHead` for maps of fixed sizes that lack the scale and shift of their norms, `affines`."""

    def __init__(self, head: SwinHfLightHead, affines: list[Affine], sizes: list[tuple[int, int]]):
        super().__init__()
        laterals = [norm_after(*lateral)[0] for lateral in head.laterals]
        self.laterals = nn.ModuleList(with_affine_before(lateral, affine) for lateral, affine in zip(laterals, affines))
        self.context = with_affine_before(head.context, affines[-1])
        self.smooth = nn.ModuleList(nn.Sequential(*map(folded_with_relu, smooth)) for smooth in head.smooth)
        self.resize = nn.ModuleList(map(Resize, sizes[:-1]))
        self.relu, self.classifier = DeployActivation(torch.relu), head.classifier

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        last = feature_maps[-1]
        summed = self.laterals[-1](last) + self.context(last.mean(dim=(2, 3), keepdim=True))
        summed = self.smooth[-1](self.relu(summed))
        for number in reversed(range(len(feature_maps) - 1)):
            summed = self.laterals[number](feature_maps[number]) + self.resize[number](summed)
            summed = self.smooth[number](self.relu(summed))
        return self.classifier(summed)


class DeployUperHead(nn.Module):
    """`UperNetHead` for maps of fixed sizes, all but the last of which lack the scale and shift of their norms, `affines`."""

    def __init__(self, head: UperNetHead, affines: list[Affine], sizes: list[tuple[int, int]]):
        super().__init__()
        self.laterals = nn.ModuleList(folded_with_relu(conv, affine) for conv, affine in zip(head.lateral_convs, affines))
        self.pooled = nn.ModuleList(DeployPooling(scale, *sizes[-1]) for scale in head.pool_scales)
        self.of_pooled = nn.ModuleList(folded_with_relu(block.layers[1]) for block in head.psp_modules.blocks)
        self.to_last, self.to_first = Resize(sizes[-1]), Resize(sizes[0])
        self.resize = nn.ModuleList(map(Resize, sizes[:-1]))
        self.smooth = nn.ModuleList(map(folded_with_relu, head.fpn_convs))
        self.bottleneck, self.fpn_bottleneck = folded_with_relu(head.bottleneck), folded_with_relu(head.fpn_bottleneck)
        self.classifier = head.classifier

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        *others, last = feature_maps
        pooled = [self.to_last(conv(pool(last))) for pool, conv in zip(self.pooled, self.of_pooled)]
        levels = [self.bottleneck(torch.cat([last, *pooled], dim=1))]
        for feature_map, lateral, resize in reversed(list(zip(others, self.laterals, self.resize))):
            levels.insert(0, lateral(feature_map) + resize(levels[0]))
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, levels)]
        maps = [self.to_first(feature_map) for feature_map in [*smoothed, levels[-1]]]
        return self.classifier(self.fpn_bottleneck(torch.cat(maps, dim=1)))


class DeployPooling(nn.Module):
    """`nn.AdaptiveAvgPool2d` of maps of a fixed size, as one matrix product: its windows may overlap and differ in size."""

    def __init__(self, scale: int, height: int, width: int):
        super().__init__()
        self.scale = scale
        pixels = torch.eye(height * width).view(height * width, 1, height, width)
        self.register_buffer("shares", nn.functional.adaptive_avg_pool2d(pixels, scale).flatten(1))  # (H * W, scale * scale)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        B, C = feature_map.shape[:2]
        return torch.mm(feature_map.reshape(B * C, -1), self.shares).view(B, C, self.scale, self.scale)


def folded_with_relu(layer: UperNetConvModule | nn.Sequential, before: Affine | None = None) -> nn.Sequential:
    """A convolution with its batch normalisation inside, and with `before` if it is pointwise; then ReLU."""
    conv, norm = (layer.conv, layer.batch_norm) if isinstance(layer, UperNetConvModule) else layer[:2]
    folded = norm_after(conv, norm)[0]
    return nn.Sequential(folded if before is None else with_affine_before(folded, before), DeployActivation(torch.relu))
