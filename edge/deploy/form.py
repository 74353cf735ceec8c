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

from edge.deploy.convolutions import ToMap
from edge.deploy.encoder import DeployBackbone, DeployEncoder
from edge.deploy.folding import Normalise, Rescale, take_apart, with_affine_before
from edge.deploy.layers import DeployPlan
from edge.deploy.segmenters import DeploySegmenter
from edge.deploy.view import InputView
from edge.device.errors import ExplainedError
from swin_hf import SwinHfBackbone, SwinHfConfig, SwinHfForImageClassification, SwinHfForSemanticSegmentation
from swin_hf.plain_layers_swin_hf import require_plain_layers

Exportable = SwinHfForImageClassification | SwinHfForSemanticSegmentation | SwinHfBackbone


class DeployError(ExplainedError):
    """A model has no deploy form; the message says why."""


def deploy(model: Exportable, view: InputView, compact: bool = False, explain: bool = False) -> nn.Module:
    """Deploy form of `model` for the images that `view` describes; the model itself is not changed.

    A classifier maps pixels to logits (B, K), or without a head to pooled features (B, C); a segmenter to logits (B, K, H, W).
    A backbone maps them to a tuple of feature maps (B, C, H, W), one for each of its `out_features`.

    compact: store position biases and masks as int8, exact to 1 / 254 of the largest, for programs with int8 weights.
    explain: of a classifier, put out (B, K, H, W) class maps too, whose mean over the places is the logits.

    Raises:
        DeployError: another kind of model, layers that were wrapped or quantized, or another number of channels.
    """
    if not isinstance(model, Exportable):
        names = " or ".join(kind.__name__ for kind in Exportable.__args__)
        raise DeployError(f"an exported model must be a {names}, got {type(model).__name__}")
    config = encoder_config(model)
    if len(view.image_mean) != config.num_channels:
        raise DeployError(f"image_mean must have {config.num_channels} values, one per channel, got {view.image_mean}")
    require_plain_layers(model, "exported", DeployError)
    model = copy.deepcopy(model).eval().float().cpu()
    kinds = {SwinHfBackbone: DeployBackbone, SwinHfForSemanticSegmentation: DeploySegmenter}
    of_classifier = ExplainedClassifier if explain else DeployClassifier
    kind = next((form for own, form in kinds.items() if isinstance(model, own)), of_classifier)
    plan = DeployPlan(hidden_act=config.hidden_act, batch_size=view.batch_size, compact=compact)
    with torch.no_grad():
        return kind(model, view, plan).eval().requires_grad_(False)


def encoder_config(model: Exportable) -> SwinHfConfig:
    """The config of the Swin inside."""
    return model.config.backbone_config if isinstance(model, SwinHfForSemanticSegmentation) else model.config


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


class ExplainedClassifier(DeployClassifier):
    """Pixels to logits (B, K), and the class maps (B, K, H, W) that they are the mean of (`swin_hf.explanations`)."""

    def __init__(self, model: SwinHfForImageClassification, view: InputView, plan: DeployPlan):
        super().__init__(model, view, plan)
        self.batch_size = plan.batch_size

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last = self.encoder(pixel_values)[-1]
        tokens = self.to_tokens(last)
        if self.norm_after_pooling and isinstance(self.norm, Normalise):
            factor = self.norm.inverse_deviation(self.norm.centred(pooled(self.to_map(last))))  # (B, 1)
            by_image = self.norm.centred(tokens).view(self.batch_size, -1, tokens.shape[1])
            tokens = (by_image * factor.view(-1, 1, 1)).view(-1, tokens.shape[1])
        else:
            tokens = self.norm(tokens)
        maps = self.map_of_tokens(self.classifier(tokens))
        return pooled(maps), maps.contiguous()


def pooled(feature_map: torch.Tensor) -> torch.Tensor:
    """The mean (B, C) of a map (B, C, H, W), in the only form that XNNPACK takes."""
    return feature_map.mean(dim=(2, 3), keepdim=True).flatten(1)


def flat(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> np.ndarray:
    """Outputs of one batch as an array (B, ..): logits, or all feature maps flattened and concatenated."""
    maps = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return np.concatenate([values.detach().float().flatten(1).numpy() for values in maps], axis=1)
