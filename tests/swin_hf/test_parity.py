"""The models against the stock ones of transformers on the same weights: logits, loss, every stage, gradients.

`python -m pytest tests/swin_hf/test_parity.py -s` prints the largest difference of each quantity.
"""

import pytest
import torch
from transformers import (
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
)

from swin_hf import SwinHfBackbone, SwinHfConfig, SwinHfForImageClassification, SwinHfForMaskedImageModeling

# Sizes at which stock itself is right: no map smaller than a window, and for V2, which rounds the sizes of maps down, none
# that a window seems to span.
CASES = {
    "shifted windows": {"image_size": 64, "window_size": 4, "depths": [2, 2, 2], "num_heads": [2, 4, 4]},
    "one stage": {"image_size": 32, "window_size": 4, "depths": [3], "num_heads": [3]},
    "padded windows": {"image_size": 56, "window_size": 5, "depths": [2, 2], "num_heads": [2, 2]},
    "padded patches": {"image_size": 50, "window_size": 4, "depths": [2, 1], "num_heads": [2, 2]},
    "odd maps": {"image_size": 44, "window_size": 4, "depths": [2, 2], "num_heads": [2, 2]},
    "no qkv bias": {
        "image_size": 32, "patch_size": 2, "window_size": 4, "depths": [2, 2], "num_heads": [2, 4],
        "qkv_bias": False, "hidden_act": "relu", "mlp_ratio": 2.5,
    },
    "rectangle": {"image_size": [32, 64], "patch_size": [4, 2], "window_size": 4, "depths": [2, 2], "num_heads": [2, 4]},
}  # fmt: skip
V1_CASES = CASES | {"absolute positions": CASES["shifted windows"] | {"use_absolute_embeddings": True}}
V2_CASES = CASES | {
    "windows larger than the last map": {"image_size": 64, "window_size": 8, "depths": [2, 2, 2], "num_heads": [2, 4, 4]},
    "pretrained windows": CASES["shifted windows"] | {"pretrained_window_sizes": [8, 8, 4]},
}
ALL_CASES = [(1, name) for name in V1_CASES] + [(2, name) for name in V2_CASES]

STOCK = {
    1: (SwinConfig, SwinForImageClassification, SwinForMaskedImageModeling),
    2: (Swinv2Config, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling),
}
V2_NAMES = {
    "swinv2.": "swin.",
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.self.logit_scale": "attention.logit_scale",
    "attention.self.continuous": "attention.relative_position_bias.continuous",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def our_name(name: str) -> str:
    """The name here of a weight of the stock models; those of V1 are the same."""
    for stock, ours in V2_NAMES.items():
        name = name.replace(stock, ours)
    return name


def our_names(weights: dict) -> dict:
    return {our_name(name): weight for name, weight in weights.items()}


def randomise(model: torch.nn.Module) -> None:
    """Give every weight a say, the biases included; V2's scales stay near 10."""
    for name, parameter in model.named_parameters():
        if "logit_scale" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.15)


def stock_and_ours(version: int, config: dict, head: int = 0, **more):
    config = {"embed_dim": 24, "num_labels": 5, "drop_path_rate": 0.0, "patch_size": 4} | config | more
    ours_class = (SwinHfForImageClassification, SwinHfForMaskedImageModeling)[head]
    stock_config, *stock_classes = STOCK[version]
    stock, ours = stock_classes[head](stock_config(**config)), ours_class(SwinHfConfig(version=version, **config))
    randomise(stock)
    ours.load_state_dict(our_names(stock.state_dict()))
    return stock.eval(), ours.eval()


def largest_difference(actual, expected) -> float:
    assert len(actual) == len(expected)
    return max((a - b).abs().max().item() for a, b in zip(actual, expected))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("version", "case"), ALL_CASES)
def test_outputs_and_gradients_equal_stock(version, case, attention):
    stock, ours = stock_and_ours(version, (V1_CASES if version == 1 else V2_CASES)[case])
    ours.set_attn_implementation(attention)
    if version == 1:
        stock.set_attn_implementation(attention)
    pixel_values, labels = torch.randn(2, 3, *ours.config.image_height_width), torch.tensor([0, 3])
    expected = stock(pixel_values, labels=labels, output_hidden_states=True)
    actual = ours(pixel_values, labels=labels, output_hidden_states=True)
    with torch.no_grad():  # with gradients, a CPU computes attention in plain matrix products whatever is asked for
        inferred = ours(pixel_values, output_hidden_states=True)
    (expected.loss + expected.logits[:, 1].sum()).backward()
    (actual.loss + actual.logits[:, 1].sum()).backward()
    gradients = our_names({name: parameter.grad for name, parameter in stock.named_parameters()})
    differences = {
        "logits": largest_difference([actual.logits], [expected.logits]),
        "loss": largest_difference([actual.loss], [expected.loss]),
        "stages": largest_difference(actual.hidden_states, expected.hidden_states),
        "inference": largest_difference(
            [inferred.logits, *inferred.hidden_states], [expected.logits, *expected.hidden_states]
        ),
        "stage maps": largest_difference(actual.reshaped_hidden_states, expected.reshaped_hidden_states),
    }
    print(f"V{version} {case}, {attention}:", {name: f"{value:.0e}" for name, value in differences.items()}, end="")
    relative = [
        ((parameter.grad - gradients[name]).abs().max() / gradients[name].abs().max().clamp_min(1e-2)).item()
        for name, parameter in ours.named_parameters()
    ]
    print(f" gradients (relative): {max(relative):.0e}")
    assert max(differences.values()) <= 1e-5
    assert max(relative) <= 1e-4


@pytest.mark.parametrize("version", [1, 2])
def test_other_image_sizes_equal_stock(version):
    # One stage: stock V2 forbids itself to shift in stages whose map the configured image spans.
    stock, ours = stock_and_ours(version, CASES["one stage"])
    for size in ((32, 48), (40, 24), (52, 52)):
        pixel_values = torch.randn(1, 3, *size)
        torch.testing.assert_close(ours(pixel_values).logits, stock(pixel_values).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_masked_image_modeling_equals_stock(version):
    stock, ours = stock_and_ours(version, CASES["shifted windows"], head=1, encoder_stride=16)
    pixel_values, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 256) < 0.5
    expected, actual = stock(pixel_values, bool_masked_pos=mask), ours(pixel_values, bool_masked_pos=mask)
    torch.testing.assert_close(actual.reconstruction, expected.reconstruction, rtol=0, atol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=0, atol=1e-5)
    expected.loss.backward()
    actual.loss.backward()
    ours_token, stock_token = ours.swin.embeddings.mask_token, stock.base_model.embeddings.mask_token
    torch.testing.assert_close(ours_token.grad, stock_token.grad, rtol=0, atol=1e-5)


def test_backbone_equals_stock():
    features = {"out_features": ["stem", "stage1", "stage3"]}
    config = {"embed_dim": 24, "patch_size": 4} | CASES["shifted windows"] | features
    stock, ours = SwinBackbone(SwinConfig(**config)), SwinHfBackbone(SwinHfConfig(**config))
    randomise(stock)
    missing, unexpected = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not missing and all("swin.layernorm" in name for name in unexpected)  # which the stock backbone never uses
    pixel_values = torch.randn(2, 3, 128, 96)  # the stock backbone shifts also where a window spans the map
    expected, actual = stock.eval()(pixel_values), ours.eval()(pixel_values)
    assert ours.channels == stock.channels == [24, 24, 96]
    for ours_map, stock_map in zip(actual.feature_maps, expected.feature_maps, strict=True):
        torch.testing.assert_close(ours_map, stock_map, rtol=0, atol=1e-5)
