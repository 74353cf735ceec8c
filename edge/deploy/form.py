"""The deploy form: an inference-only rewrite of a Swin model for images of a fixed size.

It computes the same function as the model in operations that a mobile backend takes as one delegate: constant biases and masks
instead of look-ups, slices instead of rolls, 3-D batched products, normalisation as matrix products with a constant column.
Constants are folded into the weights: scale and shift of norms, the scale of the queries, the normalisation of the input.
"""

# B batch, H W feature map in patches, C channels, L tokens = H * W, K classes

import copy

import numpy as np
import torch
from torch import nn

from edge.deploy.convolutions import DeployConvStem, DeployInvertedResidual, ToMap, ToTokens
from edge.deploy.folding import Rescale, take_apart, with_affine_before
from edge.deploy.layers import DeployPlan, deploy_block, deploy_downsample, deploy_embeddings
from edge.deploy.view import InputView
from edge.device.errors import ExplainedError
from swin_hf import SwinHfBackbone, SwinHfForImageClassification, SwinHfModel
from swin_hf.plain_layers_swin_hf import require_plain_layers

WITH_MAPS = (DeployConvStem, DeployInvertedResidual)  # layers that take and give maps; others take and give tokens
DEPLOYABLE = (SwinHfForImageClassification, SwinHfBackbone)


class DeployError(ExplainedError):
    """A model has no deploy form; the message says why."""


def deploy(model: SwinHfForImageClassification | SwinHfBackbone, view: InputView, compact: bool = False) -> nn.Module:
    """Deploy form of `model` for the images that `view` describes; the model itself is not changed.

    A classifier maps pixels to logits (B, K), or without a head to pooled features (B, C). A backbone maps them to a tuple of
    feature maps (B, C, H, W), one for each of its `out_features`.

    compact: store position biases and masks as int8, exact to 1 / 254 of the largest, for programs with int8 weights.

    Raises:
        DeployError: another kind of model, layers that were wrapped or quantized, or another number of channels.
    """
    if not isinstance(model, DEPLOYABLE):
        names = " or ".join(kind.__name__ for kind in DEPLOYABLE)
        raise DeployError(f"an exported model must be a {names}, got {type(model).__name__}")
    if len(view.image_mean) != model.config.num_channels:
        raise DeployError(f"image_mean must have {model.config.num_channels} values, one per channel, got {view.image_mean}")
    require_plain_layers(model, "exported", DeployError)
    model = copy.deepcopy(model).eval().float().cpu()
    kind = DeployBackbone if isinstance(model, SwinHfBackbone) else DeployClassifier
    plan = DeployPlan(hidden_act=model.config.hidden_act, batch_size=view.batch_size, compact=compact)
    with torch.no_grad():
        return kind(model, view, plan).eval().requires_grad_(False)


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


class DeployClassifier(nn.Module):
    """Pixels to logits (B, K)."""

    def __init__(self, model: SwinHfForImageClassification, view: InputView, plan: DeployPlan):
        super().__init__()
        self.encoder = DeployEncoder(model.swin, view, plan)
        self.norm_after_pooling = model.config.norm_after_pooling
        self.norm, affine = take_apart(model.swin.layernorm)
        # Between the norm and the classifier lies at most the mean over tokens, through which scale and shift pass unchanged.
        has_head = isinstance(model.classifier, nn.Linear)
        self.classifier = with_affine_before(model.classifier, affine) if has_head else Rescale(affine)
        self.to_tokens, self.to_map = self.encoder.to_tokens(-1), self.encoder.to_map(-1)
        self.map_of_tokens = ToMap(*self.encoder.grids[-1])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        last = self.encoder(pixel_values)[-1]
        if self.norm_after_pooling:
            return self.classifier(self.norm(pooled(self.to_map(last))))
        return self.classifier(pooled(self.map_of_tokens(self.norm(self.to_tokens(last)))))


def pooled(feature_map: torch.Tensor) -> torch.Tensor:
    """The mean (B, C) of a map (B, C, H, W), in the only form that XNNPACK takes."""
    return feature_map.mean(dim=(2, 3), keepdim=True).flatten(1)


class DeployBackbone(nn.Module):
    """Pixels to feature maps (B, C, H, W), one for each of the backbone's `out_features`."""

    def __init__(self, model: SwinHfBackbone, view: InputView, plan: DeployPlan):
        super().__init__()
        self.encoder = DeployEncoder(model.swin, view, plan)
        self.stages = [model.stage_names.index(name) for name in model.hidden_states_norms]
        self.to_tokens = nn.ModuleList(self.encoder.to_tokens(stage) for stage in self.stages)
        apart = [take_apart(norm) for norm in model.hidden_states_norms.values()]
        self.norms = nn.ModuleList(nn.Sequential(normalise, Rescale(affine)) for normalise, affine in apart)
        self.to_maps = nn.ModuleList(ToMap(*self.encoder.grids[stage]) for stage in self.stages)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.encoder(pixel_values)
        parts = zip(self.stages, self.to_tokens, self.norms, self.to_maps)
        return tuple(to_map(norm(to_tokens(outputs[stage]))).contiguous() for stage, to_tokens, norm, to_map in parts)


def flat(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> np.ndarray:
    """Outputs of one batch as an array (B, ..): logits, or all feature maps flattened and concatenated."""
    maps = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return np.concatenate([values.detach().float().flatten(1).numpy() for values in maps], axis=1)
