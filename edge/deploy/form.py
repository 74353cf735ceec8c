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

from edge.deploy.folding import Rescale, take_apart, with_affine_before
from edge.deploy.layers import DeployEmbeddings, DeployPatchMerging, DeployPlan, InputView, deploy_block
from edge.device.errors import ExplainedError
from swin_hf import SwinHfBackbone, SwinHfForImageClassification, SwinHfModel
from swin_hf.plain_layers_swin_hf import require_plain_layers

DEPLOYABLE = (SwinHfForImageClassification, SwinHfBackbone)


class DeployError(ExplainedError):
    """A model has no deploy form; the message says why."""


def deploy(model: SwinHfForImageClassification | SwinHfBackbone, view: InputView, compact: bool = False) -> nn.Module:
    """Deploy form of `model` for the images that `view` describes; the model itself is not changed.

    A classifier maps pixels to logits (B, K), or without a head to pooled features (B, C). A backbone maps them to a tuple of
    feature maps (B, C, H, W), one for each of its `out_features`.

    compact: store position biases and masks as int8, exact to 2**-16 of the largest, for programs with int8 weights.

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
    """Pixels to (B * L, C) tokens: those of the stem, then those of each stage before its patch merging."""

    def __init__(self, swin: SwinHfModel, view: InputView, plan: DeployPlan):
        super().__init__()
        self.embeddings = DeployEmbeddings(swin.embeddings, view)
        height, width = self.embeddings.grid
        self.grids = [(height, width)]
        self.stages = nn.ModuleList()
        for stage in swin.encoder.layers:
            blocks = [deploy_block(block, height, width, plan) for block in stage.blocks]
            self.grids.append((height, width))
            merging = None
            if stage.downsample is not None:
                merging = DeployPatchMerging(stage.downsample, height, width)
                height, width = (height + 1) // 2, (width + 1) // 2
            self.stages.append(DeployStage(blocks, merging))

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        tokens = self.embeddings(pixel_values)
        maps = [tokens]
        for stage in self.stages:
            maps.append(stage.blocks(tokens))
            tokens = stage.merging(maps[-1]) if stage.merging is not None else maps[-1]
        return maps


class DeployStage(nn.Module):
    """Blocks of one resolution, and the patch merging after them, if any."""

    def __init__(self, blocks: list[nn.Module], merging: DeployPatchMerging | None):
        super().__init__()
        self.blocks, self.merging = nn.Sequential(*blocks), merging


class DeployClassifier(nn.Module):
    """Pixels to logits (B, K)."""

    def __init__(self, model: SwinHfForImageClassification, view: InputView, plan: DeployPlan):
        super().__init__()
        self.encoder = DeployEncoder(model.swin, view, plan)
        self.norm, affine = take_apart(model.swin.layernorm)
        # Between the norm and the classifier lies only the mean over tokens, through which scale and shift pass unchanged.
        has_head = isinstance(model.classifier, nn.Linear)
        self.classifier = with_affine_before(model.classifier, affine) if has_head else Rescale(affine)
        self.grid = self.encoder.grids[-1]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.encoder(pixel_values)[-1])
        feature_map = tokens.view(-1, *self.grid, tokens.shape[1]).permute(0, 3, 1, 2)
        return self.classifier(feature_map.mean(dim=(2, 3), keepdim=True).flatten(1))  # XNNPACK takes only this mean


class DeployBackbone(nn.Module):
    """Pixels to feature maps (B, C, H, W), one for each of the backbone's `out_features`."""

    def __init__(self, model: SwinHfBackbone, view: InputView, plan: DeployPlan):
        super().__init__()
        self.encoder = DeployEncoder(model.swin, view, plan)
        self.stages = [model.stage_names.index(name) for name in model.hidden_states_norms]
        apart = [take_apart(norm) for norm in model.hidden_states_norms.values()]
        self.norms = nn.ModuleList(nn.Sequential(normalise, Rescale(affine)) for normalise, affine in apart)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = self.encoder(pixel_values)
        normed = [norm(maps[stage]) for stage, norm in zip(self.stages, self.norms)]
        grids = [self.encoder.grids[stage] for stage in self.stages]
        return tuple(
            tokens.view(-1, *grid, tokens.shape[1]).permute(0, 3, 1, 2).contiguous() for tokens, grid in zip(normed, grids)
        )


def flat(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> np.ndarray:
    """Outputs of one batch as an array (B, ..): logits, or all feature maps flattened and concatenated."""
    maps = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return np.concatenate([values.detach().float().flatten(1).numpy() for values in maps], axis=1)
