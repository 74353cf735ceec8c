"""Heads and losses of semantic segmentation: worked by hand, against stock UperNet, and saved and loaded."""

import pytest
import torch
from conftest import TINY, TINY_VIT
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from swin_hf import SwinHfForSemanticSegmentation, SwinHfUperNetConfig
from swin_hf.losses_swin_hf import dice_loss, segmentation_loss

IGNORED = 255
MAPS = {"out_features": ["stage1", "stage2"]}


@pytest.fixture
def make_segmenter():
    def make(backbone: dict | None = None, **head) -> SwinHfForSemanticSegmentation:
        settings = {"num_labels": 3, "hidden_size": 8, "pool_scales": [1, 2], "use_auxiliary_head": False} | head
        return SwinHfForSemanticSegmentation(
            SwinHfUperNetConfig(backbone_config=TINY | MAPS | (backbone or {}), **settings)
        ).eval()

    return make


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    """(1, K, 1, W) logits with these K probabilities for each of W pixels."""
    return torch.tensor(probabilities).log().T[None, :, None]


def test_losses_of_pixels_by_hand():
    logits = logits_of([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])
    labels = torch.tensor([[[0, 1, 0, IGNORED]]])
    own = -torch.tensor([0.9, 0.4, 0.2]).log()
    assert segmentation_loss(logits, labels).item() == pytest.approx(own.mean().item())
    weighted = segmentation_loss(logits, labels, class_weights=torch.tensor([1.0, 3.0]))
    assert weighted.item() == pytest.approx(((own[0] + 3 * own[1] + own[2]) / 5).item())
    # Of the pixels that count, two have 0.5 or less for their class; if no pixel has so little, one does.
    assert segmentation_loss(logits, labels, ohem_threshold=0.5).item() == pytest.approx(own[1:].mean().item())
    assert segmentation_loss(logits, labels, ohem_threshold=0.1).item() == pytest.approx(own[2].item())
    # Class 0: twice 0.9 + 0.2 over what was predicted, 0.9 + 0.6 + 0.2, and the 2 pixels that are it.
    dice = 1 - (2 * 1.1 / (1.7 + 2) + 2 * 0.4 / (0.1 + 0.4 + 0.8 + 1)) / 2
    assert dice_loss(logits, labels).item() == pytest.approx(dice)
    both = segmentation_loss(logits, labels, dice_weight=0.5)
    assert both.item() == pytest.approx(own.mean().item() + 0.5 * dice)


def test_one_pixel_in_sixteen_is_always_hard():
    own = torch.linspace(0.6, 0.99, 40)
    logits = torch.stack([own, 1 - own]).log()[None, :, None]
    labels = torch.zeros(1, 1, 40, dtype=torch.long)
    labels[..., 35:] = IGNORED
    hardest = -own[:2].log()  # 35 count
    assert segmentation_loss(logits, labels, ohem_threshold=0.5).item() == pytest.approx(hardest.mean().item(), rel=1e-5)


def test_images_without_a_pixel_that_counts_teach_nothing():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.full((2, 4, 4), IGNORED)
    for settings in ({}, {"ohem_threshold": 0.7}, {"dice_weight": 1.0}, {"class_weights": torch.ones(3)}):
        loss = segmentation_loss(logits, labels, **settings)
        loss.backward()
        assert loss.item() == 0 and not logits.grad.any()
    unweighted = torch.zeros(2, 4, 4, dtype=torch.long)
    assert segmentation_loss(logits, unweighted, class_weights=torch.tensor([0.0, 1.0, 1.0])).item() == 0


def test_loss_is_that_of_pytorch():
    logits, labels = torch.randn(2, 5, 8, 6), torch.randint(0, 5, (2, 8, 6))
    labels[:, :3] = IGNORED
    for weights in (None, torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0])):
        expected = nn.functional.cross_entropy(logits, labels, weights, ignore_index=IGNORED)
        torch.testing.assert_close(segmentation_loss(logits, labels, class_weights=weights), expected)


@pytest.mark.parametrize("kind", [{}, TINY_VIT, {"version": 2}], ids=["V1", "TinyViT", "V2"])
@pytest.mark.parametrize("size", [(32, 32), (40, 28)])
def test_the_light_head_learns_reloads_and_is_resized(make_segmenter, tmp_path, kind, size):
    model, images = make_segmenter(kind, decode_head="light", hidden_size=12), torch.randn(2, 3, *size)
    logits = model(images).logits
    assert logits.shape == (2, 3, *size)
    labels = torch.randint(0, 3, (2, *size))
    model.train()(images, labels=labels).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.eval().save_pretrained(tmp_path)
    reloaded = SwinHfForSemanticSegmentation.from_pretrained(tmp_path)
    assert torch.equal(reloaded(images).logits, model(images).logits)
    assert model.resize(image_size=48)(images).logits.shape == (2, 3, *size)


def test_the_light_head_by_its_layers(make_segmenter):
    model = make_segmenter(decode_head="light", hidden_size=4, resize_logits=False)
    for norm in model.decode_head.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2)
    images = torch.randn(1, 3, 32, 32)
    large, small = model.backbone(images).feature_maps
    head, relu = model.decode_head, nn.functional.relu
    context = head.context.weight[..., 0, 0] @ small[0].mean(dim=(1, 2)) + head.context.bias
    summed = head.smooth[1](relu(head.laterals[1](small) + context[None, :, None, None]))
    enlarged = nn.Upsample(scale_factor=2, mode="bilinear")(summed)
    expected = head.classifier(head.smooth[0](relu(head.laterals[0](large) + enlarged)))
    torch.testing.assert_close(model(images).logits, expected)


def test_the_auxiliary_head_has_its_weight_and_the_same_loss(make_segmenter):
    stages = {"depths": [1, 1, 1], "num_heads": [1, 2, 2], "out_features": ["stage1", "stage2", "stage3"]}
    loss, weights = {"ohem_threshold": 0.9, "dice_weight": 0.3}, torch.tensor([1, 2, 0.5])
    enlarge = nn.Upsample((32, 32), mode="bilinear")
    model = make_segmenter(stages, use_auxiliary_head=True, auxiliary_channels=4, auxiliary_loss_weight=0.7, **loss)
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    maps = model.backbone(images).feature_maps
    parts = [
        segmentation_loss(enlarge(head(maps)), labels, class_weights=weights, **loss)
        for head in (model.decode_head, model.auxiliary_head)
    ]
    torch.testing.assert_close(model(images, labels=labels, class_weights=weights).loss, parts[0] + 0.7 * parts[1])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"decode_head": "lite"}, "decode_head must be uper or light, got 'lite'"),
        ({"ohem_threshold": 0.0}, "ohem_threshold must lie above 0 and up to 1, got 0.0"),
        ({"dice_weight": -1}, "dice_weight must be 0 or more, got -1"),
    ],
)
def test_impossible_heads_and_losses_are_refused(make_segmenter, field, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        make_segmenter(**field)
