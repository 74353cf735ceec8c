"""Damaged and forged programs and self-tests, with their own sha256: a command ends with a result or a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NUM_SEEDS = 130  # beside 16 copies of other sizes and formats


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
