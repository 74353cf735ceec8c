"""The command predict: which images it reads, and how it tells what a program or a checkpoint finds in them."""

import csv
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import edge.__main__ as cli
from edge.device.__main__ import main as device_main
from edge.device.predict import Output
from edge.device.runner import Runner
from edge.export.export import ExportSettings, export


@pytest.fixture
def expected(checkpoint, image_folder):
    """Probabilities of the classes by file, from transformers alone."""
    model = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    with torch.no_grad():
        return {
            str(file): model(**processor(Image.open(file).convert("RGB"), return_tensors="pt")).logits[0].softmax(0).numpy()
            for file in image_folder.rglob("*.png")
        }


LABELS = ["blue", "green", "red"]


def assert_expected(found: list[dict], expected: dict[str, np.ndarray]) -> None:
    assert {row["image"] for row in found} == set(expected)
    for row in found:
        probabilities = expected[row["image"]]
        order = np.argsort(-probabilities)
        assert [prediction["label"] for prediction in row["predictions"]] == [LABELS[number] for number in order]
        shares = [prediction["probability"] for prediction in row["predictions"]]
        np.testing.assert_allclose(shares, probabilities[order], atol=1e-4)


@pytest.mark.parametrize("kind", ["artefact", "checkpoint"])
def test_all_images_of_a_folder_are_classified_by_a_program_or_a_checkpoint(
    kind, artefact, checkpoint, image_folder, expected, capsys
):
    model = str({"artefact": artefact, "checkpoint": checkpoint}[kind])
    assert cli.main(["predict", model, str(image_folder), "--format", "jsonl"]) == 0
    assert_expected([json.loads(line) for line in capsys.readouterr().out.splitlines()], expected)
    assert cli.main(["run", model, str(image_folder), "--json"]) == 0  # its short name
    assert_expected(json.loads(capsys.readouterr().out), expected)


def test_patterns_and_tables(artefact, image_folder, expected, capsys):
    file = str(image_folder / "red" / "0.png")
    assert device_main(["predict", str(artefact), str(image_folder / "red" / "0.*"), "--format", "csv", "--top_k", "2"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    first, second = np.argsort(-expected[file])[:2]
    assert list(row) == ["image", "label", "probability", "label_2", "probability_2"]
    assert (row["image"], row["label"], row["label_2"]) == (file, LABELS[first], LABELS[second])
    assert float(row["probability_2"]) == pytest.approx(expected[file][second], abs=1e-4)
    assert device_main(["predict", str(artefact), file, "--top_k", "1"]) == 0
    assert capsys.readouterr().out == f"{expected[file][first]:7.2%}  {LABELS[first]}  {file}\n"
    assert device_main(["predict", str(artefact), str(image_folder / "*.jpg")]) == 1
    assert f"no file is called like {image_folder / '*.jpg'}" in capsys.readouterr().err


def test_unsure_images_alone_are_named(artefact, image_folder, expected, capsys):
    firsts = {file: probabilities.max() for file, probabilities in expected.items()}
    middle = float(np.median(list(firsts.values())))
    assert cli.main(["predict", str(artefact), str(image_folder), "--below", str(middle), "--format", "jsonl"]) == 0
    named = {json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()}
    assert named == {file for file, first in firsts.items() if first < middle}
    with pytest.raises(SystemExit):
        cli.main(["predict", str(artefact), str(image_folder), "--below", "60"])
    assert "must be a probability" in capsys.readouterr().err


def test_images_are_copied_into_folders_of_their_classes(artefact, image_folder, expected, tmp_path, capsys):
    sorted_into = tmp_path / "sorted"
    command = ["predict", str(artefact), str(image_folder), "--sort_into", str(sorted_into), "--format", "jsonl"]
    assert cli.main(command) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({row["copied_to"] for row in rows}) == len(expected)  # 0.png of each folder has a name of its own
    for row in rows:
        copy = tmp_path / row["copied_to"]
        assert copy.read_bytes() == (tmp_path / row["image"]).read_bytes()
        assert copy.parent == sorted_into / LABELS[expected[row["image"]].argmax()]
    assert cli.main(command) == 1
    assert "--sort_into must be a new or empty folder" in capsys.readouterr().err


class Camera:
    """Of OpenCV: three frames, one of each colour of `image_folder`, blue first."""

    folder, opened = None, []

    def __init__(self, number: int):
        self.frames = [np.asarray(Image.open(self.folder / name / "0.png"))[..., ::-1] for name in LABELS]
        self.number = number

    def isOpened(self) -> bool:
        return self.number == 0

    def read(self):
        return (True, self.frames.pop(0)) if self.frames else (False, None)

    def release(self) -> None:
        self.opened.append(self.number)


def test_frames_of_a_camera(artefact, image_folder, expected, monkeypatch, capsys):
    monkeypatch.setattr(Camera, "folder", image_folder)
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=Camera))
    assert cli.main(["predict", str(artefact), "--camera", "0", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == ["frame_1", "frame_2", "frame_3"] and Camera.opened == [0]
    renamed = [row | {"image": str(image_folder / name / "0.png")} for row, name in zip(rows, LABELS)]
    assert_expected(renamed, {row["image"]: expected[row["image"]] for row in renamed})
    assert cli.main(["predict", str(artefact), "--camera", "0", "--frames", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert cli.main(["predict", str(artefact), "--camera", "7"]) == 1
    assert "there is no camera 7" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert cli.main(["predict", str(artefact), "--camera", "0"]) == 1
    assert "pip install opencv-python-headless" in capsys.readouterr().err
    for images in ([], [str(image_folder), "--camera", "0"]):
        with pytest.raises(SystemExit):
            cli.main(["predict", str(artefact), *images])
        assert "give images or --camera" in capsys.readouterr().err


def test_a_checkpoint_explains_itself_as_its_program_does(checkpoint, image_folder, tmp_path, capsys):
    image = image_folder / "green" / "3.png"
    export(checkpoint, tmp_path / "explained", ExportSettings(recipe="fp32", dataset=image_folder, explain=True))
    drawn = {}
    for name in ("checkpoint", "explained"):
        why = tmp_path / f"why of {name}"
        assert cli.main(["predict", str(tmp_path / name), str(image), "--explain", "--output_dir", str(why)]) == 0
        (written,) = why.iterdir()
        assert f"{image} -> {written}" in capsys.readouterr().out
        drawn[name] = np.asarray(Image.open(written), float)
    assert drawn["checkpoint"].shape == (256, 256, 3)
    np.testing.assert_allclose(drawn["checkpoint"], drawn["explained"], atol=2)  # of 255 levels
    assert drawn["checkpoint"].std() > 10


def test_pictures_are_drawn_of_what_is_named_alone(checkpoint, image_folder, tmp_path, capsys):
    image = str(image_folder / "green" / "3.png")
    for limit, named in (("0.01", False), ("1.0", True)):
        command = ["predict", str(checkpoint), image, "--below", limit, "--explain", "--output_dir", str(tmp_path / "why")]
        assert cli.main(command) == 0
        assert (tmp_path / "why").exists() == named == bool(capsys.readouterr().out)


def test_what_a_kind_of_model_does_not_do_is_refused(mask_folder, make_model, image_folder, tmp_path, capsys):
    from conftest import PLAIN_PROCESSOR, TINY

    from swin_hf import SwinHfBackbone, SwinHfConfig, SwinHfForSemanticSegmentation, SwinHfUperNetConfig

    backbone_config = SwinHfConfig(**TINY, out_features=["stage1", "stage2"])
    config = SwinHfUperNetConfig(
        backbone_config=backbone_config, decode_head="light", use_auxiliary_head=False, hidden_size=8, num_labels=2
    )
    SwinHfForSemanticSegmentation(config).save_pretrained(tmp_path / "segmenter")
    SwinHfBackbone(backbone_config).save_pretrained(tmp_path / "backbone")
    for name in ("segmenter", "backbone"):
        PLAIN_PROCESSOR.save_pretrained(tmp_path / name)
    image = str(mask_folder / "images" / "0.jpg")
    for flag in (["--below", "0.5"], ["--sort_into", str(tmp_path / "sorted")], ["--explain"]):
        assert cli.main(["predict", str(tmp_path / "segmenter"), image, *flag]) == 1
        assert f"{flag[0]} is for classifiers, got a segmenter" in capsys.readouterr().err
    assert cli.main(["predict", str(tmp_path / "backbone"), image]) == 1
    assert "must be a classifier or a segmenter to name classes, got a backbone" in capsys.readouterr().err
    command = ["predict", str(tmp_path / "segmenter"), image, "--output_dir", str(tmp_path / "masks"), "--format", "csv"]
    assert cli.main(command) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    mask = np.asarray(Image.open(row["mask"]))
    assert mask.shape == (20, 24)
    assert float(row["LABEL_1"]) == pytest.approx((mask == 1).mean())


def test_results_before_an_interruption_are_told(artefact, image_folder, monkeypatch, capsys):
    images, classify = sorted(map(str, (image_folder / "red").iterdir())), Runner.classify

    def interrupted(runner, image, top_k):
        interrupted.calls += 1
        if interrupted.calls > 3:
            raise KeyboardInterrupt
        return classify(runner, image, top_k)

    interrupted.calls = 0
    monkeypatch.setattr(Runner, "classify", interrupted)
    assert cli.main(["predict", str(artefact), *images, "--json"]) == 130
    assert [row["image"] for row in json.loads(capsys.readouterr().out)] == images[:3]


@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_each_result_is_told_at_once(form, monkeypatch):
    class Pipe(io.StringIO):
        arrived = ""

        def flush(self):
            self.arrived = self.getvalue()

    monkeypatch.setattr(sys, "stdout", Pipe())
    output = Output(form, [("image", "image")])
    output.tell({"image": "a.png"}, ["a.png"])
    assert "a.png" in sys.stdout.arrived
