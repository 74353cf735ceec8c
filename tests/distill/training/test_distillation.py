"""Distillation: the same tensor for both models, any objective and teacher, and exact resuming."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN_PROCESSOR, STILL, settings_for
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from distill.compress.teachers import Classifier, TeacherError, Teachers
from distill.data.examples import UNKNOWN, collate
from distill.data.transforms import TransformSettings
from distill.errors import SettingsError, TrainingStopped
from distill.training.finetune import finetune
from distill.training.settings import parse_finetune_settings
from distill.training.tasks.classification import ImageClassification
from distill.training.tasks.distillation import Distillation, DistillationSettings
from distill.training.tasks.segmentation import SemanticSegmentation
from distill.training.trainer import TaskTrainer, last_whole_checkpoint
from swin_hf.distillation_losses import LOSSES, kl_divergence, nkd

PLAIN = {"randaugment_ops": 0, "color_jitter": 0, "random_erasing": 0, "mixup_alpha": 0, "cutmix_alpha": 0}
NAMES = ["blue", "green", "red"]
MIXED = ["--randaugment_ops", "0", "--mixup_alpha", "0.4", "--rotation_degrees", "10"]


@pytest.fixture
def taught(image_folder, checkpoint):
    """Arguments for distilling from `checkpoint`, which knows the classes."""
    return ["--dataset", str(image_folder), "--teacher", str(checkpoint), "--num_pictures", "0", *MIXED]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "model.safetensors")


def test_loss_is_that_of_the_task_plus_the_weighted_divergence(make_model):
    own = ImageClassification(PLAIN_PROCESSOR, NAMES, TransformSettings(**PLAIN))
    student = make_model(drop_path_rate=0.0).train()
    teacher = Classifier(make_model(), PLAIN_PROCESSOR)
    pixels, targets = torch.rand(4, 3, 16, 16), torch.tensor([0, 2, 1, 0])
    output = Distillation(own, teacher, DistillationSettings(kd_loss="kl", kd_weight=0.5, kd_temperature=2.0))(
        student, pixels, targets
    )
    logits, expected = student((pixels - 0.5) / 0.5).logits, teacher.model((pixels - 0.5) / 0.5).logits
    softened = [(values / 2).softmax(1) for values in (expected, logits)]
    divergence = 4 * (softened[0] * (softened[0] / softened[1]).log()).sum(1).mean()
    torch.testing.assert_close(output.loss, cross_entropy(logits, targets) + 0.5 * divergence)
    torch.testing.assert_close(output.parts["kd_loss"], divergence)
    torch.testing.assert_close(output.parts["task_loss"], cross_entropy(logits, targets))
    assert not output.parts["kd_loss"].detach().isnan() and not any(p.requires_grad for p in teacher.parameters())


def test_losses_that_are_left_to_us_are_those_that_won(make_model):
    own = ImageClassification(PLAIN_PROCESSOR, NAMES, TransformSettings(**PLAIN))
    student, teacher = make_model(drop_path_rate=0.0).train(), Classifier(make_model(), PLAIN_PROCESSOR)
    pixels, targets = torch.rand(4, 3, 16, 16), torch.tensor([0, 2, 1, 0])
    logits, expected = student((pixels - 0.5) / 0.5).logits, teacher.model((pixels - 0.5) / 0.5).logits
    for label_weight, loss in ((1.0, nkd(logits, expected, targets)), (0.0, kl_divergence(logits, expected))):
        settings = DistillationSettings(label_weight=label_weight)
        torch.testing.assert_close(Distillation(own, teacher, settings)(student, pixels, targets).parts["kd_loss"], loss)


def test_several_teachers_teach_the_mean_of_their_probabilities(make_model):
    pixels = torch.rand(4, 3, 16, 16)
    classifiers = [Classifier(make_model(), PLAIN_PROCESSOR), Classifier(make_model(), PLAIN_PROCESSOR, class_order=[2, 0, 1])]
    mean = (classifiers[0](pixels).softmax(1) + classifiers[1](pixels).softmax(1)) / 2
    torch.testing.assert_close(Teachers(classifiers)(pixels).softmax(1), mean)
    torch.testing.assert_close(Teachers(classifiers)(pixels).exp().sum(1), torch.ones(4))
    assert torch.equal(Teachers(classifiers[:1])(pixels), classifiers[0](pixels))


@pytest.mark.parametrize("name", ["kl", "dist", "hard", "nkd"])
def test_weights_fall_by_their_schedule(name, make_model):
    own = ImageClassification(PLAIN_PROCESSOR, NAMES, TransformSettings(**PLAIN))
    student, teacher = make_model(drop_path_rate=0.0).train(), Classifier(make_model(), PLAIN_PROCESSOR)
    temperature = 1.0 if name == "hard" else 2.0
    weights = {"kd_weight": 2.0, "kd_schedule": "cosine", "label_weight": 0.5}
    settings = DistillationSettings(kd_loss=name, kd_temperature=temperature, **weights)
    objective, pixels, targets = Distillation(own, teacher, settings), torch.rand(4, 3, 16, 16), torch.tensor([0, 2, 1, 0])
    one_hot = torch.nn.functional.one_hot(targets, 3).float()
    logits, expected = student((pixels - 0.5) / 0.5).logits, teacher.model((pixels - 0.5) / 0.5).logits
    distilled = LOSSES[name](logits, expected, one_hot, temperature)
    for progress, share in ((0, 1), (1 / 3, 0.75), (0.5, 0.5), (1, 0)):
        objective.progress = progress
        loss = objective(student, pixels, targets).loss
        torch.testing.assert_close(loss, 0.5 * cross_entropy(logits, targets) + 2 * share * distilled)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_images_of_unknown_classes_learn_from_the_teacher_alone(make_model, smoothing):
    own = ImageClassification(PLAIN_PROCESSOR, NAMES, TransformSettings(**PLAIN), smoothing)
    student, teacher = make_model(drop_path_rate=0.0).train(), Classifier(make_model(), PLAIN_PROCESSOR)
    pixels, targets = torch.rand(4, 3, 16, 16), torch.tensor([0, UNKNOWN, 1, UNKNOWN])
    for name in ("kl", "nkd"):
        output = Distillation(own, teacher, DistillationSettings(kd_loss=name))(student, pixels, targets)
        logits = student((pixels - 0.5) / 0.5).logits
        labelled = cross_entropy(logits[[0, 2]], targets[[0, 2]], label_smoothing=smoothing, reduction="sum") / 4
        torch.testing.assert_close(output.parts["task_loss"], labelled)
        if name == "kl":
            torch.testing.assert_close(output.parts["kd_loss"], kl_divergence(logits, teacher(pixels)))
        else:
            found = torch.where(targets == UNKNOWN, teacher(pixels).argmax(dim=1), targets)
            torch.testing.assert_close(output.parts["kd_loss"], nkd(logits, teacher(pixels), found))


def test_evaluations_are_those_of_the_task(make_model):
    own = ImageClassification(PLAIN_PROCESSOR, NAMES, TransformSettings())
    model, pixels, targets = make_model(), torch.rand(4, 3, 16, 16), torch.tensor([0, 2, 1, 0])
    distillation = Distillation(own, lambda pixels: pytest.fail("the teacher was asked"), DistillationSettings())
    assert torch.equal(distillation(model, pixels, targets).loss, own(model, pixels, targets).loss)


def test_any_objective_can_be_distilled():
    class Maps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 2, 1)

        def forward(self, pixel_values, labels):
            logits = self.layer(pixel_values)
            return type("Output", (), {"logits": logits, "loss": cross_entropy(logits, labels, ignore_index=255)})

    still = TransformSettings(randaugment_ops=0, color_jitter=0, random_erasing=0)
    segmentation = SemanticSegmentation(PLAIN_PROCESSOR, ["left", "right"], still)
    student, teacher, pixels = Maps().train(), torch.nn.Conv2d(3, 2, 1), torch.rand(2, 3, 8, 8)
    targets = torch.randint(0, 2, (2, 8, 8))
    output = Distillation(segmentation, teacher, DistillationSettings(kd_loss="kl"))(student, pixels, targets)
    logits = student.layer((pixels - torch.tensor([0.5] * 3).view(3, 1, 1)) / 0.5)
    torch.testing.assert_close(output.parts["kd_loss"], kl_divergence(logits, teacher(pixels)))


def test_teacher_and_student_see_the_same_augmented_tensor(taught, tmp_path, image_folder, monkeypatch):
    seen = {"student": [], "teacher": []}
    learn, teach = ImageClassification.learn, Classifier.forward

    def watched_learn(self, model, pixels, targets):
        assert model.training
        seen["student"].append(pixels.clone())
        return learn(self, model, pixels, targets)

    def watched_teach(self, pixels):
        assert not any(module.training for module in self.modules())
        seen["teacher"].append(pixels.clone())
        return teach(self, pixels)

    monkeypatch.setattr(ImageClassification, "learn", watched_learn)
    monkeypatch.setattr(Classifier, "forward", watched_teach)
    finetune(settings_for(tmp_path, *taught, "--feature_loss", "none"))
    assert len(seen["teacher"]) == 6  # two epochs of 28 images in batches of 8; the incomplete batch is left out
    for ours, theirs in zip(seen["student"], seen["teacher"], strict=True):
        assert torch.equal(ours, theirs)
    sizes = {
        np.asarray(Image.open(file).resize((16, 16))).transpose(2, 0, 1).tobytes() for file in image_folder.rglob("*.png")
    }
    assert all((image * 255).byte().numpy().tobytes() not in sizes for image in seen["teacher"][0])


def test_students_of_any_kind_see_the_same_augmented_images(taught, tmp_path, monkeypatch):
    seen, learn = [], ImageClassification.learn

    def watched(self, model, pixels, targets):
        seen.append(pixels.clone())
        return learn(self, model, pixels, targets)

    monkeypatch.setattr(ImageClassification, "learn", watched)
    for number, config in enumerate(("{drop_path_rate: 0.5}", "{drop_path_rate: 0.0, hidden_dropout_prob: 0.1}")):
        finetune(settings_for(tmp_path / str(number), *taught, "--model_args", config))
    assert len(seen) == 12 and all(map(torch.equal, seen[:6], seen[6:]))
    assert not torch.equal(seen[0], seen[3])


def test_killed_and_resumed_equals_uninterrupted(taught, tmp_path, monkeypatch):
    finetune(settings_for(tmp_path / "whole", *taught))

    class Killed(Exception):
        pass

    training_step = TaskTrainer.training_step

    def die_in_the_second_epoch(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise Killed
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "training_step", die_in_the_second_epoch)
        with pytest.raises(Killed):
            finetune(settings_for(tmp_path / "killed", *taught))
    assert last_whole_checkpoint(tmp_path / "killed" / "out").endswith("checkpoint-3")
    finetune(settings_for(tmp_path / "killed", *taught, "--resume", "true"))
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_sigterm_writes_a_checkpoint_from_which_the_next_call_goes_on(taught, tmp_path, monkeypatch):
    finetune(settings_for(tmp_path / "whole", *taught))
    step = TaskTrainer.training_step

    def stop_in_the_fourth_step(self, *args, **kwargs):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "training_step", stop_in_the_fourth_step)
        with pytest.raises(TrainingStopped, match="stopped at step 4 of 6"):
            finetune(settings_for(tmp_path / "stopped", *taught))
    finetune(settings_for(tmp_path / "stopped", *taught, "--resume", "true"))
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_mistakes_with_a_teacher_are_named_before_any_training(taught, image_folder, mask_folder, tmp_path, make_model):
    with pytest.raises(TeacherError, match="must be a checkpoint folder or Hub id of an image classifier"):
        finetune(settings_for(tmp_path, *taught, "--teacher", str(tmp_path / "nowhere")))
    make_model(id2label={0: "cat", 1: "dog", 2: "cow"}).save_pretrained(tmp_path / "other")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "other")
    with pytest.raises(
        TeacherError, match=r"knows 3 classes \(cat, dog, cow, .* the data has 3 .*; fine-tune it on these classes first"
    ):
        finetune(settings_for(tmp_path, *taught, "--teacher", str(tmp_path / "other")))
    assert not (tmp_path / "out" / "data.json").exists()
    masked = ["--dataset", str(image_folder), "--task", "masked-image-modeling", *STILL]
    rule = "--teacher must come with image-classification or semantic-segmentation, got 'masked-image-modeling'"
    with pytest.raises(SettingsError, match=rule):
        settings_for(tmp_path, *masked, "--teacher", str(tmp_path / "other"))
    segment = ["--dataset", str(mask_folder), "--task", "semantic-segmentation", "--global_batch_size", "4", *STILL]
    with pytest.raises(TeacherError, match="other must be a checkpoint folder or Hub id of a model for semantic segmentation"):
        finetune(settings_for(tmp_path, *segment, "--teacher", str(tmp_path / "other")))
    for arguments, message in (
        (["--kd_loss", "l2"], "--kd_loss must be one of auto, kl, dist, hard, nkd, none, got 'l2'"),
        (["--feature_loss", "l2"], "--feature_loss must be one of auto, vkd, hints, none, got 'l2'"),
        (["--kd_schedule", "step"], "--kd_schedule must be one of constant, linear, cosine, got 'step'"),
        (["--label_weight", "0", "--kd_weight", "0"], "--label_weight must be positive where kd_loss and feature_loss"),
        (["--kd_loss", "hard", "--kd_temperature", "2"], "--kd_temperature must come with a --kd_loss that softens"),
        (["--feature_loss", "none", "--feature_weight", "2"], "--feature_weight must come with a --feature_loss, got 2.0"),
        (["--teacher", "x", "--kd_weight", "0"], "--teacher must have something to teach, a --kd_loss or a --feature_loss"),
        (["--teacher", "x", "--kd_loss", "none"], "--teacher must have something to teach, a --kd_loss or a --feature_loss"),
        (["--feature_loss", "hints"], "--teacher must name a model to distil from with --feature_loss, got 'none'"),
        (["--kd_weight", "-1"], "--kd_weight must not be negative"),
        (["--kd_temperature", "0"], "--kd_temperature must be positive"),
    ):
        with pytest.raises(SettingsError, match=message):
            parse_finetune_settings(arguments)


def test_collate_stacks_what_rows_have():
    rows = [{"pixels": torch.full((3, 2, 2), number, dtype=torch.uint8), "targets": torch.tensor(number)} for number in (3, 5)]
    batch = collate(rows)
    assert batch["pixels"].shape == (2, 3, 2, 2) and batch["targets"].tolist() == [3, 5]
