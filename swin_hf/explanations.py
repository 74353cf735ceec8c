"""Where a model looks: exact class maps, Grad-CAM and attention rollout, as maps over the image.

None is a file of saved models: what explains a model lies outside of it.
"""

# B batch, H W feature map in patches, C channels, nW windows, N tokens of a window, K classes

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import ExplainedError
from .layers_swin_hf import SwinHfBlock, SwinHfStage, apply_norm
from .modeling_swin_hf import SwinHfForImageClassification, SwinHfModel
from .segmentation_swin_hf import SwinHfForSemanticSegmentation
from .tokens_swin_hf import cut_windows, join_windows
from .windows import pad_map

Explained = SwinHfForImageClassification | SwinHfForSemanticSegmentation


class ExplanationError(ExplainedError):
    """A model has no such explanation; the message says why."""


@torch.no_grad()
def class_maps(model: Explained, pixel_values: torch.Tensor) -> torch.Tensor:
    """What each place of the last map adds to the logits, (B, K, H, W): their mean over the places *is* the logits.

    Of a classifier that ends with a norm, the mean over tokens and a linear layer, as Swin does, this is exact and needs no
    gradient: the last two commute (class activation maps, Zhou et al. 2016, arXiv:1512.04150). Where the norm follows the mean
    (`norm_after_pooling`), the tokens are divided by the deviation of the mean. Of a segmenter these are its logits.

    Raises:
        ExplanationError: the model has no classes.
    """
    if isinstance(model, SwinHfForSemanticSegmentation):
        return model(pixel_values, return_dict=True).logits
    if not isinstance(model.classifier, nn.Linear):
        raise ExplanationError("a model must have classes to be explained, got one without a head")
    tokens = model.swin.encode(pixel_values).stage_maps[-1]  # (B, H, W, C)
    norm, kind = model.swin.layernorm, model.config.norm
    if model.config.norm_after_pooling and not isinstance(norm, _BatchNorm):
        normalised = _normalised_by_the_mean(tokens, norm)
    else:
        normalised = apply_norm(norm, tokens, kind)
    return model.classifier(normalised).permute(0, 3, 1, 2)


def _normalised_by_the_mean(tokens: torch.Tensor, norm: nn.LayerNorm | nn.RMSNorm) -> torch.Tensor:
    """Tokens (B, H, W, C) whose mean is the norm of their mean."""
    mean = tokens.mean(dim=(1, 2), keepdim=True)
    if isinstance(norm, nn.LayerNorm):
        deviation = (mean.var(dim=-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        return (tokens - tokens.mean(dim=-1, keepdim=True)) / deviation * norm.weight + norm.bias
    eps = torch.finfo(tokens.dtype).eps if norm.eps is None else norm.eps
    return tokens / (mean.square().mean(dim=-1, keepdim=True) + eps).sqrt() * norm.weight


@torch.enable_grad()
def grad_cam(
    model: Explained, pixel_values: torch.Tensor, classes: torch.Tensor | None = None, stage: int = -1
) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): what speaks for a class in the last map of a stage, (B, H, W).

    classes: (B,); by default the most probable class of each image. Of a segmenter the score of a class is the sum of its
        logits over the pixels where it is the most probable one (Seg-Grad-CAM, Vinogradova et al. 2020, arXiv:2002.11434).
    stage: counted from 0, or from the end.

    Raises:
        ExplanationError: there is no such stage, or the model has no classes.
    """
    if isinstance(model, SwinHfForImageClassification) and not isinstance(model.classifier, nn.Linear):
        raise ExplanationError("a model must have classes to be explained, got one without a head")
    stages = encoder_of(model).encoder.layers
    if not -len(stages) <= stage < len(stages):
        raise ExplanationError(f"stage must be one of 0 to {len(stages) - 1}, got {stage}")
    seen: list[torch.Tensor] = []

    def watch(_, __, output: tuple) -> tuple:
        seen.append(output[0] if output[0].requires_grad else output[0].requires_grad_())
        return (seen[-1], *output[1:])

    hook = stages[stage].blocks[-1].register_forward_hook(watch)
    try:
        logits = model(pixel_values, return_dict=True).logits
    finally:
        hook.remove()
    score = _score(logits, logits.flatten(2).sum(dim=2).argmax(dim=1) if classes is None and logits.ndim == 4 else classes)
    (gradient,) = torch.autograd.grad(score, seen[0])
    weights = gradient.mean(dim=(1, 2), keepdim=True)
    return (weights * seen[0]).sum(dim=-1).relu().detach()


def _score(logits: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
    """The sum over a batch of what is explained."""
    if logits.ndim == 2:
        return logits.gather(1, (logits.argmax(dim=1) if classes is None else classes)[:, None]).sum()
    own = logits.gather(1, classes.view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:]))[:, 0]
    return (own * (logits.argmax(dim=1) == classes.view(-1, 1, 1))).sum()


@torch.no_grad()
def attention_rollout(model: Explained, pixel_values: torch.Tensor) -> torch.Tensor:
    """Attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928): how much of each place reaches the last map, (B, H, W).

    In each block half comes from the token itself, half from the tokens that it attends to in its window, by the mean of the
    heads; what would come from padding comes from the others. A token of the next stage comes evenly from the group that it
    was made of. The map is that of the first stage with windows: convolutions have no attention, and are taken to leave every
    token where it is. The sum over the places is 1.

    Raises:
        ExplanationError: the model has no window.
    """
    swin = encoder_of(model)
    maps = swin.encode(pixel_values, output_attentions=True)
    if not maps.attentions:
        raise ExplanationError("a model must have windows for attention rollout, got convolutions alone")
    attentions, sizes = list(maps.attentions), [own.shape[1:3] for own in maps.stage_maps[1:]]
    B, (H, W) = len(pixel_values), sizes[-1]
    reach = pixel_values.new_full((B, H, W), 1 / (H * W))
    for number in reversed(range(len(swin.encoder.layers))):
        stage = swin.encoder.layers[number]
        if stage.downsample is not None:
            reach = _before_downsampling(reach, sizes[number])
        reach = _before_blocks(reach, stage, attentions)
        if not attentions:
            break
    return reach


def _before_blocks(reach: torch.Tensor, stage: SwinHfStage, attentions: list[torch.Tensor]) -> torch.Tensor:
    """What reaches through the blocks of a stage, the last of whose weights are at the end of `attentions`."""
    for block in reversed(stage.blocks):
        if isinstance(block, SwinHfBlock):
            reach = (reach + _through_windows(reach, block, attentions.pop())) / 2
    return reach


def _through_windows(reach: torch.Tensor, block: SwinHfBlock, weights: torch.Tensor) -> torch.Tensor:
    """(B, H, W), passed on to the tokens that those of each window attend to, by (B * nW, h, N, N) weights."""
    H, W = reach.shape[1:]
    window, shift = block.fit_window(H, W)
    padded = pad_map(reach[..., None], window)
    real = cut_windows(pad_map(torch.ones_like(reach)[..., None], window), window, shift)  # (B * nW, N, 1)
    shares = weights.float().mean(dim=1) * real.mT
    shares = shares / shares.sum(dim=2, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
    passed = shares.to(reach.dtype).mT @ cut_windows(padded, window, shift)
    return join_windows(passed, window, shift, padded.shape[1:3])[:, :H, :W, 0]


def _before_downsampling(reach: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, H, W), spread evenly over the groups of 2 x 2 tokens, fewer at odd ends, of a map of this (height, width)."""
    for dim, length in ((1, size[0]), (2, size[1])):
        group = torch.arange(length, device=reach.device) // 2
        counts = torch.bincount(group).to(reach.dtype).index_select(0, group)
        shape = [1, 1, 1]
        shape[dim] = length
        reach = reach.index_select(dim, group) / counts.view(shape)
    return reach


def encoder_of(model: Explained) -> SwinHfModel:
    """The Swin inside."""
    return model.backbone.swin if isinstance(model, SwinHfForSemanticSegmentation) else model.swin
