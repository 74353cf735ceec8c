"""Programs that say why: class maps behind the logits, equal to the model's, and pictures of them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.exporters.base import ExportedModel

import swin_hf.explain
from edge import __main__ as cli
from edge.device import explanation
from edge.device.artefact import ArtefactError, read_manifest
from edge.device.runner import Runner
from edge.device.verify import self_test
from edge.export.checkpoint import load_checkpoint
from edge.export.export import export
from edge.export.settings import ExportError, ExportSettings
from edge.export.verify import verify
from swin_hf.explanations import class_maps


@pytest.fixture
def explained(checkpoint, image_folder, tmp_path):
    export(checkpoint, tmp_path / "edge", ExportSettings(dataset=image_folder, validation=image_folder, explain=True))
    return tmp_path / "edge"


def test_a_program_says_why(explained, checkpoint, image_folder, tmp_path, capsys):
    manifest, runner = read_manifest(explained), Runner(explained)
    assert manifest.explains and manifest.program["num_delegates"] == 1 and manifest.program["outside"] == {}
    image = image_folder / "red" / "0.png"
    pixels = runner.pixel_values(image)
    logits, maps = runner.outputs(pixels)
    assert logits.shape == (1, 3) and maps.shape == (1, 3, 4, 4)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)), logits, atol=1e-5)
    model, _ = load_checkpoint(checkpoint)
    expected = class_maps(model, (torch.from_numpy(pixels) - 0.5) / 0.5).numpy()
    assert np.square(maps - expected).mean() < 0.02 * expected.var()  # as int8 rounds
    assert self_test(explained)[0] == 3
    figures = verify(explained, image_folder)
    assert figures["sqnr_db"] > 20 and figures["num_labelled"] == 48
    processor = AutoImageProcessor.from_pretrained(explained)
    stock = ExportedModel.from_pretrained(explained)(**processor(Image.open(image), return_tensors="pt"))
    np.testing.assert_allclose(stock.logits, logits, atol=1e-5)
    np.testing.assert_allclose(stock.hidden_states[0], maps, atol=1e-5)

    command = ["run", str(explained), str(image), "--explain", "--output_dir", str(tmp_path / "why")]
    assert cli.main([*command, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    drawn = np.asarray(Image.open(result["explained"]))
    label = result["predictions"][0]["label"]
    assert np.array_equal(drawn, np.asarray(runner.explain(image, label))) and drawn.shape == (256, 256, 3)
    assert cli.main(command) == 1
    assert "0_explained.png exists already" in capsys.readouterr().err
    with pytest.raises(ArtefactError, match="label must be one of blue, green, red, .., got pink"):
        runner.explain(image, "pink")


def test_both_draw_alike():
    image, values = Image.effect_noise((40, 30), 60).convert("RGB"), np.random.default_rng(0).normal(size=(4, 5))
    assert np.array_equal(np.asarray(explanation.heat(values, image)), np.asarray(swin_hf.explain.heat(values, image)))


def test_what_cannot_explain_is_refused(artefact, checkpoint, image_folder, tmp_path, capsys):
    image = str(image_folder / "red" / "0.png")
    assert cli.main(["run", str(artefact), image, "--explain", "--output_dir", str(tmp_path / "why")]) == 1
    assert "must be one of a classifier exported with --explain" in capsys.readouterr().err
    assert not (tmp_path / "why").exists()
    with pytest.raises(ExportError, match="explain must come with a classifier and a recipe without training, got .* int8-q"):
        export(checkpoint, tmp_path / "other", ExportSettings(recipe="int8-qat", dataset=image_folder, explain=True))
