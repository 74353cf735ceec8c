"""The command evaluate, against counts by hand."""

import json

import datasets
import numpy as np
import pytest
import torch
from conftest import PLAIN_PROCESSOR, TINY
from PIL import Image
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from transformers import AutoImageProcessor, AutoModelForImageClassification

import edge.__main__ as cli
from edge.device.scores import by_class, confusions
from swin_hf import SwinHfConfig, SwinHfForSemanticSegmentation, SwinHfUperNetConfig

LABELS = ["blue", "green", "red"]


def test_classes_and_confusions_by_hand():
    labels, predicted = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 1, 0, 0])
    assert by_class(predicted, labels, LABELS) == [
        {"label": "red", "n": 2, "accuracy": 0.0},
        {"label": "blue", "n": 3, "accuracy": 1 / 3},
        {"label": "green", "n": 2, "accuracy": 1.0},
    ]
    assert confusions(predicted, labels, LABELS) == [
        {"label": "blue", "predicted": "green", "count": 2},
        {"label": "red", "predicted": "blue", "count": 2},
    ]


@pytest.mark.parametrize("kind", ["artefact", "checkpoint"])
def test_figures_of_a_classifier(kind, artefact, checkpoint, image_folder, tmp_path, capsys):
    model = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    files = sorted(image_folder.rglob("*.png"))
    with torch.no_grad():
        images = [processor(Image.open(file).convert("RGB"), return_tensors="pt") for file in files]
        probabilities = np.concatenate([model(**image).logits.double().softmax(1).numpy() for image in images])
    truth = np.array([LABELS.index(file.parent.name) for file in files])
    (image_folder / "red" / "broken.png").write_bytes(b"no picture")

    mistakes = tmp_path / "mistakes"
    command = ["evaluate", str({"artefact": artefact, "checkpoint": checkpoint}[kind]), "--dataset", str(image_folder)]
    assert cli.main([*command, "--json", "--mistakes", str(mistakes)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["num_images"], figures["num_unreadable"], figures["num_labelled"]) == (48, 1, 48)
    assert figures["accuracy"] == pytest.approx(top_k_accuracy_score(truth, probabilities, k=1))
    assert figures["low"] < figures["accuracy"] < figures["high"] and figures["largest_class_share"] == pytest.approx(1 / 3)
    assert figures["nll"] == pytest.approx(log_loss(truth, probabilities), abs=1e-4)
    counts = confusion_matrix(truth, probabilities.argmax(axis=1))
    found = {(row["label"], row["predicted"]): row["count"] for row in figures["confusions"]}
    assert found == {
        (LABELS[row], LABELS[column]): counts[row, column]
        for row in range(3)
        for column in range(3)
        if row != column and counts[row, column]
    }
    assert len(figures["mistakes"]) == sum(found.values()) == len(list(mistakes.rglob("*.png"))) > 0
    for row in figures["mistakes"]:
        assert np.array_equal(Image.open(tmp_path / row["picture"]), Image.open(image_folder / row["image"]).convert("RGB"))
    assert cli.main(["val", *command[1:]]) == 0  # its short name
    told = capsys.readouterr().out
    assert f"accuracy {figures['accuracy']:.1%}" in told and "1 unreadable" in told and "taken for" in told
    assert cli.main([*command, "--mistakes", str(mistakes)]) == 1
    assert "--mistakes must be a new or empty folder" in capsys.readouterr().err


def test_images_without_known_labels_are_refused(checkpoint, mask_folder, capsys):
    assert cli.main(["evaluate", str(checkpoint), "--dataset", str(mask_folder / "images")]) == 1
    assert "the labels are blue, green, red" in capsys.readouterr().err


def test_figures_of_a_segmenter(mask_folder, tmp_path, capsys):
    torch.manual_seed(0)
    backbone_config = SwinHfConfig(**TINY, out_features=["stage1", "stage2"])
    config = SwinHfUperNetConfig(
        backbone_config=backbone_config,
        decode_head="light",
        use_auxiliary_head=False,
        hidden_size=8,
        id2label={0: "left", 1: "right"},
    )
    model = SwinHfForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path / "segmenter")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "segmenter")
    confusion = np.zeros((2, 2))
    for file in sorted((mask_folder / "images").iterdir()):
        with torch.no_grad():
            pixels = PLAIN_PROCESSOR(Image.open(file), return_tensors="pt")["pixel_values"]
            logits = model(pixels).logits
        resized = torch.nn.functional.interpolate(logits, size=(20, 24), mode="bilinear", align_corners=False)
        mask = np.asarray(Image.open(mask_folder / "masks" / f"{file.stem}.png"))
        confusion += confusion_matrix(mask.ravel(), resized[0].argmax(0).numpy().ravel(), labels=[0, 1])
    ious = confusion.diagonal() / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal())
    assert cli.main(["evaluate", str(tmp_path / "segmenter"), "--dataset", str(mask_folder), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["mean_iou"] == pytest.approx(ious.mean(), abs=0.01)
    assert figures["pixel_accuracy"] == pytest.approx(confusion.trace() / confusion.sum(), abs=0.01)
    assert {row["label"] for row in figures["classes"]} == {"left", "right"}
    assert cli.main(["evaluate", str(tmp_path / "segmenter"), "--dataset", str(mask_folder)]) == 0
    assert f"mean IoU {figures['mean_iou']:.1%}" in capsys.readouterr().out


def test_the_test_images_of_the_run_are_taken_and_others_warned_of(artefact, checkpoint, image_folder, capsys):
    # As distill/run.py leaves them: data, checkpoints and program side by side.
    files = sorted(image_folder.rglob("*.png"))
    numbers = {"train": list(range(0, 30)), "validation": list(range(30, 36)), "test": list(range(36, 48))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=LABELS)})
    splits = {
        split: datasets.Dataset.from_dict(
            {"image": [str(files[n]) for n in own], "label": [files[n].parent.name for n in own]}, features=features
        )
        for split, own in numbers.items()
    }
    data = checkpoint.parent / "data"
    datasets.DatasetDict(splits).save_to_disk(data)
    (data / "data.json").write_text(json.dumps({"dataset": str(image_folder), "split": numbers}))
    for command in (["evaluate", str(checkpoint)], ["evaluate", str(artefact)], ["verify", str(artefact)]):
        assert cli.main([*command, "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["num_images"] == 12 and "note:" not in said.err
        assert cli.main([*command, "--dataset", str(image_folder), "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["num_images"] == 48
        assert "36 of its images were used for training or validation" in said.err
    for part in data.rglob("*.json"):
        part.unlink()
    assert cli.main(["evaluate", str(checkpoint)]) == 1
    assert "--dataset must name labelled images" in capsys.readouterr().err
