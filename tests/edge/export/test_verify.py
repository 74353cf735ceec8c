"""Verification against labels and against the checkpoint."""

import shutil

import numpy as np
import pytest
import torch

from edge.compare.peers import checkpoint_to_compare
from edge.device.runner import Runner
from edge.device.verify import VerificationError
from edge.export.checkpoint import CheckpointError, load_checkpoint, model_outputs
from edge.export.verify import verify
from swin_hf import SwinHfBackbone, SwinHfImageProcessorPil


def test_verify_counts_accuracy_and_agreement(artefact, checkpoint, image_folder):
    figures = verify(artefact, image_folder)
    model, processor = load_checkpoint(checkpoint)
    runner = Runner(artefact)
    images = sorted(image_folder.rglob("*.png"))
    logits = model_outputs(model, processor, [runner.pixel_values(image) for image in images], list(map(str, images)))
    right = [["blue", "green", "red"][row.argmax()] == image.parent.name for row, image in zip(logits, images)]
    assert figures["num_labelled"] == 48
    assert figures["accuracy"] == pytest.approx(np.mean(right))
    assert figures["agreement"] == 1.0


def test_verify_says_why_no_image_has_a_label(artefact, image_folder, tmp_path):
    for number, name in enumerate(("blue", "green", "red")):
        (image_folder / name).rename(image_folder / f"class{number}")
    figures = verify(artefact, image_folder)
    assert (figures["num_images"], figures["num_labelled"], figures["agreement"]) == (48, 0, 1.0)
    assert "accuracy" not in figures
    assert figures["unlabelled"] == (
        "48 of 48 images lie in no folder named after a label and are not called <label>_<n>: class0/0.png, class0/1.png, "
        "class0/10.png, class0/11.png, class0/12.png, ..; the labels are blue, green, red"
    )
    (image_folder / "class0").rename(tmp_path / "train")
    image_folder.joinpath("test").mkdir()
    (image_folder / "class1").rename(image_folder / "test" / "green")
    (image_folder / "class2").rename(image_folder / "train")
    figures = verify(artefact, image_folder)
    assert (figures["num_images"], figures["num_labelled"]) == (16, 16)


def test_verify_refuses_a_program_that_is_not_the_checkpoints(artefact, make_model, checkpoint, image_folder):
    torch.manual_seed(1)
    make_model(id2label={0: "blue", 1: "green", 2: "red"}, depths=[1, 1]).save_pretrained(checkpoint)
    with pytest.raises(VerificationError, match="recipe fp32 must keep 80 dB and 100% agreement"):
        verify(artefact, image_folder, checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 5}, "the number of outputs 3, got 5"),
        ({"num_channels": 1}, "the number of image channels 3, got 1"),
        ({"mlp_ratio": 2.0}, r"the number of parameters \d+, got \d+"),
    ],
)
def test_a_checkpoint_of_another_model_is_named(artefact, make_model, checkpoint, image_folder, tmp_path, changes, message):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    make_model(**{"num_labels": 3} | changes).save_pretrained(other)
    if changes.get("num_channels") == 1:
        SwinHfImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5]).save_pretrained(other)
    with pytest.raises(CheckpointError, match=f"must hold the model that the artefact was exported from, with {message}"):
        verify(artefact, image_folder, other)
    with pytest.raises(CheckpointError, match=message):
        checkpoint_to_compare(artefact, other)


def test_a_backbone_is_not_what_a_classifier_was_exported_from(artefact, make_config, checkpoint, image_folder):
    SwinHfBackbone(make_config()).save_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match="the task image-classification, got feature-maps"):
        verify(artefact, image_folder, checkpoint)
