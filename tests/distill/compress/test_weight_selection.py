"""Weight selection: every weight of a Swin comes back from a larger one that holds each of its channels several times."""

import re
from pathlib import Path

import pytest
import torch
from conftest import KINDS, PLAIN_PROCESSOR, STILL, settings_for
from transformers import ResNetConfig, ResNetForImageClassification

from distill.compress.weight_selection import SelectionError, evenly, is_larger_everywhere, select_weights
from distill.errors import SettingsError
from distill.training.finetune import finetune
from distill.training.models import ModelError
from swin_hf import SwinHfBackbone, SwinHfConfig, SwinHfForImageClassification, SwinHfForMaskedImageModeling
from swin_hf.resizing_swin_hf import resize_bias_table

SMALL = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
CHOICES = {
    **KINDS,
    "absolute positions": {"use_absolute_embeddings": True},
    "BatchNorm": {"norm": "batch", "norm_after_pooling": True},
    "conv downsampling": {"stem": "conv", "downsample": "conv", "patch_size": 4, "image_size": 32},
    "widths of blocks": {
        **{"block_num_heads": [[1], [2, 3]], "block_head_dim": [[4], [8, 2]], "block_value_head_dim": [[6], [3, 4]]},
        "block_mlp_dim": [[24], [9, 40]],
    },
}


def config_of(choices: dict, factor: int = 1) -> SwinHfConfig:
    """A config with `factor` times as many channels of every kind, and as many heads."""
    fields = SMALL | {"num_labels": 3} | choices
    scaled = {"embed_dim": factor * fields["embed_dim"], "num_heads": [factor * heads for heads in fields["num_heads"]]}
    for name in ("block_num_heads", "block_head_dim", "block_value_head_dim", "block_mlp_dim"):
        if name in fields:
            scaled[name] = [[factor * width for width in stage] for stage in fields[name]]
    if factor > 1 and not any("head_dim" in name for name in fields):
        own = SwinHfConfig(**fields)
        scaled["block_head_dim"] = [
            [factor * (own.block_widths(stage, block).head_dim or 1) for block in range(depth)]
            for stage, depth in enumerate(own.depths)
        ]
    if "stage_dims" in fields:
        scaled["stage_dims"] = [factor * dim for dim in fields["stage_dims"]]
    return SwinHfConfig(**fields | scaled)


def random_weights(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor))
    return model


def repeated(tensor: torch.Tensor, axis: int, factor: int, groups: list[int]) -> torch.Tensor:
    """An axis of some groups, one inside the other, with every index of those with a True repeated `factor` times."""
    shape = list(tensor.shape)
    view = tensor.view(*shape[:axis], *(abs(size) for size in groups), *shape[axis + 1 :])
    for offset, size in enumerate(groups):
        if size > 0:  # a negative size stays as it is
            view = view.repeat_interleave(factor, dim=axis + offset)
    return view.reshape(*shape[:axis], -1, *shape[axis + 1 :])


def enlarged(model: torch.nn.Module, larger: torch.nn.Module, factor: int) -> None:
    """Fill a model of `factor` times the channels, so that it holds every channel of the smaller one `factor` times."""
    modules = dict(model.named_modules())
    state, sizes = model.state_dict(), larger.state_dict()
    for name, tensor in state.items():
        for axis in range(tensor.ndim):
            if tensor.shape[axis] == sizes[name].shape[axis]:
                continue
            groups = [tensor.shape[axis]]
            if match := re.match(r"(.*attention)\.([qkvo])_proj", name):
                attention = modules[match[1]]
                of_heads = axis == (1 if match[2] == "o" else 0)
                dim = attention.value_head_dim if match[2] in "vo" else attention.head_dim
                groups = [tensor.shape[axis] // dim, dim] if of_heads else groups
            elif (
                "downsample" in name
                and tensor.shape[axis] % 4 == 0
                and (
                    (name.endswith("reduction.weight") and axis == 1)
                    or (model.config.version == 1 and ".downsample.norm" in name)
                )
            ):
                groups = [-4, tensor.shape[axis] // 4]
            tensor = repeated(tensor, axis, factor, groups)
        sizes[name] = tensor
    larger.load_state_dict(sizes)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_every_weight_comes_from_its_channels(choices, factor):
    model = random_weights(SwinHfForImageClassification(config_of(choices)))
    larger = SwinHfForImageClassification(config_of(choices, factor))
    enlarged(model, larger, factor)
    student = random_weights(SwinHfForImageClassification(config_of(choices)))
    selection = select_weights(student, larger)
    for name, tensor in model.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name
    assert selection.share_of(student) == 1 and selection.num_blocks == selection.of_blocks


def test_channels_are_spread_evenly():
    assert evenly(4, 4).tolist() == [0, 1, 2, 3]
    assert evenly(3, 7).tolist() == [0, 2, 4]
    assert evenly(2, 8).tolist() == [0, 4]


def test_a_model_of_the_same_config_is_copied(make_model):
    larger, student = make_model(), make_model()
    select_weights(student, larger)
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(student(pixels).logits, larger(pixels).logits)


def test_the_first_blocks_are_taken_and_the_others_stay_new():
    larger = random_weights(SwinHfForImageClassification(config_of({"depths": [3, 2]})))
    student = SwinHfForImageClassification(config_of({"depths": [1, 4]}))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    selection = select_weights(student, larger)
    assert (selection.num_blocks, selection.of_blocks) == (3, 5)
    for name, tensor in student.state_dict().items():
        is_new = re.search(r"layers\.1\.blocks\.[23]\.", name)
        assert torch.equal(tensor, before[name] if is_new else larger.state_dict()[name]), name


def test_biases_are_resized_to_the_windows_of_the_student():
    larger = random_weights(SwinHfForImageClassification(config_of({})))
    student = SwinHfForImageClassification(config_of({"window_size": 8, "image_size": 32}))
    select_weights(student, larger)
    name = "swin.encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table"
    expected = resize_bias_table(larger.state_dict()[name], (4, 4), (8, 8))
    assert torch.equal(student.state_dict()[name], expected)


def test_blocks_of_another_kind_or_wider_inside_stay_new():
    larger = SwinHfForImageClassification(config_of({"stage_blocks": ["conv", "window"]}))
    student = SwinHfForImageClassification(config_of({"block_mlp_dim": [[16], [32, 999]]}))
    selection = select_weights(student, larger)
    assert (selection.num_blocks, selection.of_blocks) == (1, 3)
    assert 0 < selection.share_of(student) < 1


def test_heads_are_taken_for_the_same_classes_in_any_order():
    names = dict(enumerate(["a", "b", "c"]))
    larger = random_weights(SwinHfForImageClassification(config_of({"id2label": names})))
    student = SwinHfForImageClassification(config_of({"id2label": {0: "c", 1: "a", 2: "b"}}))
    select_weights(student, larger)
    assert torch.equal(student.classifier.weight, larger.classifier.weight[[2, 0, 1]])
    other = SwinHfForImageClassification(config_of({"id2label": {0: "x", 1: "y", 2: "z"}}))
    before = other.classifier.weight.clone()
    select_weights(other, larger)
    assert torch.equal(other.classifier.weight, before)


def test_heads_of_unnamed_or_twice_named_classes():
    twice = {"id2label": {0: "crane", 1: "crane", 2: "tench"}}
    larger, student = (random_weights(SwinHfForImageClassification(config_of(twice))) for _ in range(2))
    select_weights(student, larger)
    assert torch.equal(student.classifier.weight, larger.classifier.weight)
    larger.config.id2label = {1: "a", 2: "b", 3: "c"}
    fresh = SwinHfForImageClassification(config_of(twice))
    before = fresh.classifier.weight.clone()
    select_weights(fresh, larger)
    assert torch.equal(fresh.classifier.weight, before)


def test_statistics_are_taken_with_their_convolution_alone():
    larger = random_weights(SwinHfForImageClassification(config_of(KINDS["TinyViT"] | {"local_conv": 5})))
    student = SwinHfForImageClassification(config_of(KINDS["TinyViT"]))
    select_weights(student, larger)
    norms = [student.state_dict()[name] for name in student.state_dict() if "local_conv" in name and "running_var" in name]
    assert norms and all(torch.equal(norm, torch.ones_like(norm)) for norm in norms)


def test_a_backbone_and_masked_images_start_with_a_classifiers_weights():
    larger = random_weights(SwinHfForImageClassification(config_of({}, 2)))
    config = config_of({"out_features": ["stage1", "stage2"], "encoder_stride": 4})
    for kind in (SwinHfBackbone, SwinHfForMaskedImageModeling):
        selection = select_weights(student := kind(config), larger)
        assert selection.num_blocks == 3 and selection.share_of(student) > 0.8


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"version": 2}, "both models must be of the same version, got 2 and 1"),
        ({"embed_dim": 32}, r"every stage .* at its width or more, got widths of \[16, 32\] for \[32, 64\]"),
        ({"depths": [1, 1, 1], "num_heads": [1, 2, 4]}, r"got widths of \[16, 32\] for \[16, 32, 64\]"),
    ],
)
def test_models_that_do_not_fit_are_explained(choices, message):
    student, larger = (SwinHfForImageClassification(config_of(own)) for own in (choices, {}))
    with pytest.raises(SelectionError, match=message):
        select_weights(student, larger)


@pytest.mark.parametrize(
    ("choices", "larger", "fits"),
    [
        ({}, {}, True),
        ({"depths": [1, 1]}, {"embed_dim": 32, "depths": [2, 2]}, True),
        ({"window_size": 2}, {}, True),
        ({}, {"embed_dim": 8}, False),
        ({"stage_blocks": ["conv", "window"]}, {}, False),
        ({"stem": "conv"}, {}, False),
        ({"downsample": "conv"}, {}, False),
        ({"local_conv": 3}, {}, False),
        ({"local_conv": 3}, {"local_conv": 5}, False),
        ({"local_conv": 3}, {"local_conv": 3}, True),
        ({"use_absolute_embeddings": True}, {}, False),
        ({"qkv_bias": True}, {"qkv_bias": False}, False),
        ({"num_channels": 1}, {}, False),
        ({"version": 2}, {}, False),
        ({"norm": "rms"}, {}, False),
    ],
)
def test_a_model_is_larger_everywhere_only_if_no_layer_stays_new(choices, larger, fits):
    assert is_larger_everywhere(config_of(larger), config_of(choices)) == fits


def save(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    PLAIN_PROCESSOR.save_pretrained(folder)
    return folder


def test_a_training_starts_with_selected_weights(make_model, image_folder, tmp_path, capsys):
    larger = save(make_model(embed_dim=32, depths=[2, 2]), tmp_path / "larger")
    arguments = ["--dataset", str(image_folder), *STILL, "--init_from", str(larger), "--learning_rate", "1e-12"]
    finetune(settings_for(tmp_path, *arguments, "--num_train_epochs", "1"))
    assert "swin_tiny starts with weights of larger: 3 of 3 blocks, 100% of its weights" in capsys.readouterr().out
    student = SwinHfForImageClassification.from_pretrained(tmp_path / "out")
    expected = SwinHfForImageClassification(student.config)
    select_weights(expected, SwinHfForImageClassification.from_pretrained(larger))
    for name, tensor in expected.state_dict().items():
        if "classifier" not in name:  # the larger one knows other classes
            torch.testing.assert_close(student.state_dict()[name], tensor)


def test_a_checkpoint_that_cannot_be_selected_from_is_explained(make_model, image_folder, tmp_path):
    data = ["--dataset", str(image_folder), "--init_from"]
    with pytest.raises(ModelError, match="--init_from .*nowhere must be a checkpoint of a Swin"):
        finetune(settings_for(tmp_path, *data, str(tmp_path / "nowhere")))
    narrow = save(make_model(embed_dim=8, num_heads=[1, 2]), tmp_path / "narrow")
    with pytest.raises(ModelError, match="--init_from .*narrow: the larger model must have every stage"):
        finetune(settings_for(tmp_path, *data, str(narrow)))
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    other = save(ResNetForImageClassification(config), tmp_path / "resnet")
    with pytest.raises(ModelError, match="--init_from .*resnet must be a checkpoint of a Swin: it is a resnet"):
        finetune(settings_for(tmp_path, *data, str(other)))
    with pytest.raises(SettingsError, match="--init_from must come with a preset as --model, got .*narrow"):
        settings_for(tmp_path, *data, str(narrow), "--model", str(narrow))


def test_a_segmenter_starts_with_the_weights_of_a_classifier(make_model, mask_folder, tmp_path, capsys):
    larger = save(make_model(embed_dim=32, depths=[2, 2]), tmp_path / "larger")
    arguments = ["--dataset", str(mask_folder), "--task", "semantic-segmentation", *STILL, "--num_train_epochs", "1"]
    arguments += ["--global_batch_size", "4"]
    finetune(settings_for(tmp_path, *arguments, "--init_from", str(larger), "--head_args", "{hidden_size: 8}"))
    assert "starts with weights of larger: 3 of 3 blocks" in capsys.readouterr().out
