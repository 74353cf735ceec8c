"""Distillation of features: maps of any architecture, pairs of maps, projectors that are trained and left behind."""

import json
from pathlib import Path

import pytest
import torch
from conftest import PLAIN_PROCESSOR, STILL, StopAfter, settings_for
from safetensors.torch import load_file
from test_processes import finetune_with_processes
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    HieraConfig,
    HieraForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

import distill.training.teaching
from distill.compress.feature_maps import FeatureError, WithMaps, as_map
from distill.compress.teachers import Classifier, TeacherError, Teachers, load_classifier, load_segmenter
from distill.data.normalisation import Normalisation
from distill.data.transforms import TransformSettings
from distill.errors import SettingsError, TrainingStopped
from distill.training.cache_writing import cache_teacher
from distill.training.finetune import finetune
from distill.training.settings import FinetuneSettings
from distill.training.tasks.classification import ImageClassification
from distill.training.tasks.distillation import Distillation, DistillationSettings, compare_features
from distill.training.tasks.features import FEATURE_LOSSES, pairs_of_maps
from distill.training.teacher_cache import TeacherCache
from distill.training.teaching import taught
from swin_hf import (
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForSemanticSegmentation,
    SwinHfImageProcessorPil,
    SwinHfUperNetConfig,
)
from swin_hf.distillation_losses import normalised_features

NAMES = {0: "blue", 1: "green", 2: "red"}
SMALL = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 4}
OTHERS = {
    "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=16, id2label=NAMES, **SMALL)),
    "DeiT": lambda: DeiTForImageClassification(DeiTConfig(image_size=16, id2label=NAMES, **SMALL)),
    "ConvNeXt": lambda: ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, id2label=NAMES)
    ),
    "ResNet": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=NAMES)
    ),
    "Swin": lambda: SwinForImageClassification(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, id2label=NAMES)
    ),
}
SIZES = {
    **{"ViT": [(12, 4)], "DeiT": [(12, 4)], "ConvNeXt": [(8, 8), (16, 4)], "ResNet": [(8, 4), (16, 2)]},
    "Swin": [(8, 8), (16, 4)],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_maps_of_any_architecture(kind):
    model = WithMaps(OTHERS[kind]().eval())
    model(pixel_values=torch.rand(2, 3, 16, 16))
    assert [(own.shape[1], own.shape[2]) for own in model.maps] == SIZES[kind]
    assert all(own.shape[2] == own.shape[3] for own in model.maps)


def test_maps_with_their_channels_last_are_turned():
    config = HieraConfig(image_size=[64, 64], embed_dim=8, num_heads=[1, 2, 2, 4], depths=[1, 1, 1, 1], id2label=NAMES)
    model = HieraForImageClassification(config).eval()
    recorded, pixels = WithMaps(model), torch.rand(2, 3, 64, 64)
    recorded(pixel_values=pixels)
    states = model(pixels, output_hidden_states=True).reshaped_hidden_states
    assert [tuple(own.shape[1:]) for own in recorded.maps] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    assert torch.equal(recorded.maps[-1], states[-1].permute(0, 3, 1, 2))
    maps = torch.rand(1, 16, 16, 8)
    assert as_map(maps, 64, 64).shape == (1, 8, 16, 16) and as_map(maps, 64, 32, tokens=torch.rand(1, 128, 16)) is maps
    with pytest.raises(FeatureError, match="Odd must return feature maps of its images"):
        as_map(torch.rand(1, 5, 7, 9), 64, 64, "Odd")


@pytest.mark.parametrize("kind", FEATURE_LOSSES)
def test_images_may_grow_though_small_ones_have_stages_of_one_size(kind, featured, tmp_path):
    config = "{patch_size: 4, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1], embed_dim: 8, window_size: 2}"
    arguments = [*featured, "--image_size", "32", "--initial_image_size", "16", "--model_args", config]
    assert finetune(settings_for(tmp_path, *arguments, "--feature_loss", kind))["num_test_images"] > 0


def test_tokens_lie_in_rows_after_the_token_of_the_class():
    tokens = torch.arange(1 + 3 * 6).view(1, -1, 1)  # 3 rows of 6 positions
    assert torch.equal(as_map(tokens, 24, 48), torch.arange(1, 19).view(1, 1, 3, 6))


def test_maps_of_a_swin_are_those_before_its_downsampling(make_model):
    model = make_model(depths=[1, 2])
    recorded, pixels = WithMaps(model), torch.rand(2, 3, 16, 16)
    recorded(pixel_values=pixels)
    blocks = model(pixels, output_block_hidden_states=True).block_hidden_states
    assert len(recorded.maps) == 2 and torch.equal(recorded.maps[0], blocks[0]) and torch.equal(recorded.maps[1], blocks[2])


def test_a_model_without_hidden_states_is_named():
    class Plain(torch.nn.Module):
        def forward(self, pixel_values, output_hidden_states):
            return type("Output", (), {"logits": pixel_values.mean((2, 3))})

    with pytest.raises(FeatureError, match="Plain must return hidden states"):
        WithMaps(Plain())(pixel_values=torch.rand(1, 3, 4, 4))


def test_maps_are_paired_by_their_resolution():
    student = [torch.zeros(1, 1, side, side) for side in (16, 8, 4)]
    teacher = [torch.zeros(1, 1, side, side) for side in (28, 14, 7)]
    assert pairs_of_maps(student, teacher, every_stage=True) == [(0, 1), (1, 2), (2, 2)]
    assert pairs_of_maps(student, teacher[:1], every_stage=True) == [(0, 0), (1, 0), (2, 0)]
    assert pairs_of_maps(student, teacher, every_stage=False) == [(2, 2)]


@pytest.mark.parametrize(("own", "other"), [(8, 12), (12, 8), (8, 8)])
def test_projectors_are_orthogonal(own, other):
    weight = FEATURE_LOSSES["vkd"].projector(own, other).weight
    gram = weight.T @ weight if own <= other else weight @ weight.T
    torch.testing.assert_close(gram, torch.eye(min(own, other)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", FEATURE_LOSSES)
@pytest.mark.parametrize("other", OTHERS)
def test_any_teacher_teaches_features(kind, other, make_model):
    """Two teachers at once, of other sizes and classes, from 16 and 32 pixels."""
    still = TransformSettings(randaugment_ops=0, color_jitter=0, random_erasing=0, mixup_alpha=0, cutmix_alpha=0)
    own, student = ImageClassification(PLAIN_PROCESSOR, [*NAMES.values()], still), make_model(drop_path_rate=0.0)
    teachers = Teachers([Classifier(make_model(num_labels=7), PLAIN_PROCESSOR), Classifier(OTHERS[other](), PLAIN_PROCESSOR)])
    settings = DistillationSettings(kd_loss="none", feature_loss=kind, feature_weight=2.0)
    features = compare_features(kind, student, own.normalise, teachers, 16)
    assert not student.training and features.projectors[0][0].weight.requires_grad
    objective = Distillation(own, teachers, settings, features)
    pixels, targets = torch.rand(4, 3, 16, 16), torch.tensor([0, 2, 1, 0])
    output = objective(student.train(), pixels, targets)
    assert "kd_loss" not in output.parts
    torch.testing.assert_close(output.loss, output.parts["task_loss"] + 2 * output.parts["feature_loss"])
    output.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in features.parameters() if parameter.ndim > 1)
    assert not any(parameter.requires_grad for parameter in teachers.parameters())


def test_feature_loss_is_that_of_the_last_maps(make_model):
    still = TransformSettings(randaugment_ops=0, color_jitter=0, random_erasing=0, mixup_alpha=0, cutmix_alpha=0)
    own, student = ImageClassification(PLAIN_PROCESSOR, [*NAMES.values()], still), make_model(drop_path_rate=0.0).train()
    model = OTHERS["ResNet"]().eval()  # 2 x 2 positions, where the student has 4 x 4
    teachers = Teachers([Classifier(model, PLAIN_PROCESSOR)])
    features = compare_features("vkd", student, own.normalise, teachers, 16)
    settings = DistillationSettings(label_weight=0.0, kd_loss="none", feature_loss="vkd")
    pixels = torch.rand(4, 3, 16, 16)
    output = Distillation(own, teachers, settings, features)(student, pixels, torch.tensor([0, 2, 1, 0]))
    values = (pixels - 0.5) / 0.5
    maps = student(values, output_block_hidden_states=True).block_hidden_states[-1]
    averaged = maps.unflatten(3, (2, 2)).mean(4).unflatten(2, (2, 2)).mean(3)
    projected = torch.einsum("oc,bchw->bohw", features.projectors[0][0].weight, averaged)
    expected = normalised_features(projected, model(values, output_hidden_states=True).hidden_states[-1])
    torch.testing.assert_close(output.loss, expected)


@pytest.fixture
def featured(image_folder, checkpoint):
    """Arguments for learning the features of `checkpoint`."""
    data = ["--dataset", str(image_folder), "--teacher", str(checkpoint), "--num_pictures", "0", *STILL]
    return [*data, "--model_args", "{drop_path_rate: 0.1}", "--feature_loss", "vkd", "--feature_schedule", "cosine"]


def test_projectors_are_trained_resumed_and_left_behind(featured, tmp_path):
    finetune(settings_for(tmp_path / "whole", *featured))
    with pytest.raises(TrainingStopped, match="stopped at step 4 of 6"):
        finetune(settings_for(tmp_path / "stopped", *featured), [StopAfter(4)])
    finetune(settings_for(tmp_path / "stopped", *featured, "--resume", "true"))
    folders = [tmp_path / name / "out" for name in ("whole", "stopped")]
    whole, resumed = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole.keys() == SwinHfForImageClassification.from_pretrained(folders[0]).state_dict().keys()
    learned = [torch.load(folder / "checkpoint-6" / "objective.pt", weights_only=True) for folder in folders]
    assert all(torch.equal(learned[0][name], learned[1][name]) for name in learned[0])
    before = torch.load(folders[0] / "checkpoint-3" / "objective.pt", weights_only=True)
    assert not all(torch.equal(learned[0][name], before[name]) for name in before)
    history = json.loads((folders[0] / "metrics.json").read_text())["history"]
    logged = [row for row in history if "feature_loss" in row]
    assert len(logged) == 2 and all({"task_loss", "kd_loss", "feature_loss"} <= row.keys() for row in logged)


class GradientNorms(TrainerCallback):
    """The norms with which each step was made: of the model, whose groups come first, and of the projectors."""

    def __init__(self):
        self.of_model, self.of_projectors = [], []

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        *model, projectors = [[part.grad for part in group["params"]] for group in optimizer.param_groups]
        self.of_model.append(torch.nn.utils.get_total_norm([part for group in model for part in group]).item())
        self.of_projectors.append(torch.nn.utils.get_total_norm(projectors).item())


def test_gradients_of_the_model_and_of_projectors_are_clipped(featured, tmp_path):
    arguments, norms = [*featured, "--feature_loss", "hints", "--num_train_epochs", "1"], {}
    for limit in (0.0, 0.01):
        norms[limit] = GradientNorms()
        finetune(settings_for(tmp_path / str(limit), *arguments, "--max_grad_norm", str(limit)), [norms[limit]])
    assert min(norms[0.0].of_projectors) > 0.02 and min(norms[0.0].of_model) > 0.02
    assert norms[0.01].of_projectors == pytest.approx([0.01] * 3, rel=1e-3)
    assert norms[0.01].of_model == pytest.approx([0.01] * 3, rel=1e-3)


def test_two_processes_train_the_same_projectors(featured, image_folder, tmp_path):
    config = {"drop_path_rate": 0.0, "weight_init": "fan_in"}
    arguments = [*featured[2:4], "--feature_loss", "vkd", "--num_pictures", "0", "--model", featured[3]]
    arguments += ["--optim", "sgd", "--learning_rate", "0.1", "--num_train_epochs", "1", "--test_share", "0.2"]
    learned = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        finetune_with_processes(processes, image_folder, out, config, *arguments)
        (checkpoint,) = out.glob("checkpoint-*")
        learned.append(torch.load(checkpoint / "objective.pt", weights_only=True))
    for name, tensor in learned[0].items():
        torch.testing.assert_close(learned[1][name], tensor, atol=2e-5, rtol=1e-4)


def test_a_teacher_of_other_classes_teaches_features(featured, make_model, tmp_path):
    make_model(id2label={0: "cat", 1: "dog"}, num_labels=2).save_pretrained(tmp_path / "other")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "other")
    arguments = [*featured, "--teacher", str(tmp_path / "other"), "--num_train_epochs", "1"]
    with pytest.raises(TeacherError, match="or learn from its features alone with --kd_loss none --feature_loss hints"):
        finetune(settings_for(tmp_path / "a", *arguments))
    figures = finetune(settings_for(tmp_path / "b", *arguments, "--kd_loss", "none"))
    assert figures["num_test_images"] > 0


def test_a_checkpoint_of_the_model_alone_is_refused_with_projectors(featured, tmp_path):
    with pytest.raises(SettingsError, match="--save_only_model must be false with --ema_decay and --feature_loss"):
        settings_for(tmp_path, *featured, "--save_only_model", "true")


def test_features_are_refused_where_a_launcher_splits_the_weights(featured, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SettingsError, match="--feature_loss must be none where FSDP or DeepSpeed split the weights"):
        settings_for(tmp_path, *featured)


def test_cards_name_all_teachers(featured, checkpoint, tmp_path):
    arguments = [*featured, "--feature_loss", "none", "--feature_schedule", "constant", "--num_train_epochs", "1"]
    finetune(settings_for(tmp_path, *arguments, "--teacher", f"{checkpoint}, {checkpoint}"))
    assert Path(tmp_path / "out" / "README.md").read_text().count(checkpoint.name) == 2


@pytest.mark.parametrize("kind", FEATURE_LOSSES)
def test_a_segmenter_teaches_pixels_and_features(kind, mask_folder, tmp_path, capsys):
    """A larger model with the classes in another order, taught to the end of a training, logs all parts of the loss."""
    backbone = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    stages = SwinHfConfig(**backbone, out_features=["stage1", "stage2"])
    names = {"id2label": {0: "right", 1: "left"}, "label2id": {"right": 0, "left": 1}, "num_labels": 2}
    config = SwinHfUperNetConfig(backbone_config=stages, use_auxiliary_head=False, hidden_size=8, **names)
    teacher = SwinHfForSemanticSegmentation(config).eval()
    teacher.save_pretrained(tmp_path / "teacher")
    SwinHfImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "teacher")
    loaded = load_segmenter(tmp_path / "teacher", ["left", "right"])
    pixels = torch.rand(2, 3, 32, 32)
    expected = teacher(Normalisation(loaded.processor)(pixels)).logits[:, [1, 0]]
    torch.testing.assert_close(loaded(pixels), expected)
    assert loaded(torch.rand(2, 3, 16, 16)).shape == (2, 2, 16, 16)
    arguments = ["--dataset", str(mask_folder), "--task", "semantic-segmentation", *STILL, "--num_pictures", "0"]
    arguments += ["--global_batch_size", "4", "--teacher", str(tmp_path / "teacher"), "--feature_loss", kind]
    finetune(settings_for(tmp_path, *arguments, "--kd_loss", "nkd", "--head_args", "{hidden_size: 8}"))
    history = json.loads((tmp_path / "out" / "metrics.json").read_text())["history"]
    assert all(0 < row[part] < 100 for row in history if "feature_loss" in row for part in ("kd_loss", "feature_loss"))
    assert any("feature_loss" in row for row in history)


def test_maps_are_compared_where_that_is_left_to_us_if_both_models_have_some(
    featured, checkpoint, make_model, tmp_path, monkeypatch, capsys
):
    arguments = [*featured[:-4], "--num_train_epochs", "1"]  # without a loss of maps
    own = ImageClassification(PLAIN_PROCESSOR, list(NAMES.values()), TransformSettings())
    teacher, cache = Teachers([load_classifier(checkpoint, list(NAMES.values()))]), TeacherCache(tmp_path, 3, 0)

    def found(*more: str, teacher=teacher) -> tuple[bool, str]:
        """Whether maps are compared, and what is said if not."""
        distillation = taught(own, make_model(), teacher, settings_for(tmp_path, *arguments, *more))
        return distillation.features is not None, capsys.readouterr().out.removeprefix("feature maps are not compared: ")

    assert found() == (True, "") and found("--feature_loss", "hints") == (True, "")
    assert found("--feature_weight", "0") == found("--feature_loss", "none") == (False, "")
    assert found(teacher=cache) == (False, "a cache of a teacher has none\n")
    alone = ["--save_only_model", "true", "--ema_decay", "0", "--load_best_model_at_end", "false"]
    assert found(*alone) == (False, "--save_only_model leaves out what belongs to them\n")
    with monkeypatch.context() as split:
        split.setattr(FinetuneSettings, "splits_weights", True)
        assert found() == (False, "FSDP or DeepSpeed split the weights\n")
    for error, said in ((TypeError("a\nb"), "TypeError: a b\n"), (NotImplementedError(), "NotImplementedError\n")):

        def no_maps(*_, error=error):
            raise error

        monkeypatch.setattr(distill.training.teaching, "compare_features", no_maps)
        assert found() == (False, said)
        with pytest.raises(type(error)):
            found("--feature_loss", "hints")
    monkeypatch.undo()
    finetune(settings_for(tmp_path, *arguments))
    history = json.loads((tmp_path / "out" / "metrics.json").read_text())["history"]
    assert any("feature_loss" in row for row in history)


def test_a_training_goes_on_with_maps_or_without_as_it_began(featured, tmp_path):
    arguments, cache = featured[:-4], ["--teacher_cache", str(tmp_path / "cache")]
    cache_teacher(settings_for(tmp_path, *arguments, *cache))
    with pytest.raises(TrainingStopped, match="stopped at step 4 of 6"):
        finetune(settings_for(tmp_path / "without", *arguments, *cache), [StopAfter(4)])
    with pytest.raises(SettingsError, match="--feature_loss must be as in the training that is resumed, which compared none"):
        finetune(settings_for(tmp_path / "without", *arguments, "--feature_loss", "hints", "--resume", "true"))
    finetune(settings_for(tmp_path / "without", *arguments, "--resume", "true"))  # goes on without
    history = json.loads((tmp_path / "without" / "out" / "metrics.json").read_text())["history"]
    assert not any("feature_loss" in row for row in history)
    with pytest.raises(TrainingStopped, match="stopped at step 4 of 6"):
        finetune(settings_for(tmp_path / "with", *arguments), [StopAfter(4)])
    with pytest.raises(SettingsError, match="which compared feature maps; or start anew"):
        finetune(settings_for(tmp_path / "with", *arguments, *cache, "--resume", "true"))
    finetune(settings_for(tmp_path / "with", *arguments, "--resume", "true"))
