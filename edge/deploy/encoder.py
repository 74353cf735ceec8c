"""The encoder in the deploy form: pixels to the outputs of its stages, and to feature maps."""

# B batch, H W feature map in patches, C channels, L tokens = H * W

from collections.abc import Collection

import torch
from torch import nn

from edge.deploy.convolutions import DeployConvStem, DeployInvertedResidual, ToMap, ToTokens
from edge.deploy.folding import Rescale, take_apart
from edge.deploy.layers import DeployPlan, deploy_block, deploy_downsample, deploy_embeddings
from edge.deploy.view import InputView
from swin_hf import SwinHfBackbone, SwinHfModel

WITH_MAPS = (DeployConvStem, DeployInvertedResidual)  # layers that take and give maps; others take and give tokens


class DeployEncoder(nn.Module):
    """Pixels to the output of the stem, then that of each stage before its downsampling.

    Each is (B * L, C) tokens or a (B, C, H, W) map, whichever its last layer makes; `to_tokens` turns the one of a number into
    tokens, and `to_map` into a map. grids: (H, W) of each.
    """

    def __init__(self, swin: SwinHfModel, view: InputView, plan: DeployPlan):
        super().__init__()
        self.embeddings = deploy_embeddings(swin.embeddings, view, plan)
        height, width = self.embeddings.grid
        self.grids, self.are_maps = [(height, width)], [isinstance(self.embeddings, WITH_MAPS)]
        self.stages = nn.ModuleList()
        last = self.embeddings
        for stage in swin.encoder.layers:
            blocks = [deploy_block(block, height, width, plan) for block in stage.blocks]
            downsample = None if stage.downsample is None else deploy_downsample(stage.downsample, height, width, plan)
            self.stages.append(DeployStage(blocks, downsample, isinstance(last, WITH_MAPS), (height, width)))
            last = downsample
            self.grids.append((height, width))
            self.are_maps.append(isinstance(blocks[-1], WITH_MAPS))
            height, width = (height + 1) // 2, (width + 1) // 2

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        outputs = [self.embeddings(pixel_values)]
        values = outputs[0]
        for stage in self.stages:
            outputs.append(stage.blocks(stage.enter(values)))
            values = stage.downsample(stage.leave(outputs[-1])) if stage.downsample is not None else outputs[-1]
        return outputs

    def to_tokens(self, number: int) -> nn.Module:
        return between(self.are_maps[number], False, self.grids[number])

    def to_map(self, number: int) -> nn.Module:
        return between(self.are_maps[number], True, self.grids[number])


class DeployStage(nn.Module):
    """Blocks of one resolution, and the downsampling after them, if any; between layers of different kinds, what leads there.

    comes_as_map: whether the stage is given a map.
    """

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None, comes_as_map: bool, grid: tuple[int, int]):
        super().__init__()
        self.enter = between(comes_as_map, isinstance(blocks[0], WITH_MAPS), grid)
        self.blocks = nn.Sequential(*blocks)
        self.leave = between(isinstance(blocks[-1], WITH_MAPS), isinstance(downsample, WITH_MAPS), grid)
        self.downsample = downsample


def between(comes_as_map: bool, taken_as_map: bool, grid: tuple[int, int]) -> nn.Module:
    """What leads from one kind of layer to the other."""
    if comes_as_map == taken_as_map:
        return nn.Identity()
    return ToMap(*grid) if taken_as_map else ToTokens()


class DeployBackbone(nn.Module):
    """Pixels to feature maps (B, C, H, W), one for each of the backbone's `out_features`.

    unscaled: maps that are left without the scale and shift of their norms, which `affines` has, for layers behind to fold in.
    """

    def __init__(self, model: SwinHfBackbone, view: InputView, plan: DeployPlan, unscaled: Collection[int] = ()):
        super().__init__()
        self.encoder = DeployEncoder(model.swin, view, plan)
        self.stages = [model.stage_names.index(name) for name in model.hidden_states_norms]
        self.to_tokens = nn.ModuleList(self.encoder.to_tokens(stage) for stage in self.stages)
        apart = [take_apart(norm) for norm in model.hidden_states_norms.values()]
        self.affines = [affine for _, affine in apart]
        self.norms = nn.ModuleList(
            normalise if number in unscaled else nn.Sequential(normalise, Rescale(affine))
            for number, (normalise, affine) in enumerate(apart)
        )
        self.to_maps = nn.ModuleList(ToMap(*self.encoder.grids[stage]) for stage in self.stages)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.encoder(pixel_values)
        parts = zip(self.stages, self.to_tokens, self.norms, self.to_maps)
        return tuple(to_map(norm(to_tokens(outputs[stage]))).contiguous() for stage, to_tokens, norm, to_map in parts)
