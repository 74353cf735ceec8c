"""Export, artefact, runner and command line of the device side."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import edge.__main__ as cli
import edge.export.export as exporting
from edge.device.artefact import ArtefactError, read_artefact
from edge.device.parity import compare
from edge.device.runner import Runner, softmax
from edge.device.verify import VerificationError, verify
from edge.export.calibration import CalibrationError
from edge.export.checkpoint import CheckpointError, load_checkpoint, model_outputs
from edge.export.export import ExportError, ExportSettings, export

WITHOUT_THE_MODEL_SIDE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "datasets", "swin_hf", "distill"):
            raise ImportError(f"{name} is not on this device")
sys.meta_path.insert(0, Refuse())
from edge.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def settings(recipe: str, images, **more) -> ExportSettings:
    return ExportSettings(recipe=recipe, data=images, **more)


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory):
    return tmp_path_factory.mktemp("exported") / "edge"


@pytest.fixture
def artefact(exported_once, checkpoint, image_folder, tmp_path):
    """An fp32 export of `checkpoint`, which is the same in every test, beside it."""
    export_to = tmp_path / "edge"
    if not exported_once.exists():
        export(checkpoint, export_to, settings("fp32", image_folder))
        shutil.copytree(export_to, exported_once)
        return export_to
    shutil.copytree(exported_once, export_to)
    return export_to


@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_program_follows_the_model_on_real_images(checkpoint, image_folder, tmp_path, recipe):
    manifest = export(checkpoint, tmp_path / "edge", settings(recipe, image_folder))
    model, processor = load_checkpoint(checkpoint)
    runner = Runner(tmp_path / "edge")
    images = sorted(image_folder.rglob("*.png"))
    program = np.stack([runner.logits(runner.pixel_values(image)) for image in images])
    with torch.no_grad():
        expected = model(**processor([Image.open(image) for image in images], return_tensors="pt")).logits.numpy()
    difference = np.abs(program - expected).max()
    assert difference < (1e-4 if recipe == "fp32" else 0.15 * np.abs(expected).max())
    assert (program.argmax(1) == expected.argmax(1)).mean() >= 0.97
    assert manifest.program["num_delegates"] == 1
    assert manifest.program["outside"] == {}
    assert manifest.labels == ["blue", "green", "red"]


def test_pruned_single_head_model_runs_on_the_runtime(make_model, checkpoint, image_folder, tmp_path):
    # A bias of one head keeps odd strides through `contiguous`; the program was then built but failed when run.
    make_model(block_num_heads=[[1], [3, 1]], block_head_dim=[[8], [8, 8]], block_mlp_dim=[[24], [40, 8]]).save_pretrained(
        checkpoint
    )
    assert export(checkpoint, tmp_path / "edge", settings("fp32", image_folder)).parity["program"]["max_difference"] < 1e-4


def test_run_needs_no_transformers_datasets_or_swin_hf(artefact, image_folder):
    command = [
        sys.executable,
        "-c",
        WITHOUT_THE_MODEL_SIDE,
        "run",
        str(artefact),
        str(image_folder / "red" / "0.png"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predictions = json.loads(done.stdout)[0]["predictions"]
    assert sorted(p["label"] for p in predictions) == ["blue", "green", "red"]
    assert sum(p["probability"] for p in predictions) == pytest.approx(1)


def test_run_prints_labels_and_names_what_it_cannot_read(artefact, image_folder, tmp_path, capsys):
    (tmp_path / "note.png").write_text("no image")
    code = cli.main(["run", str(artefact), str(tmp_path / "note.png"), str(image_folder / "red" / "0.png"), "--top-k", "2"])
    out, err = capsys.readouterr()
    assert code == 1
    assert "note.png is not an image" in err
    assert len(out.splitlines()) == 3 and "0.png" in out


def test_bench_reports_latency(artefact, capsys):
    assert cli.main(["bench", str(artefact), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["latency"][0]["threads"] == 1
    assert 0 < figures["latency"][0]["p50_ms"] <= figures["latency"][0]["p90_ms"]


def test_verify_counts_accuracy_and_agreement(artefact, checkpoint, image_folder):
    figures = verify(artefact, image_folder)
    model, processor = load_checkpoint(checkpoint)
    runner = Runner(artefact)
    images = sorted(image_folder.rglob("*.png"))
    logits = model_outputs(model, processor, [runner.pixel_values(image) for image in images])
    right = [["blue", "green", "red"][row.argmax()] == image.parent.name for row, image in zip(logits, images)]
    assert figures["num_labelled"] == 48
    assert figures["accuracy"] == pytest.approx(np.mean(right))
    assert figures["agreement"] == 1.0


def test_verify_refuses_a_program_that_is_not_the_checkpoints(artefact, make_model, checkpoint, image_folder):
    torch.manual_seed(1)
    make_model(id2label={0: "blue", 1: "green", 2: "red"}).save_pretrained(checkpoint)
    with pytest.raises(VerificationError, match="recipe fp32 promises 100%"):
        verify(artefact, image_folder, checkpoint)


def test_export_that_misses_its_bound_writes_nothing(checkpoint, image_folder, tmp_path, monkeypatch):
    trace = exporting.trace

    def trace_other_weights(methods):
        return trace({name: (_with_other_weights(form), example) for name, (form, example) in methods.items()})

    monkeypatch.setattr(exporting, "trace", trace_other_weights)
    with pytest.raises(ExportError, match="nothing was written"):
        export(checkpoint, tmp_path / "edge", settings("fp32", image_folder))
    assert not [path for path in tmp_path.iterdir() if "edge" in path.name]


def _with_other_weights(module):
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    return module


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "resnet"}'), "model of type swin_hf, got resnet"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text('{"do_center_crop": true}'),
            "must resize, rescale and normalise to be repeated",
        ),
    ],
)
def test_wrong_checkpoint_is_explained(checkpoint, image_folder, tmp_path, damage, message):
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        export(checkpoint, tmp_path / "edge", settings("fp32", image_folder))
    assert not (tmp_path / "edge").exists()


def test_export_asks_for_images_and_enough_of_them(checkpoint, image_folder, tmp_path):
    with pytest.raises(ExportError, match="give a folder of them with --data"):
        export(checkpoint, tmp_path / "edge", ExportSettings())
    for image in sorted(image_folder.rglob("*.png"))[5:]:
        image.unlink()
    with pytest.raises(CalibrationError, match="needs at least 16 images to calibrate on, got 5"):
        export(checkpoint, tmp_path / "edge", settings("int8", image_folder))


def test_unknown_recipe_is_refused_before_any_work(checkpoint, tmp_path, capsys):
    assert cli.main(["export", str(checkpoint), "--out", str(tmp_path / "edge"), "--recipe", "int7"]) == 1
    assert "recipe must be one of fp32, fp16, int8, int8-static" in capsys.readouterr().err


def test_export_never_deletes_a_foreign_folder(checkpoint, image_folder):
    with pytest.raises(ExportError, match="must be a new folder or an earlier export"):
        export(checkpoint, image_folder, settings("fp32", image_folder))
    assert (image_folder / "red" / "0.png").is_file()


def test_damaged_artefacts_are_explained(artefact):
    program = (artefact / "model.pte").read_bytes()
    (artefact / "model.pte").write_bytes(program[:-1] + bytes([program[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="sha256 differs"):
        Runner(artefact)
    content = json.loads((artefact / "edge.json").read_text())
    for text, message in [
        ("{", "is not an edge manifest"),
        ("[]", "is not an edge manifest"),
        (json.dumps(content | {"format_version": 9}), "format_version 9"),
        (json.dumps({key: content[key] for key in content if key != "labels"}), "missing or unknown: labels"),
    ]:
        (artefact / "edge.json").write_text(text)
        with pytest.raises(ArtefactError, match=message):
            read_artefact(artefact)
    (artefact / "edge.json").unlink()
    with pytest.raises(ArtefactError, match=r"has no edge\.json"):
        Runner(artefact)


def test_wrong_input_shape_is_refused(artefact):
    with pytest.raises(ValueError, match=r"must have shape \(1, 3, 16, 16\)"):
        Runner(artefact).logits(np.zeros((1, 3, 8, 8), np.float32))


def test_parity_by_hand():
    reference = np.array([[1.0, -1.0], [3.0, -3.0]])
    parity = compare(reference + np.array([[0.1, -0.1], [0.3, -0.3]]), reference)
    assert parity.sqnr_db == pytest.approx(20.0)  # the error is a tenth of the signal
    assert parity.max_difference == pytest.approx(0.3)
    assert parity.agreement == 1.0
    assert compare(reference + 3, reference).sqnr_db > 180  # a constant for all classes changes nothing
    one_lost = np.array([[1.0, -1.0], [0.0, 0.0]])  # its energy is nine tenths of all, however exact the other image is
    assert compare(one_lost, reference).sqnr_db == pytest.approx(10 * np.log10(10 / 9))
    np.testing.assert_allclose(softmax(np.array([0.0, np.log(3)])), [0.25, 0.75])
