"""Stock models with random weights, the same in every test, and how far two models are apart."""

from functools import partial

import torch
from original_swin import Shape
from transformers import (
    PreTrainedModel,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2Model,
)

from swin_hf import (
    SwinHfBackbone,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfModel,
)

SMALL = {"image_size": 64, "window_size": 4, "depths": [2, 2, 2], "num_heads": [2, 4, 4], "embed_dim": 24, "num_labels": 5}


STOCK = {
    "V1 classifier": (SwinForImageClassification, SwinConfig, SwinHfForImageClassification),
    "V2 classifier": (Swinv2ForImageClassification, Swinv2Config, SwinHfForImageClassification),
    "V1 encoder": (SwinModel, SwinConfig, SwinHfModel),
    "V2 encoder": (Swinv2Model, Swinv2Config, SwinHfModel),
    "V1 masked images": (SwinForMaskedImageModeling, partial(SwinConfig, encoder_stride=16), SwinHfForMaskedImageModeling),
    "V2 masked images": (Swinv2ForMaskedImageModeling, partial(Swinv2Config, encoder_stride=16), SwinHfForMaskedImageModeling),
    "V1 backbone": (SwinBackbone, partial(SwinConfig, out_features=["stage1", "stage3"]), SwinHfBackbone),
}


SHAPES = {  # of weights by their original names
    "V1": Shape(),
    "V1 with windows cut to the last maps": Shape(window_size=8, depths=(2, 2, 2), num_heads=(2, 2, 4)),
    "V2": Shape(version=2),
    "V2 with windows cut to the last maps": Shape(version=2, window_size=8, depths=(2, 2, 2), num_heads=(2, 2, 4)),
    "V2 fine-tuned at another window": Shape(version=2, pretrained_windows=(6, 3)),
}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    for name, parameter in model.named_parameters():
        if "logit_scale" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def make_stock(kind: str) -> tuple[PreTrainedModel, type]:
    stock_class, config, ours = STOCK[kind]
    return randomised(stock_class(config(**SMALL))), ours


@torch.no_grad()
def difference(model, other, pixel_values: torch.Tensor) -> float:
    """The largest difference between outputs."""
    pairs = [outputs_of(one, pixel_values) for one in (model, other)]
    return max((a - b).abs().max().item() for a, b in zip(*pairs, strict=True))


def outputs_of(model, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    outputs = model(pixel_values)
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return list(outputs.feature_maps) if "feature_maps" in outputs else [outputs[0]]
