"""Teachers of any architecture, size and class order, and errors for checkpoints that cannot teach."""

import shutil
import unicodedata

import pytest
import torch
from conftest import PLAIN_PROCESSOR
from transformers import ResNetConfig, ResNetForImageClassification

from distill.compress.teachers import Classifier, TeacherError, Teachers, knows_classes, load_classifier
from distill.pipeline.measure import count_macs
from swin_hf import SwinHfImageProcessorPil, SwinHfModel

NAMES = ["blue", "green", "red"]


def test_teacher_of_another_kind_size_and_class_order(tmp_path):
    names = {0: "red", 1: "blue", 2: "green"}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=names)
    model = ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    processor = SwinHfImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(tmp_path)
    teacher = load_classifier(tmp_path, NAMES)
    pixels = torch.rand(2, 3, 32, 32)
    expected = model((pixels - 0.5) / 0.5).logits[:, [1, 2, 0]]  # blue, green, red
    torch.testing.assert_close(teacher(pixels), expected)
    assert teacher(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert count_macs(teacher, 32) > 0


def test_teachers_compute_in_bfloat16_where_the_device_does(make_model, monkeypatch):
    classifier, pixels = Classifier(make_model(), PLAIN_PROCESSOR), torch.rand(2, 3, 16, 16)
    before, teachers = classifier(pixels), Teachers([classifier])
    assert teachers.hasten(torch.device("cpu")).classifiers[0].model.dtype == torch.float32
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    assert teachers.hasten(torch.device("cuda")).classifiers[0].model.dtype == torch.bfloat16
    logits, _ = teachers.with_maps(pixels)
    assert logits[0].dtype == torch.float32 and not torch.equal(logits[0], before)
    torch.testing.assert_close(logits[0], before, atol=0.02, rtol=0.02)


def test_a_teacher_knows_a_class_in_another_form_of_unicode(make_model, tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make_model(id2label={0: "tea", 1: decomposed, 2: "milk "}).save_pretrained(tmp_path)
    PLAIN_PROCESSOR.save_pretrained(tmp_path)
    assert knows_classes(tmp_path, [composed, "milk", "tea"])
    assert load_classifier(tmp_path, [composed, "milk", "tea"]).class_order == [1, 2, 0]


def test_wrong_teachers_are_explained(checkpoint, tmp_path):
    with pytest.raises(TeacherError, match="knows 3 classes .* the data has 2"):
        load_classifier(checkpoint, ["cat", "dog"])
    with pytest.raises(TeacherError, match="must be a checkpoint folder or Hub id"):
        load_classifier(tmp_path / "nowhere", NAMES)
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(TeacherError, match="must be a checkpoint folder or Hub id"):
        load_classifier(tmp_path / "broken", NAMES)


def test_only_a_classifier_of_these_classes_knows_them(checkpoint, make_config, tmp_path):
    assert knows_classes(checkpoint, NAMES) and knows_classes(checkpoint, ["red", "blue", "green"])
    assert not knows_classes(checkpoint, ["blue", "green"]) and not knows_classes(checkpoint, ["blue", "green", "yellow"])
    SwinHfModel(make_config(id2label=dict(enumerate(NAMES)))).save_pretrained(tmp_path / "encoder")
    assert not knows_classes(tmp_path / "encoder", NAMES)
    with pytest.raises(TeacherError, match="must be a checkpoint folder or Hub id"):
        knows_classes(tmp_path / "nowhere", NAMES)
