"""Running a program: what it says of images and of itself, and inputs and programs that do not fit."""

import json

import numpy as np
import pytest

import edge.__main__ as cli
from edge.device.artefact import ArtefactError, sha256_of
from edge.device.runner import Runner
from edge.export.export import ExportSettings, export
from swin_hf import SwinHfBackbone


def test_run_prints_labels_and_names_what_it_cannot_read(artefact, image_folder, tmp_path, capsys):
    (tmp_path / "note.png").write_text("no image")
    code = cli.main(["run", str(artefact), str(tmp_path / "note.png"), str(image_folder / "red" / "0.png"), "--top_k", "2"])
    out, err = capsys.readouterr()
    assert code == 1
    assert "note.png cannot be read" in err
    assert len(out.splitlines()) == 3 and "0.png" in out


def test_wrong_input_shape_is_refused(artefact):
    with pytest.raises(ValueError, match=r"must have shape \(1, 3, 16, 16\)"):
        Runner(artefact).logits(np.zeros((1, 3, 8, 8), np.float32))


def test_the_program_itself_says_labels_and_contract(artefact):
    runner = Runner(artefact)
    assert runner.constant("labels") == ["blue", "green", "red"]
    assert runner.constant("temperature") == [runner.manifest.temperature]
    contract = json.loads(runner.constant("input_contract")[0])
    assert (contract["height"], contract["width"], contract["dtype"], contract["layout"]) == (16, 16, "float32", "NCHW")


def test_another_program_under_this_manifest_is_noticed(artefact, make_config, checkpoint, image_folder, tmp_path):
    SwinHfBackbone(make_config(out_features=["stage1", "stage2"])).save_pretrained(checkpoint)
    export(checkpoint, tmp_path / "backbone", ExportSettings(recipe="fp32", dataset=image_folder, self_test=False))
    maps = (tmp_path / "backbone" / "model.pte").read_bytes()
    content = json.loads((artefact / "edge.json").read_text())
    (artefact / "model.pte").write_bytes(maps)
    content |= {"methods": {"forward": content["methods"]["forward"]}, "sha256": {"model.pte": sha256_of(maps)}}
    (artefact / "edge.json").write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match=r"labels must be \['stage1', 'stage2'\], got \['blue', 'green', 'red'\]"):
        Runner(artefact)
    (artefact / "edge.json").write_text(json.dumps(content | {"labels": ["stage1", "stage2"]}))
    with pytest.raises(ArtefactError, match=r"forward must put out \[\(\(1, 2\), 6\)\] .*, got \[\(\(1, 16, 8, 8\), 6\)"):
        Runner(artefact)
