"""Layers that others wrap, replace, quantize or synchronise: the models ask their config and their input, not the layers."""

import copy
import warnings

import pytest
import torch
from conftest import TINY_VIT
from torch import nn

from distill.pruning.apply import apply_plan
from distill.pruning.plan import whole_plan
from distill.pruning.targets import PruningError
from edge.deploy.form import DeployError, deploy
from edge.deploy.view import InputView
from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfForSemanticSegmentation,
    SwinHfUperNetConfig,
)
from swin_hf.convert import ConversionError
from swin_hf.weight_export import to_timm, to_transformers

IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


class Adapter(nn.Module):
    """A low-rank change beside a layer (Hu et al. 2021, arXiv:2106.09685), which hides all of the layer's attributes."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, share: float = 0.0):
        super().__init__()
        self.frozen = [layer.requires_grad_(False)]  # in a list: not even its parameters can be found
        is_linear = isinstance(layer, nn.Linear)
        kind = nn.Linear if is_linear else nn.Conv2d
        sizes = (layer.in_features, layer.out_features) if is_linear else (layer.in_channels, layer.out_channels)
        options = {} if is_linear else {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding")}
        self.down = kind(sizes[0], 2, bias=False, **options)
        self.up = kind(2, sizes[1], bias=False, **({} if is_linear else {"kernel_size": 1}))
        nn.init.constant_(self.up.weight, share)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.frozen[0](inputs) + self.up(self.down(inputs))


class PackedLinear(nn.Module):
    """A linear layer with 8-bit weights, whose `weight` is bytes of another shape, as libraries for quantization have it."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        scale = layer.weight.detach().abs().max() / 127
        self.register_buffer("weight", (layer.weight.detach() / scale).round().to(torch.int8).view(torch.uint8).reshape(-1, 1))
        self.shape, self.scale, self.bias = layer.weight.shape, scale, layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = self.weight.view(torch.int8).view(self.shape).to(inputs.dtype) * self.scale.to(inputs.dtype)
        return nn.functional.linear(inputs, weight, self.bias)


def replaced(model: nn.Module, kinds: tuple[type, ...], wrap) -> nn.Module:
    """A copy in which each layer of these kinds is `wrap(layer)`."""
    model = copy.deepcopy(model)
    for name, layer in [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]:
        model.set_submodule(name, wrap(layer))
    return model


@pytest.fixture(params=["classifier V1", "classifier V2", "masked images", "backbone", "segmentation"])
def model(request, make_config):
    torch.manual_seed(0)
    version = 1 if request.param == "classifier V1" else 2
    config: SwinHfConfig = make_config(version=version, encoder_stride=4, out_features=["stage1", "stage2"])
    if request.param == "segmentation":
        heads = {"hidden_size": 16, "pool_scales": [1, 2], "use_auxiliary_head": False, "num_labels": 3}
        return SwinHfForSemanticSegmentation(SwinHfUperNetConfig(backbone_config=config, **heads)).eval()
    kinds = {"masked images": SwinHfForMaskedImageModeling, "backbone": SwinHfBackbone}
    return kinds.get(request.param, SwinHfForImageClassification)(config).eval()


def first_of(output) -> torch.Tensor:
    return output.feature_maps[0] if "feature_maps" in output else output[0]


def test_adapters_around_every_layer_change_nothing_and_learn(model):
    wrapped = replaced(model, (nn.Linear, nn.Conv2d), Adapter)
    torch.testing.assert_close(first_of(wrapped(IMAGES)), first_of(model(IMAGES)))
    learning = replaced(model, (nn.Linear, nn.Conv2d), lambda layer: Adapter(layer, share=0.1))
    outputs = learning.train()(IMAGES)
    sum(one.square().mean() for one in outputs.get("feature_maps", outputs[:1])).backward()
    grown = [name for name, own in learning.named_parameters() if name.endswith("down.weight") and own.grad.any()]
    assert len(grown) == sum(isinstance(layer, Adapter) for layer in learning.modules())


def test_packed_layers_round_as_their_values_do(model):
    rounded = copy.deepcopy(model)
    for layer in rounded.modules():
        if isinstance(layer, nn.Linear):
            scale = layer.weight.detach().abs().max() / 127
            layer.weight.data = (layer.weight.detach() / scale).round() * scale
    with torch.no_grad():
        torch.testing.assert_close(
            first_of(replaced(model, (nn.Linear,), PackedLinear)(IMAGES)), first_of(rounded(IMAGES)), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_dynamic_quantization_stays_close(make_model, version, attention):
    model = make_model(version=version, attn_implementation=attention)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.ao moves to torchao
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert sum(isinstance(layer, torch.ao.nn.quantized.dynamic.Linear) for layer in quantized.modules()) > 10
    with torch.no_grad():
        expected, logits = model(IMAGES).logits, quantized(IMAGES).logits
        assert (logits - expected).abs().max() < 0.1 * expected.abs().max()
        assert quantized(IMAGES, output_attentions=True).attentions[0].shape[1:] == (2, 16, 16)


@pytest.mark.parametrize(
    "changes", [{"norm": "batch"}, {"norm": "batch", "version": 2}, TINY_VIT], ids=["V1", "V2", "TinyViT"]
)
def test_synchronised_batch_norms_compute_the_same(make_config, changes):
    config = make_config(**changes, drop_path_rate=0.0, out_features=["stem", "stage1", "stage2"])
    for kind in (SwinHfForImageClassification, SwinHfBackbone):
        model = kind(config).train()
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
        assert not any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in synchronised.modules())
        for mode in (True, False):
            outputs = [first_of(own.train(mode)(IMAGES)) for own in (model, synchronised)]
            torch.testing.assert_close(*outputs)
        torch.testing.assert_close(model.state_dict(), synchronised.state_dict())
        torch.testing.assert_close(model.resize(24).state_dict(), synchronised.resize(24).state_dict())
    view = InputView(height=16, width=16, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    pixels = torch.rand(1, 3, 16, 16)
    for own, expected in zip(deploy(synchronised, view)(pixels), model((pixels - 0.5) / 0.5).feature_maps, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


def test_fused_batch_norms_compute_the_same(make_model):
    model = make_model(version=2, norm="batch")
    merging = "swin.encoder.layers.0.downsample"
    fused = torch.ao.quantization.fuse_modules(model, [[f"{merging}.reduction", f"{merging}.norm"]])
    assert isinstance(fused.get_submodule(f"{merging}.norm"), nn.Identity)
    torch.testing.assert_close(fused(IMAGES).logits, model(IMAGES).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("normalise", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_normalised_weights_compute_the_same(make_model, normalise):
    model = make_model(version=2)
    other = copy.deepcopy(model)
    for layer in other.modules():
        if type(layer) in (nn.Linear, nn.Conv2d):
            normalise(layer)
    torch.testing.assert_close(other(IMAGES).logits, model(IMAGES).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="must be as its config makes them to be resized, got "):
        other.resize(24)


def test_what_reads_weights_refuses_replaced_layers_by_name(make_model):
    model = replaced(make_model(), (nn.Conv2d,), Adapter)
    view = InputView(height=16, width=16, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    plan = whole_plan(model.config)
    for work, error in (
        (lambda: model.resize(32), ValueError),
        (lambda: deploy(model, view), DeployError),
        (lambda: apply_plan(model, plan), PruningError),
        (lambda: to_transformers(model), ConversionError),
        (lambda: to_timm(model), ConversionError),
    ):
        with pytest.raises(error, match="got swin.embeddings.patch_embeddings.projection of type Adapter; do so before"):
            work()
