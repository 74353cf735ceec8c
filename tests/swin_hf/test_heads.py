"""The heads: every loss by hand, masked images of any shape, backbones inside stock models, no parameter without gradient."""

import pytest
import torch
from conftest import KINDS, TINY_VIT
from stock_swin import randomised
from transformers import (
    AutoBackbone,
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from swin_hf import (
    SwinHfBackbone,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfForSemanticSegmentation,
    SwinHfUperNetConfig,
)
from swin_hf.losses_swin_hf import classification_loss, infer_problem_type, masked_reconstruction_loss

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])


def test_label_smoothing_by_hand():
    log_probabilities = LOGITS.log_softmax(dim=1)
    labels, share = torch.tensor([0, 1]), 0.1
    target = torch.full((2, 3), share / 3)
    target[[0, 1], labels] += 1 - share
    expected = -(target * log_probabilities).sum(dim=1).mean()
    torch.testing.assert_close(classification_loss(LOGITS, labels, label_smoothing=share), expected)


def test_soft_labels_are_probabilities_not_a_multi_label_problem():
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])
    expected = -(soft * LOGITS.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(classification_loss(LOGITS, soft), expected)
    torch.testing.assert_close(classification_loss(LOGITS, soft, "single_label_classification"), expected)


def test_multi_label_and_regression_by_hand():
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    p = LOGITS.sigmoid()
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(classification_loss(LOGITS, labels, "multi_label_classification"), expected)
    values = torch.tensor([1.0, 2.0])
    expected = ((LOGITS[:, :1].flatten() - values) ** 2).mean()
    torch.testing.assert_close(classification_loss(LOGITS[:, :1], values, "regression"), expected)


@pytest.mark.parametrize(
    ("labels", "problem_type", "message"),
    [
        (torch.tensor([[0, 1]]), None, r"labels must be class indices of shape \(2,\) or class probabilities"),
        (torch.rand(2, 4), None, r"or class probabilities of shape \(2, 3\), got torch.float32 \(2, 4\)"),
        (torch.tensor([0, 1]), "multi_label_classification", r"multi-label labels must have shape \(2, 3\)"),
        (torch.rand(2), "regression", "regression labels must hold 2 x 3 numbers"),
    ],
)
def test_labels_of_another_kind_are_refused(labels, problem_type, message):
    with pytest.raises(ValueError, match=message):
        classification_loss(LOGITS, labels, problem_type)


def test_classifier_uses_the_configs_problem_type_and_smoothing(make_model):
    pixel_values, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 2])
    model = make_model(label_smoothing=0.2)
    output = model(pixel_values, labels=labels)
    torch.testing.assert_close(output.loss, classification_loss(output.logits, labels, label_smoothing=0.2))
    model = make_model(problem_type="multi_label_classification")
    labels = torch.tensor([[1, 0, 1], [0, 0, 0]])
    output = model(pixel_values, labels=labels)
    torch.testing.assert_close(output.loss, classification_loss(output.logits, labels, "multi_label_classification"))


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem_type"),
    [
        (1, torch.tensor([0.5, -2.0]), "regression"),
        (1, torch.tensor([[0.5], [-2.0]]), "regression"),
        (1, torch.tensor([3, 1]), "regression"),
        (3, torch.tensor([2, 0]), "single_label_classification"),
        (3, torch.tensor([[2], [0]]), "single_label_classification"),
        (3, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), "multi_label_classification"),
        (3, torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), "multi_label_classification"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_the_kind_of_problem_is_inferred_as_in_the_stock_model(tmp_path, version, num_labels, labels, problem_type):
    config, stock_class = [(SwinConfig, SwinForImageClassification), (Swinv2Config, Swinv2ForImageClassification)][version - 1]
    shape = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
    stock = randomised(stock_class(config(**shape, num_labels=num_labels)))
    stock.save_pretrained(tmp_path)
    model, pixel_values = SwinHfForImageClassification.from_pretrained(tmp_path).eval(), torch.randn(2, 3, 16, 16)
    losses = [own(pixel_values, labels=labels).loss for own in (model, stock)]
    gradients = [torch.autograd.grad(loss, own.classifier.weight)[0] for loss, own in zip(losses, (model, stock))]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    assert gradients[0].abs().max() > 0
    assert model.config.problem_type == stock.config.problem_type == problem_type


def test_probabilities_are_told_from_several_labels(make_model):
    pixel_values, several = torch.randn(2, 3, 16, 16), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    model = make_model()
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])
    output = model(pixel_values, labels=soft)
    torch.testing.assert_close(output.loss, -(soft * output.logits.log_softmax(dim=1)).sum(dim=1).mean())
    assert model.config.problem_type == "single_label_classification"
    with pytest.raises(ValueError, match='rows sum to 1, got rows that sum to more; set .*"multi_label_classification"'):
        model(pixel_values, labels=several)
    rounded = torch.rand(2, 1000).softmax(dim=1).bfloat16()
    assert infer_problem_type(rounded, 1000) == "single_label_classification"
    assert infer_problem_type(several.bool(), 3) == "multi_label_classification"


def test_accumulated_gradients_are_averaged_by_the_trainer(make_model, tmp_path):
    # A forward with **kwargs makes the Trainer leave this to the model.
    trainer = Trainer(make_model(), TrainingArguments(output_dir=str(tmp_path), report_to="none"))
    assert not trainer.model_accepts_loss_kwargs
    with pytest.raises(TypeError, match="output_atentions"):
        make_model()(torch.randn(1, 3, 16, 16), output_atentions=True)


@pytest.mark.parametrize(("size", "patch_size"), [((16, 32), 2), ((13, 9), 2), ((16, 16), [2, 2])])
def test_masked_image_modeling_of_any_size(make_config, size, patch_size):
    model = SwinHfForMaskedImageModeling(make_config(encoder_stride=4, patch_size=patch_size)).eval()
    pixel_values = torch.randn(2, 3, *size)
    rows, columns = (-(-side // 2) for side in size)
    mask = torch.rand(2, rows * columns) < 0.5
    output = model(pixel_values, bool_masked_pos=mask)
    assert output.reconstruction.shape == pixel_values.shape
    total, count = 0.0, 0
    for image in range(2):
        for row in range(size[0]):
            for column in range(size[1]):
                if mask[image, (row // 2) * columns + column // 2]:
                    difference = output.reconstruction[image, :, row, column] - pixel_values[image, :, row, column]
                    total, count = total + difference.abs().sum().item(), count + 3
    assert output.loss.item() == pytest.approx(total / count, rel=1e-4)
    with torch.no_grad():  # what lies under the mask cannot be seen
        changed = pixel_values.clone()
        hidden = mask.view(2, rows, columns).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None, : size[0], : size[1]]
        changed = torch.where(hidden, torch.zeros(()), changed)
        torch.testing.assert_close(model(changed, bool_masked_pos=mask).reconstruction, output.reconstruction)
    assert masked_reconstruction_loss(pixel_values, pixel_values, hidden) == 0


def test_wrong_masks_and_strides_are_refused(make_config, make_model):
    model = SwinHfForMaskedImageModeling(make_config(encoder_stride=4))
    with pytest.raises(ValueError, match=r"bool_masked_pos must have shape \(1, 64\) for 8 x 8 patches, got \(1, 60\)"):
        model(torch.randn(1, 3, 16, 16), bool_masked_pos=torch.zeros(1, 60))
    with pytest.raises(ValueError, match="encoder_stride must be .* = 4 x 4 and square, got 32"):
        SwinHfForMaskedImageModeling(make_config())
    with pytest.raises(ValueError, match="use_mask_token=True"):
        make_model().swin(torch.randn(1, 3, 16, 16), torch.zeros(1, 64))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("norm", ["layer", "rms", "batch"])
@pytest.mark.parametrize("head", ["classification", "masked image", "backbone"])
def test_every_parameter_gets_a_gradient(make_config, version, norm, head):
    config = make_config(
        version=version,
        norm=norm,
        encoder_stride=4,
        use_absolute_embeddings=True,
        out_features=["stem", "stage1"],
        depths=[2, 2],
    )
    pixel_values = torch.randn(2, 3, 16, 16)
    if head == "classification":
        model = SwinHfForImageClassification(config)
        loss = model(pixel_values, labels=torch.tensor([0, 1])).loss
    elif head == "masked image":
        model = SwinHfForMaskedImageModeling(config)
        loss = model(pixel_values, bool_masked_pos=torch.rand(2, 64) < 0.5).loss
    else:
        model = SwinHfBackbone(config)
        loss = sum(feature_map.square().mean() for feature_map in model(pixel_values).feature_maps)
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", ["TinyViT", "mixed"])
@pytest.mark.parametrize("head", ["classification", "backbone", "segmentation"])
def test_every_parameter_of_a_hybrid_gets_a_gradient(make_config, kind, head):
    config, pixel_values = make_config(**KINDS[kind], out_features=["stem", "stage2"]), torch.randn(2, 3, 32, 32)
    if head == "classification":
        model = SwinHfForImageClassification(config)
        loss = model(pixel_values, labels=torch.tensor([0, 1])).loss
    elif head == "backbone":
        model = SwinHfBackbone(config)
        loss = sum(feature_map.square().mean() for feature_map in model(pixel_values).feature_maps)
    else:
        model = SwinHfForSemanticSegmentation(
            SwinHfUperNetConfig(backbone_config=config, num_labels=3, use_auxiliary_head=False, hidden_size=8)
        )
        loss = model(pixel_values, labels=torch.randint(0, 3, (2, 32, 32))).loss
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", ["TinyViT", "mixed"])
def test_masked_pixels_stay_hidden_behind_a_convolutional_stem(make_config, kind):
    model = SwinHfForMaskedImageModeling(
        make_config(**KINDS[kind], encoder_stride=2 * KINDS[kind].get("patch_size", 2))
    ).eval()
    patch_size = model.config.patch_size
    grid = -(-27 // patch_size), -(-35 // patch_size)
    masked = torch.rand(2, *grid) < 0.5
    hidden = masked.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None, :27, :35]
    pixel_values = torch.randn(2, 3, 27, 35)
    other = torch.where(hidden, torch.randn(2, 3, 27, 35), pixel_values)
    output = model(pixel_values, bool_masked_pos=masked.flatten(1))
    assert torch.equal(output.reconstruction, model(other, bool_masked_pos=masked.flatten(1)).reconstruction)
    assert not torch.equal(output.reconstruction, model(pixel_values).reconstruction)
    difference = (output.reconstruction - pixel_values).abs() * hidden
    torch.testing.assert_close(output.loss, difference.sum() / hidden.sum() / 3)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_frozen_batch_norms_keep_their_statistics(make_model):
    model = make_model(**KINDS["TinyViT"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(4, 3, 32, 32), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed and all("layers.1" in name for name in changed)


def test_backbone_takes_the_weights_of_a_classifier(make_model, tmp_path):
    model = make_model(depths=[1, 2])
    model.save_pretrained(tmp_path)
    backbone, info = SwinHfBackbone.from_pretrained(tmp_path, out_features=["stage1"], output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"hidden_states_norms"}
    assert not info["unexpected_keys"]
    assert len(backbone.swin.encoder.layers) == 1
    pixel_values = torch.randn(1, 3, 16, 24)
    (feature_map,) = backbone.eval()(pixel_values).feature_maps
    expected = model(pixel_values, output_block_hidden_states=True).block_hidden_states[0]
    expected = torch.nn.functional.layer_norm(expected.permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(feature_map, expected, atol=1e-5, rtol=1e-5)
    assert feature_map.shape == (1, 16, 8, 12)


def test_backbone_counts_stages_from_the_end_too(make_config):
    backbone = SwinHfBackbone(make_config(out_features=None, out_indices=[-2, -1]))
    maps = backbone(torch.randn(1, 3, 16, 16)).feature_maps
    assert [tuple(feature_map.shape) for feature_map in maps] == [(1, 16, 8, 8), (1, 32, 4, 4)]


def test_backbone_carries_a_stock_segmentation_head(make_config):
    stages = {"depths": [2, 1, 2], "num_heads": [2, 2, 4], "out_features": ["stage1", "stage2", "stage3"]}
    backbone = make_config(**stages)
    assert isinstance(AutoBackbone.from_config(backbone), SwinHfBackbone)
    heads = {"hidden_size": 16, "pool_scales": [1, 2], "auxiliary_in_channels": 64, "auxiliary_channels": 8}
    config = UperNetConfig(backbone_config=backbone, num_labels=4, **heads)
    model = UperNetForSemanticSegmentation(config)
    output = model(torch.randn(2, 3, 32, 48), labels=torch.randint(0, 4, (2, 32, 48)))
    assert output.logits.shape == (2, 4, 32, 48)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())


def test_hidden_states_of_every_block(make_model):
    model = make_model()
    output = model(torch.randn(1, 3, 16, 24), output_block_hidden_states=True, output_hidden_states=True)
    assert [tuple(fm.shape) for fm in output.block_hidden_states] == [(1, 16, 8, 12), (1, 32, 4, 6), (1, 32, 4, 6)]
    torch.testing.assert_close(output.block_hidden_states[-1], output.reshaped_hidden_states[-1])


def test_masked_images_pass_the_last_norm_once(make_config):
    config = make_config(**TINY_VIT | {"norm": "batch", "encoder_stride": 8, "norm_after_pooling": True})
    model = SwinHfForMaskedImageModeling(config).train()
    outputs = model(torch.randn(1, 3, 16, 16), bool_masked_pos=torch.rand(1, 16) > 0.5)  # of one mean there are no statistics
    outputs.loss.backward()
    assert model.swin.layernorm.num_batches_tracked == 1 and model.swin.layernorm.weight.grad.any()
    tokens = model.swin.encode(images := torch.randn(2, 3, 16, 16)).hidden_states[-1]
    unpooled = model.eval().swin(images, pooling=False)
    assert unpooled.pooler_output is None
    expected = model.swin.layernorm(model.swin.encode(images).hidden_states[-1].flatten(0, 1)).view(tokens.shape)
    torch.testing.assert_close(unpooled.last_hidden_state, expected)
