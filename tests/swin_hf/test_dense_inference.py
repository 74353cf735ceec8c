"""Sliding windows, scales and mirror images against plain loops."""

import pytest
import torch
from conftest import TINY
from torch import nn

from swin_hf import SwinHfForSemanticSegmentation, SwinHfUperNetConfig
from swin_hf.dense_inference import class_probabilities, sliding_logits


class Pointwise(nn.Module):
    """A model that judges each pixel by itself, in logits of half the size if `coarse`."""

    def __init__(self, coarse: bool = False):
        super().__init__()
        self.weight, self.coarse, self.seen = torch.randn(4, 3), coarse, []

    def forward(self, pixel_values):
        self.seen.append(tuple(pixel_values.shape[2:]))
        logits = torch.einsum("kc,bchw->bkhw", self.weight, pixel_values)
        return type("Output", (), {"logits": nn.functional.avg_pool2d(logits, 2) if self.coarse else logits})


class Placed(Pointwise):
    """Its logits depend on the place in what it is shown."""

    def forward(self, pixel_values):
        logits = super().forward(pixel_values).logits
        return type("Output", (), {"logits": logits + torch.arange(float(logits.shape[3]))})


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [((9, 14), (4, 6), (3, 4)), ((6, 6), (8, 4), (8, 2)), ((5, 7), (5, 7), (5, 7))],
)
def test_windows_cover_the_image_and_are_averaged(size, window, stride):
    images, model = torch.randn(2, 3, *size), Placed()
    total, count = torch.zeros(2, 4, *size), torch.zeros(size)
    for top in {*range(0, max(size[0] - window[0], 0), stride[0]), max(size[0] - window[0], 0)}:
        for left in {*range(0, max(size[1] - window[1], 0), stride[1]), max(size[1] - window[1], 0)}:
            part = (slice(None), slice(None), slice(top, top + window[0]), slice(left, left + window[1]))
            total[part] += model(images[part]).logits
            count[part[2:]] += 1
    assert count.min() >= 1
    torch.testing.assert_close(sliding_logits(model, images, window, stride), total / count)
    alone = Pointwise()
    torch.testing.assert_close(sliding_logits(alone, images, window, stride), alone(images).logits)


def test_scales_and_mirror_images_are_averaged():
    images, model = torch.randn(1, 3, 8, 10), Placed()
    found = class_probabilities(model, images, scales=(1.0, 2.0), flip=True)
    assert set(model.seen) == {(8, 10), (16, 20)} and len(model.seen) == 4
    total = 0
    for factor in (1, 2):
        scaled = nn.Upsample(scale_factor=factor, mode="bilinear")(images) if factor > 1 else images
        for logits in (model(scaled).logits, model(scaled.flip(3)).logits.flip(3)):
            total = total + nn.Upsample((8, 10), mode="bilinear")(logits).softmax(dim=1)
    torch.testing.assert_close(found, total / 4)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, 8, 10))


def test_logits_of_another_size_are_enlarged():
    assert class_probabilities(Pointwise(coarse=True), torch.randn(1, 3, 8, 8), window=(4, 4)).shape == (1, 4, 8, 8)


def test_a_window_as_large_as_the_image_changes_nothing():
    backbone = TINY | {"out_features": ["stage1", "stage2"]}
    config = SwinHfUperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, num_labels=3)
    model, images = SwinHfForSemanticSegmentation(config).eval(), torch.randn(1, 3, 20, 28)
    expected = model(images).logits.softmax(dim=1)
    for window in (None, (20, 28), (40, 40)):
        torch.testing.assert_close(class_probabilities(model, images, window), expected)


def test_impossible_windows_and_scales_are_refused():
    with pytest.raises(ValueError, match=r"stride must be positive and no larger than the window \(4, 4\), got \(5, 4\)"):
        class_probabilities(Pointwise(), torch.zeros(1, 3, 8, 8), window=(4, 4), stride=(5, 4))
    for scales in ((), (0.0,), (1.0, -1.0)):
        with pytest.raises(ValueError, match="scales must be positive numbers"):
            class_probabilities(Pointwise(), torch.zeros(1, 3, 8, 8), scales=scales)
