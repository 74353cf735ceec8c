"""NaN and infinity are errors that say where they come from, and never figures."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import edge.__main__ as cli
from edge.compare.commands import described
from edge.compare.engines import Contender
from edge.compare.peers import rows_of
from edge.device.artefact import sha256_of
from edge.device.errors import ExplainedError
from edge.device.json_text import json_text
from edge.device.runner import NotFiniteError, Runner
from edge.export.checkpoint import CheckpointError, load_checkpoint, model_outputs
from edge.export.export import ExportSettings, export


@pytest.fixture(params=[float("nan"), float("inf")], ids=["NaN", "infinity"])
def damaged(request, artefact, checkpoint):
    """An artefact whose program has NaN or infinity among its weights, in the bundled copy too."""
    weights = load_file(checkpoint / "model.safetensors").values()
    program = (artefact / "model.pte").read_bytes()
    stored = next(values for tensor in weights if len(values := tensor.numpy().tobytes()) > 99 and program.count(values) == 1)
    content = json.loads((artefact / "edge.json").read_text())
    for name in ("model.pte", "self_test.bpte"):
        whole = (artefact / name).read_bytes()
        changed = whole.replace(stored, np.float32(request.param).tobytes() + stored[4:])
        (artefact / name).write_bytes(changed)
        content["sha256"][name] = sha256_of(changed)
    (artefact / "edge.json").write_text(json.dumps(content))
    return artefact


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "JSON"])
@pytest.mark.parametrize("command", ["run", "verify", "self-test"])
def test_a_program_that_puts_them_out_is_an_error(damaged, image_folder, capsys, command, more):
    image = image_folder / "red" / "0.png"
    arguments = {
        "run": [str(image)],
        "verify": ["--dataset", str(image.parent)],
        "bench": ["--repeats", "1", "--threads", "1"],
    }
    assert cli.main([command, str(damaged), *arguments.get(command, []), *more]) == 1
    out, err = capsys.readouterr()
    assert out == ("[]\n" if command == "run" and more else "") and "nan" not in err
    assert "must be finite, got NaN or infinity from method forward" in err
    assert {"run": f"error: {image}: ", "verify": "error: 0.png: ", "self-test": "error: image 0 of "}[command] in err


def test_a_program_that_puts_them_out_is_not_measured(damaged, capsys):
    assert cli.main(["bench", str(damaged), "--repeats", "1", "--threads", "1"]) == 1
    assert "the measurement with 1 thread(s) failed: the outputs of the program in " in capsys.readouterr().err


def test_verify_without_its_checkpoint_refuses_them_too(damaged, image_folder, checkpoint, capsys):
    checkpoint.rename(checkpoint.with_name("moved"))
    assert cli.main(["verify", str(damaged), "--dataset", str(image_folder)]) == 1
    assert "must be finite" in capsys.readouterr().err


def test_weights_of_a_checkpoint_must_be_finite(checkpoint, image_folder, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name in weights if name.endswith("weight"))
    weights[name][0, 0] = float("inf")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"must hold finite weights, got {name} with 1 of "):
        export(checkpoint, tmp_path / "out", ExportSettings(recipe="fp32", dataset=image_folder))
    assert not (tmp_path / "out").exists()


def test_the_image_for_which_a_model_overflows_is_named(checkpoint):
    model, processor = load_checkpoint(checkpoint)
    inputs = [np.full((2, 3, 16, 16), value, np.float32) for value in (0.5, np.inf, 0.25)]
    with pytest.raises(NotFiniteError, match="^c: the outputs of the model must be finite, got NaN or infinity for 2 of 6"):
        model_outputs(model, processor, inputs, ["a", "b", "c", "d", "e"])


def test_the_image_for_which_a_program_overflows_stops_an_export(checkpoint, image_folder, tmp_path, monkeypatch):
    true = Runner._execute

    def overflows(self, method: str, tensor: torch.Tensor) -> list[np.ndarray]:
        outputs = true(self, method, tensor)
        overflows.runs += 1
        return [values * np.inf for values in outputs] if overflows.runs == 3 else outputs

    overflows.runs = 0
    monkeypatch.setattr(Runner, "_execute", overflows)
    with pytest.raises(NotFiniteError, match=r"^.*blue/10\.png: the outputs of the program in "):  # the third by name
        export(checkpoint, tmp_path / "out", ExportSettings(recipe="fp32", dataset=image_folder))
    assert not (tmp_path / "out").exists()


def test_json_says_where_a_number_is_not_finite():
    with pytest.raises(ExplainedError, match=r"^latency\[1\]\.p50_ms must be a finite number, got NaN or infinity"):
        json_text({"latency": [{"p50_ms": 1.0}, {"p50_ms": float("nan")}]})
    with pytest.raises(ExplainedError, match="^the value must be a finite number"):
        json_text(float("-inf"))
    assert json.loads(json_text({"a": (1.5, None, True, "x")})) == {"a": [1.5, None, True, "x"]}


def test_rows_have_no_ratio_to_a_program_that_was_not_measured(monkeypatch):
    measured = {"ours": {"error": ["ended with exit code -11"]}, "theirs": {"alone": [1.0], "turns": [2.0]}}
    monkeypatch.setattr("edge.compare.peers.take_turns", lambda *_: measured)
    contenders = [Contender(name=name, engine="executorch", file="", shape=(1,)) for name in measured]
    theirs, ours = rows_of(contenders, {}, repeats=10, threads=1)
    assert theirs["p50_ms"] == 2.0 and "ratio" not in theirs
    assert ours == {"name": "ours", "skipped": "ended with exit code -11"}
    assert described(theirs) == "  theirs                                         2.00 ms (alone 1.00 ms)"
