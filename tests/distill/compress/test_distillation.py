"""Distillation: the loss by hand, one tensor for both models, teachers of any kind, and resuming bit for bit."""

import math
import os
import shutil
import signal

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, set_seed

from distill.compress.distillation import Schedule, kd_loss, train
from distill.compress.teachers import Classifier, TeacherError, load_classifier
from distill.data.augmentation import RandomAffine
from distill.data.preparation import image_processor
from distill.pipeline.measure import accuracy_with_interval, count_macs, wilson_interval
from distill.pipeline.settings import AugmentationSettings, DataSettings, ExecutionSettings, TrainingSettings
from distill.training.trainer import TaskTrainer, TrainingStopped, last_whole_checkpoint

PROCESSOR = image_processor(DataSettings(image_size=16))
NAMES = ["blue", "green", "red"]


@pytest.fixture
def data() -> datasets.DatasetDict:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(24)]
    split = datasets.Dataset.from_dict({"image": images, "label": [number % 3 for number in range(24)]})
    return datasets.DatasetDict(train=split, validation=split.select(range(6)))


def test_kd_loss_by_hand():
    teacher, student = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert kd_loss(student, teacher).item() == pytest.approx(expected)
    assert kd_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-7)


def test_teacher_and_student_see_the_same_augmented_tensor(make_model, data, tmp_path, monkeypatch):
    seen = {}

    class Watched(Classifier):
        def forward(self, pixels):
            seen.setdefault(self.role, []).append(pixels.clone())
            seen.setdefault(f"{self.role} training", set()).add(self.training)
            return super().forward(pixels)

    student, teacher = Watched(make_model(), PROCESSOR), Watched(make_model(), PROCESSOR).requires_grad_(False).eval()
    student.role, teacher.role = "student", "teacher"
    schedule = Schedule(epochs=1, learning_rate=1e-3, seed=0)
    settings = TrainingSettings(batch_size=8)
    train(student, data, settings, ExecutionSettings(), schedule, RandomAffine(AugmentationSettings()), tmp_path, teacher)
    assert len(seen["teacher"]) == 3
    for ours, theirs in zip(seen["student"], seen["teacher"]):
        assert torch.equal(ours, theirs)
    originals = {np.asarray(row["image"]).transpose(2, 0, 1).tobytes() for row in data["train"]}
    assert all((image * 255).byte().numpy().tobytes() not in originals for image in seen["teacher"][0])
    assert seen["teacher training"] == {False}


def test_killed_and_resumed_equals_uninterrupted(make_model, data, tmp_path, monkeypatch):
    settings, schedule = TrainingSettings(batch_size=8), Schedule(epochs=4, learning_rate=1e-3, seed=0)
    augmentation = RandomAffine(AugmentationSettings())

    def run(folder):
        set_seed(0)
        student = Classifier(make_model(drop_path_rate=0.2), PROCESSOR)
        teacher = Classifier(make_model(), PROCESSOR).requires_grad_(False).eval()
        train(student, data, settings, ExecutionSettings(), schedule, augmentation, folder, teacher)
        return student.state_dict()

    whole = run(tmp_path / "whole")

    class Killed(Exception):
        pass

    training_step = TaskTrainer.training_step

    def die_in_the_third_epoch(self, *args, **kwargs):
        if self.state.global_step == 7:
            raise Killed
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "training_step", die_in_the_third_epoch)
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    assert last_whole_checkpoint(tmp_path / "killed" / "checkpoints").endswith("checkpoint-6")
    resumed = run(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_sigterm_writes_a_checkpoint_from_which_the_next_call_goes_on(make_model, data, tmp_path):
    settings, schedule = TrainingSettings(batch_size=8), Schedule(epochs=2, learning_rate=1e-3, seed=0)

    def run(folder):
        set_seed(0)
        student = Classifier(make_model(), PROCESSOR)
        train(student, data, settings, ExecutionSettings(), schedule, RandomAffine(AugmentationSettings()), folder)
        return student.state_dict()

    whole, step = run(tmp_path / "whole"), TaskTrainer.training_step

    def stop_in_the_fourth_step(self, *args, **kwargs):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskTrainer, "training_step", stop_in_the_fourth_step)
        with pytest.raises(TrainingStopped, match="stopped at step 4 of 6"):
            run(tmp_path / "stopped")
    resumed = run(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_half_checkpoint_is_passed_over(tmp_path):
    for number, state in ((6, "{}"), (9, '{"epoch": ')):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-12").mkdir()
    assert last_whole_checkpoint(tmp_path).endswith("checkpoint-6")
    assert not (tmp_path / "checkpoint-12").exists()
    assert last_whole_checkpoint(tmp_path / "nowhere") is None


def test_teacher_of_another_kind_size_and_class_order(tmp_path):
    names = {0: "red", 1: "blue", 2: "green"}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=names)
    model = ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    image_processor(DataSettings(image_size=32)).save_pretrained(tmp_path)
    teacher = load_classifier(tmp_path, NAMES)
    pixels = torch.rand(2, 3, 32, 32)
    expected = model((pixels - 0.5) / 0.5).logits[:, [1, 2, 0]]  # blue, green, red
    torch.testing.assert_close(teacher(pixels), expected)
    assert teacher(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert count_macs(teacher, 32) > 0


def test_wrong_teachers_are_explained(checkpoint, tmp_path):
    with pytest.raises(TeacherError, match="knows 3 classes .* the data has 2"):
        load_classifier(checkpoint, ["cat", "dog"])
    with pytest.raises(TeacherError, match="must be a checkpoint folder or Hub id"):
        load_classifier(tmp_path / "nowhere", NAMES)
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(TeacherError, match="must be a checkpoint folder or Hub id"):
        load_classifier(tmp_path / "broken", NAMES)


def test_augmentation_without_limits_changes_nothing():
    nothing = AugmentationSettings(rotation_degrees=0, translate_share=0, scale_share=0, shear_share=0)
    images = torch.rand(3, 3, 8, 12)
    torch.testing.assert_close(RandomAffine(nothing)(images), images, atol=1e-5, rtol=0)


def test_augmentation_mirrors_half_of_the_images():
    settings = AugmentationSettings(rotation_degrees=0, translate_share=0, scale_share=0, shear_share=0, horizontal_flip=True)
    images = torch.rand(64, 1, 8, 8)
    mirrored = (RandomAffine(settings)(images) - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 16 < mirrored.sum() < 48


def test_rotation_is_rigid_on_rectangles():
    # A quarter turn of a point, in pixels of an image twice as high as wide.
    transform = RandomAffine(AugmentationSettings(rotation_degrees=90, translate_share=0, scale_share=0, shear_share=0))
    matrix = transform.sample_matrices(1, aspect=2.0)[0, :, :2]
    in_pixels = torch.diag(torch.tensor([0.5, 1.0])) @ matrix @ torch.diag(torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(in_pixels @ in_pixels.T, torch.eye(2), atol=1e-5, rtol=0)


def test_wilson_interval_by_hand():
    # Wilson 1927 for 9 of 10: 0.5958 to 0.9821 at z = 1.96.
    assert wilson_interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    measured = accuracy_with_interval(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    assert (measured.correct, measured.n, measured.accuracy) == (3, 4, 0.75)


def test_macs_by_hand(make_model):
    model = make_model(depths=[1], num_heads=[2], image_size=16, patch_size=4)
    L, C, N, K = 16, 16, 16, 3  # one window holds all 16 tokens
    expected = L * 48 * C + 4 * L * C * C + 2 * L * N * C + 2 * L * C * 4 * C + C * K
    assert count_macs(Classifier(model, PROCESSOR), 16) == expected
