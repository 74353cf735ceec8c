"""Export: programs that follow their model, and what is refused before and after the work."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import edge.__main__ as cli
import edge.export.export as exporting
import edge.export.form_choice as form_choice
from edge.device.runner import Runner
from edge.export.checkpoint import CheckpointError, load_checkpoint
from edge.export.export import ExportError, ExportSettings, export
from edge.export.images import CalibrationError
from swin_hf.output_folders import OutputError, list_files


def settings(recipe: str, images, **more) -> ExportSettings:
    return ExportSettings(recipe=recipe, dataset=images, **more)


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


def test_temperature_is_that_of_the_config_where_no_images_are_held_out(make_model, checkpoint, image_folder, tmp_path):
    make_model(calibration_temperature=1.75).save_pretrained(checkpoint)
    manifest = export(checkpoint, tmp_path / "edge", settings("fp32", image_folder))
    assert manifest.temperature == 1.75
    image, runner = next(image_folder.rglob("*.png")), Runner(tmp_path / "edge")
    scaled = np.exp(runner.logits(runner.pixel_values(image)).astype(np.float64) / 1.75)
    assert runner.classify(image)[0].probability == pytest.approx((scaled / scaled.sum()).max(), rel=1e-5)


def test_few_held_out_images_do_not_undo_the_temperature(make_model, checkpoint, image_folder, tmp_path):
    names = {0: "blue", 1: "green", 2: "red"}
    make_model(calibration_temperature=1.75, id2label=names).save_pretrained(checkpoint)
    manifest = export(checkpoint, tmp_path / "edge", settings("fp32", image_folder, validation=image_folder))
    assert manifest.accuracy["num_images"] < 50 and manifest.temperature == 1.75


def test_pruned_single_head_model_runs_on_the_runtime(make_model, checkpoint, image_folder, tmp_path):
    # A bias of one head keeps odd strides through `contiguous`; the program was then built but failed when run.
    make_model(block_num_heads=[[1], [3, 1]], block_head_dim=[[8], [8, 8]], block_mlp_dim=[[24], [40, 8]]).save_pretrained(
        checkpoint
    )
    assert export(checkpoint, tmp_path / "edge", settings("fp32", image_folder)).parity["program"]["max_difference"] < 1e-4


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
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "resnet"}'),
            "model of type swin_hf or swin_hf_upernet, got resnet",
        ),
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
    with pytest.raises(ExportError, match="dataset must be a folder or a list of real images"):
        export(checkpoint, tmp_path / "edge", ExportSettings())
    for image in sorted(image_folder.rglob("*.png"))[5:]:
        image.unlink()
    with pytest.raises(CalibrationError, match="needs at least 16 images to calibrate on, got 5"):
        export(checkpoint, tmp_path / "edge", settings("int8", image_folder))


def test_unknown_recipe_is_refused_before_any_work(checkpoint, tmp_path, capsys):
    flags = ["--output_dir", str(tmp_path / "edge"), "--dataset", "no/such/folder"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", str(checkpoint), *flags, "--recipe", "int7"])
    assert "recipe must be one of fp32, fp16, int8, int8-static" in (said := capsys.readouterr().err) and "mean int8?" in said


def test_export_replaces_an_earlier_export_and_nothing_else(artefact, checkpoint, image_folder, tmp_path):
    before = (artefact / "model.pte").read_bytes()
    export(checkpoint, artefact, settings("fp32", image_folder, self_test=False))
    assert set(list_files(artefact)) == {*json.loads((artefact / "edge.json").read_text())["sha256"], "edge.json"}
    assert (artefact / "model.pte").read_bytes() == before

    foreign = tmp_path / "foreign"  # files and a folder that merely bear our names
    (foreign / "model.pte").mkdir(parents=True)
    (foreign / "model.pte" / "weights").write_text("mine")
    (foreign / "edge.json").write_text("{}")
    (artefact / "model.pte").write_text("mine")  # is no longer what edge.json describes
    (tmp_path / ".out.partial").write_text("mine")
    for folder in (foreign, artefact):
        kept = {name: (folder / name).read_bytes() for name in list_files(folder)}
        with pytest.raises(OutputError, match=r"an earlier export and nothing else, got .*model\.pte.*; it is left as it is"):
            export(checkpoint, folder, settings("fp32", image_folder))
        assert {name: (folder / name).read_bytes() for name in list_files(folder)} == kept


@pytest.mark.parametrize("place", ["photos", "photos/red", "photos/new", "checkpoint", "checkpoint/edge", "."])
def test_an_export_does_not_write_into_what_it_reads(checkpoint, image_folder, tmp_path, place):
    before = list_files(tmp_path)
    with pytest.raises(OutputError, match="output_dir must .*(dataset|checkpoint)"):
        export(checkpoint, tmp_path / place, settings("fp32", image_folder))
    assert list_files(tmp_path) == before


@pytest.mark.parametrize("equalised", [False, True])
def test_methods_of_a_program_share_weights(make_model, checkpoint, image_folder, tmp_path, monkeypatch, equalised):
    model = make_model(id2label={0: "blue", 1: "green", 2: "red"}, embed_dim=64, depths=[1], num_heads=[2], mlp_ratio=8.0)
    model.save_pretrained(checkpoint)
    sizes = {}
    for batch_sizes in ((1,), (1, 2)):
        chosen, candidate = [], form_choice._candidate

        def one_that_misses_first(*arguments, chosen=chosen, candidate=candidate):
            chosen.append(candidate(*arguments))
            return replace(chosen[-1], misses="a bound" if equalised and len(chosen) == 1 else "")

        with monkeypatch.context() as patch:
            patch.setattr(form_choice, "_candidate", one_that_misses_first)
            settings = ExportSettings(recipe="int8-static", dataset=image_folder, batch_sizes=batch_sizes, self_test=False)
            manifest = export(checkpoint, tmp_path / "edge", settings)
        assert manifest.equalised == equalised
        sizes[batch_sizes] = manifest.program["size_bytes"]
    matrices = 4 * 64 * 64 + 2 * 64 * 512
    assert sizes[1, 2] - sizes[1,] < 0.5 * matrices


def test_what_cannot_be_exported_is_refused_at_once(make_model, checkpoint, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("edge.export.prepare.load_images", lambda *_: pytest.fail("images were read"))
    with pytest.raises(ExportError, match=r"batch_sizes must be positive and begin with 1, .*, got \(4,\)"):
        ExportSettings(batch_sizes=(4,))
    settings = ExportSettings(recipe="int8-qat", dataset=image_folder, sizes=((16, 16), (24, 24)))
    with pytest.raises(ExportError, match="must have one size and batch size, got forward, forward_24x24"):
        export(checkpoint, tmp_path / "edge", settings)
    for changes, message in (
        ({"problem_type": "multi_label_classification"}, "gives each image one class, got multi_label_classification"),
        ({"num_labels": 1}, "two or more classes, got 1"),
    ):
        make_model(**changes).save_pretrained(checkpoint)
        with pytest.raises(CheckpointError, match=message):
            export(checkpoint, tmp_path / "edge", ExportSettings(dataset=image_folder))


def test_validation_images_of_other_classes_are_refused(checkpoint, image_folder, tmp_path):
    others = tmp_path / "others"
    (others / "yellow").mkdir(parents=True)
    shutil.copy(image_folder / "red" / "0.png", others / "yellow")
    with pytest.raises(ExportError, match=r"^validation must hold images of the model's classes \(blue, green, red, "):
        export(checkpoint, tmp_path / "edge", ExportSettings(recipe="fp32", dataset=image_folder, validation=others))


def test_layers_are_left_in_float_until_the_program_holds_its_bounds(
    make_model, checkpoint, image_folder, tmp_path, monkeypatch
):
    model = make_model(id2label={0: "blue", 1: "green", 2: "red"})
    fc1 = model.swin.encoder.layers[0].blocks[0].mlp.fc1
    fc1.bias.data[0] = 3000.0  # an activation that leaves the others few levels
    model.swin.encoder.layers[0].blocks[0].mlp.fc2.weight.data[:, 0] = 0.0
    model.save_pretrained(checkpoint)
    settings = ExportSettings(recipe="int8-static", dataset=image_folder, validation=image_folder, self_test=False)
    manifest = export(checkpoint, tmp_path / "edge", settings)
    assert set(manifest.kept_in_float) & {f"encoder.stages.0.blocks.0.mlp.{name}" for name in ("fc1", "fc2")}
    assert manifest.parity["program"]["sqnr_db"] > 20
    assert manifest.accuracy["num_images"] == 48
