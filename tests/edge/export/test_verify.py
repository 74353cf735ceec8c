"""Verification against labels and against the checkpoint."""

import numpy as np
import pytest
import torch

from edge.device.runner import Runner
from edge.device.verify import VerificationError
from edge.export.checkpoint import load_checkpoint, model_outputs
from edge.export.verify import verify


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
    make_model(id2label={0: "blue", 1: "green", 2: "red"}).save_pretrained(checkpoint)
    with pytest.raises(VerificationError, match="recipe fp32 must keep 80 dB and 100% agreement"):
        verify(artefact, image_folder, checkpoint)
