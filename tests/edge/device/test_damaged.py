"""Damaged and forged files of an artefact: whatever is in them, a command ends with a result or with an explained error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edge.__main__ as cli
from edge.device.artefact import ArtefactError, read_artefact, sha256_of
from edge.device.bundle import read_bundle
from edge.device.flatbuffer import FlatbufferError
from edge.device.program import read_constants, sections
from edge.device.runner import Runner
from edge.lower.self_test import bundle

ROOT = Path(__file__).parents[3]
NUM_SEEDS = 130  # beside 16 copies of other sizes and formats
COMMANDS = ("run", "bench", "verify", "self-test", "publish", "app")


@pytest.mark.parametrize(
    ("file", "command"),
    [("model.pte", ["run", "{photos}/red/0.png"]), ("self_test.bpte", ["self-test"])],
    ids=["program", "bundle"],
)
def test_a_command_on_a_damaged_file_ends_with_a_result_or_a_sentence(artefact, image_folder, file, command):
    arguments = [str(artefact), file, str(NUM_SEEDS), *(word.format(photos=image_folder) for word in command)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/support/damaged_artefacts.py"), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    copies = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(copies) == NUM_SEEDS + 16
    for copy in copies:
        assert copy["code"] in (0, 1), copy
        if copy["code"] == 0:
            json.loads(copy["out"], parse_constant=pytest.fail)  # neither NaN nor infinity
        else:
            last = copy["err"].splitlines()[-1]
            assert last.startswith("error: ") and len(last) > 30 and "Traceback" not in copy["err"], copy
    assert any(copy["code"] == 0 for copy in copies) or file != "model.pte"  # a bit of a weight
    assert sum(copy["code"] for copy in copies) > 16


def command_line(name: str, artefact: Path, image_folder: Path) -> list[str]:
    if name == "app":
        return ["app", "android", str(artefact), "--output_dir", str(artefact.with_name("app"))]
    more = {"run": [str(image_folder / "red" / "0.png")], "verify": ["--dataset", str(image_folder)], "publish": ["org/name"]}
    return [name, str(artefact), *more.get(name, [])]


def forge(artefact: Path, **changes) -> None:
    """Change the manifest; the sha256 of every file stays true."""
    content = json.loads((artefact / "edge.json").read_text()) | changes
    content["sha256"] = {name: sha256_of((artefact / name).read_bytes()) for name in content["sha256"]}
    (artefact / "edge.json").write_text(json.dumps(content))


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_program_says_of_itself_holds_for_every_command(artefact, image_folder, capsys, command):
    forge(artefact, labels=["red", "green", "blue"])
    assert cli.main(command_line(command, artefact, image_folder)) == 1
    assert "labels must be ['blue', 'green', 'red'], got ['red', 'green', 'blue']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 2.0}, r"temperature must be \[1.0\], got \[2.0\]"),
        ({"input": {"resample": 2}}, r"input_contract must be \[{'height': 16, .*'resample': 3"),
        ({"input": {"crop_pct": 0.5}}, r"input_contract must be .*'crop_pct': None"),
    ],
)
def test_temperature_and_input_are_those_of_the_program(artefact, changes, message):
    if "input" in changes:
        changes = {"input": json.loads((artefact / "edge.json").read_text())["input"] | changes["input"]}
    forge(artefact, **changes)
    with pytest.raises(ArtefactError, match=message):
        Runner(artefact)


@pytest.mark.parametrize("name", ["model.pte", "self_test.bpte", "edge.json"])
@pytest.mark.parametrize("command", ["run", "self-test", "verify"])
def test_folders_in_place_of_files_are_explained(artefact, image_folder, capsys, command, name):
    if command != "self-test" and name == "self_test.bpte":
        pytest.skip("the command does not read it")
    (artefact / name).unlink()
    (artefact / name).mkdir()
    assert cli.main(command_line(command, artefact, image_folder)) == 1
    assert f"has no {name}" in capsys.readouterr().err


def test_a_cut_program_is_noticed_wherever_it_was_cut(artefact):
    program = (artefact / "model.pte").read_bytes()
    assert sections(program)[1] < len(program)  # weights follow the graph
    assert read_constants(program, {"labels"}) == {"labels": ["blue", "green", "red"]}
    for size in [*range(0, 200, 7), *np.linspace(200, len(program) - 1, 60).astype(int)]:
        with pytest.raises(FlatbufferError):
            read_constants(program[:size], {"labels"})


def test_a_bundle_is_read_as_it_was_written(artefact, tmp_path):
    inputs = [np.full((1, 3, 2, 2), number, np.float32) for number in range(2)]
    outputs = [[np.full((1, 5), number / 2, np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)] for number in range(2)]
    read = read_bundle(bundle(artefact / "model.pte", inputs, outputs))
    assert bytes(read.program) == (artefact / "model.pte").read_bytes()
    for case, x, ys in zip(read.cases, inputs, outputs, strict=True):
        np.testing.assert_array_equal(case.inputs, [x])
        for found, y in zip(case.outputs, ys, strict=True):
            np.testing.assert_array_equal(found, y)


def test_bundles_of_another_program_or_other_images_are_refused(artefact, capsys):
    runner, own = Runner(artefact), (artefact / "model.pte").read_bytes()
    pixels = np.full(runner.shape("forward"), 0.5, np.float32)
    outputs = runner.outputs(pixels)
    (artefact / "other.pte").write_bytes(own[:-1] + bytes([own[-1] ^ 1]))
    for content, message in (
        (bundle(artefact / "other.pte", [pixels] * 3, [outputs] * 3), "must hold a copy of model.pte"),
        (bundle(artefact / "model.pte", [pixels] * 2, [outputs] * 2), "must hold 3 images"),
        (
            bundle(artefact / "model.pte", [pixels[:, :2]] * 3, [outputs] * 3),
            "must hold inputs of ((1, 3, 16, 16)",
        ),
        (bundle(artefact / "model.pte", [pixels] * 3, [outputs * 2] * 3), "must hold outputs of the program's shapes"),
        (own, "is not a whole bundle of ExecuTorch"),
    ):
        (artefact / "self_test.bpte").write_bytes(content)
        forge(artefact)
        assert cli.main(["self-test", str(artefact)]) == 1
        assert message in capsys.readouterr().err


def test_apps_and_cards_are_made_of_whole_programs_alone(artefact):
    program = (artefact / "model.pte").read_bytes()
    (artefact / "model.pte").write_bytes(program[:-200])
    forge(artefact)
    with pytest.raises(ArtefactError, match="is not a whole ExecuTorch program: data .* must end within"):
        read_artefact(artefact)
