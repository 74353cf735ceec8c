"""Configs for weights of others: ratios of hidden widths, told or found from the shapes."""

import json

import pytest
import torch
from conftest import KINDS
from torch import nn

from swin_hf import SwinHfImageProcessorPil
from swin_hf.convert import convert, load
from swin_hf.weight_config import ratio_of


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("kind", ["V1", "V2", "TinyViT"])
def test_ratios_that_give_no_whole_width_come_back_from_timm(make_model, tmp_path, kind, told):
    """`int(2.3 * 12) = 27` and `int(2.3 * 24) = 55`, of which neither alone gives the ratio."""
    model = make_model(**KINDS[kind] | {"embed_dim": 12, "mlp_ratio": 2.3, "mbconv_ratio": 3.3})
    for name, parameter in model.named_parameters():
        if name.endswith("bias_table"):
            nn.init.zeros_(parameter)  # timm's TinyViT has no others than symmetric ones
    model.save_pretrained(tmp_path / "ours")
    SwinHfImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "timm", to="timm")
    described = json.loads((tmp_path / "timm" / "config.json").read_text())
    ratios = {"mlp_ratio": 2.3} | ({"mbconv_expand_ratio": 3.3} if kind == "TinyViT" else {})
    assert described["model_args"].items() >= ratios.items()
    if not told:
        described["model_args"] = {name: value for name, value in described["model_args"].items() if name not in ratios}
        (tmp_path / "timm" / "config.json").write_text(json.dumps(described))
    again, _, _ = load(tmp_path / "timm")
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(again(images).logits, model(images).logits)
    if told:
        assert again.config.mlp_ratio == 2.3


def test_the_ratio_of_hidden_widths():
    assert ratio_of([(48, 12), (96, 24)]) == 4.0
    assert ratio_of([(27, 12), (55, 24)], told=2.3) == 2.3
    found = ratio_of([(29, 100), (58, 200)])  # int(0.29 * 100) is 28: 0.29 is a little less
    assert (int(found * 100), int(found * 200)) == (29, 58)
    assert ratio_of([(27, 12)], told=4.0) == 2.25
