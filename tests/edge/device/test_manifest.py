"""Manifests and programs that are damaged, foreign or of another version are explained, and never crash."""

import json
import subprocess
import sys

import numpy as np
import pytest

from edge.device.artefact import ArtefactError, read_artefact, sha256_of
from edge.device.runner import Runner


def edit(artefact, **changes) -> None:
    content = json.loads((artefact / "edge.json").read_text())
    (artefact / "edge.json").write_text(json.dumps(content | changes))


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


FUZZED = {
    "not JSON": lambda content: "{",
    "not an object": lambda content: "[]",
    "a number": lambda content: "7",
    "deeply nested": lambda content: "[" * 100_000,
    "another version": lambda content: json.dumps(content | {"format_version": 1}),
    "a newer version": lambda content: json.dumps(content | {"format_version": 99}),
    "version of another type": lambda content: json.dumps(content | {"format_version": "2"}),
    "a key too few": lambda content: json.dumps({key: content[key] for key in content if key != "labels"}),
    "a key too many": lambda content: json.dumps(content | {"more": 1}),
    "labels no list": lambda content: json.dumps(content | {"labels": "cat"}),
    "labels no strings": lambda content: json.dumps(content | {"labels": [1, 2, 3]}),
    "labels too few": lambda content: json.dumps(content | {"labels": ["one"]}),
    "height no number": lambda content: json.dumps(content | {"input": content["input"] | {"height": "16"}}),
    "height negative": lambda content: json.dumps(content | {"input": content["input"] | {"height": -16}}),
    "height huge": lambda content: json.dumps(
        content
        | {"input": content["input"] | {"height": 10**9}}
        | {"methods": {"forward": {"batch_size": 1, "height": 10**9, "width": 16}}}
    ),
    "height of another size": lambda content: json.dumps(
        content
        | {"input": content["input"] | {"height": 8}}
        | {"methods": {"forward": {"batch_size": 1, "height": 8, "width": 16}}}
    ),
    "batch of another size": lambda content: json.dumps(
        content | {"methods": {"forward": {"batch_size": 3, "height": 16, "width": 16}}}
    ),
    "layout unknown": lambda content: json.dumps(content | {"input": content["input"] | {"layout": "CHWN"}}),
    "filter unknown": lambda content: json.dumps(content | {"input": content["input"] | {"resample": 17}}),
    "temperature zero": lambda content: json.dumps(content | {"temperature": 0.0}),
    "task unknown": lambda content: json.dumps(content | {"task": "detection"}),
    "methods missing": lambda content: json.dumps(content | {"methods": {}}),
    "method that is not there": lambda content: json.dumps(
        content | {"methods": content["methods"] | {"other": {"batch_size": 1, "height": 16, "width": 16}}}
    ),
    "no sha256": lambda content: json.dumps(content | {"sha256": {}}),
    "another sha256": lambda content: json.dumps(content | {"sha256": {"model.pte": "0" * 64}}),
    "temperature without end": lambda content: json.dumps(content).replace(
        '"temperature": 1.0', '"temperature": 1' + "0" * 400
    ),
    "a number of 5,000 digits": lambda content: json.dumps(content)[:-1] + ', "more": ' + "1" * 5000 + "}",
    "a billion pixels": lambda content: json.dumps(
        content
        | {"input": content["input"] | {"height": 16384, "width": 16384}}
        | {"methods": {"forward": {"batch_size": 1, "height": 16384, "width": 16384}}}
    ),
    "source empty": lambda content: json.dumps(content | {"source": {}}),
    "source no path": lambda content: json.dumps(content | {"source": {"checkpoint": 5, "parameters": 1}}),
    "self-test of nothing": lambda content: json.dumps(content | {"self_test": {"num_images": 0, "tolerance": 1.0}}),
    "self-test of everything": lambda content: json.dumps(content | {"self_test": {"num_images": 3, "tolerance": 1e30}}),
    "NaN": lambda content: json.dumps(content | {"temperature": float("nan")}),
    "not UTF-8": None,
}


@pytest.mark.parametrize("case", FUZZED)
def test_manifests_that_are_not_ours_are_explained(artefact, case):
    content = json.loads((artefact / "edge.json").read_text())
    if FUZZED[case] is None:
        (artefact / "edge.json").write_bytes(b"\xff\xfe\x00")
    else:
        (artefact / "edge.json").write_text(FUZZED[case](content))
    with pytest.raises(ArtefactError) as error:
        Runner(artefact)
    print(f"{case:<26} {str(error.value).replace(str(artefact), 'DIR')}")


FUZZ = """
import faulthandler, json, random, sys
from pathlib import Path
import numpy as np
from edge.device.artefact import ArtefactError, sha256_of
from edge.device.runner import Runner
folder, program = Path(sys.argv[1]), (Path(sys.argv[1]) / "model.pte").read_bytes()
content = json.loads((folder / "edge.json").read_text())
for seed in range(int(sys.argv[2])):
    rng, damaged = random.Random(seed), bytearray(program)
    if seed % 3 == 0:
        del damaged[rng.randrange(8, len(damaged)):]
    elif seed % 3 == 1:
        damaged[8:] = rng.randbytes(rng.randrange(1, 5000))
    else:
        damaged = bytearray(rng.randbytes(64) + b"ET12" + rng.randbytes(1000))
    (folder / "model.pte").write_bytes(damaged)
    content["sha256"]["model.pte"] = sha256_of(bytes(damaged))  # as if somebody meant it
    (folder / "edge.json").write_text(json.dumps(content))
    try:
        Runner(folder)
        print("runs")
    except ArtefactError as error:
        print("explained", str(error)[:150].replace(str(folder), "DIR"))
"""


def test_cut_and_foreign_programs_are_explained_even_with_their_own_sha256(artefact):
    done = subprocess.run([sys.executable, "-c", FUZZ, str(artefact), "30"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    print("\n".join(dict.fromkeys(lines)))
    assert len(lines) == 30 and all(line.startswith("explained") for line in lines)


def test_damaged_programs_are_refused_before_the_runtime_sees_them(artefact):
    program = (artefact / "model.pte").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(50):
        damaged = bytearray(program)
        damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        (artefact / "model.pte").write_bytes(damaged[: rng.integers(1, len(damaged) + 1)])
        with pytest.raises(ArtefactError, match="sha256 differs"):
            read_artefact(artefact)


def test_foreign_programs_are_explained(artefact):
    foreign = b"\x00" * 4 + b"XX12" + b"\x00" * 100
    (artefact / "model.pte").write_bytes(foreign)
    edit(artefact, sha256={"model.pte": sha256_of(foreign)})
    with pytest.raises(ArtefactError, match="is not an ExecuTorch program"):
        Runner(artefact)
