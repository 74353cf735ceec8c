"""Detectors of transformers over our backbones: loss and boxes are finite, and every weight of the backbone learns."""

import pytest
import torch
import transformers
from conftest import KINDS

from swin_hf import SwinHfConfig

DECODER = {"d_model": 32, "num_queries": 5, "num_labels": 3, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "decoder_layers": 2}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
PYRAMID = {"encoder_hidden_dim": 32, "decoder_in_channels": [32, 32], "num_feature_levels": 2, "feat_strides": [8, 16]}
PYRAMID |= {"num_denoising": 0, "encode_proj_layers": [1]}
DETECTORS = {  # the name of the classes, without Config and ForObjectDetection: its own settings, and the maps that it takes
    "Detr": ({"encoder_layers": 1, "use_timm_backbone": False}, ["stage2"]),
    "ConditionalDetr": ({"encoder_layers": 1, "use_timm_backbone": False}, ["stage2"]),
    "DeformableDetr": ({"encoder_layers": 1, "use_timm_backbone": False, "num_feature_levels": 2}, ["stage1", "stage2"]),
    "RTDetr": (PYRAMID, ["stage1", "stage2"]),
    "DFine": (PYRAMID, ["stage1", "stage2"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_of_transformers_train_over_every_backbone(make_config, name, kind):
    settings, maps = DETECTORS[name]
    backbone = make_config(**KINDS[kind], out_features=maps)
    assert isinstance(backbone, SwinHfConfig)
    if "encoder_hidden_dim" in settings:
        settings = settings | {"encoder_in_channels": [backbone.stage_dim(stage) for stage in (0, 1)]}
    config = getattr(transformers, f"{name}Config")(backbone_config=backbone, **DECODER, **HEADS, **settings)
    torch.manual_seed(0)
    detector = getattr(transformers, f"{name}ForObjectDetection")(config).train()
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.25, 0.5]])}] * 2
    outputs = detector(pixel_values=torch.rand(2, 3, *backbone.image_height_width), labels=labels)
    outputs.loss.backward()
    assert outputs.pred_boxes.shape == (2, 5, 4)
    assert torch.isfinite(outputs.loss) and torch.isfinite(outputs.pred_boxes).all()
    inside = {key: weight for key, weight in detector.named_parameters() if "backbone" in key and weight.requires_grad}
    assert inside and not [key for key, weight in inside.items() if weight.grad is None]
    assert not [key for key, weight in inside.items() if weight.dim() == 4 and not weight.grad.any()]  # convolutions
