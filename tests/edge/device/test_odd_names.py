"""Names of files, folders and classes that no encoding or terminal likes, on every command of a device and beyond."""

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

import edge.__main__ as cli
from edge.device.names import file_stem
from edge.device.printable import printable
from edge.export.checkpoint import CheckpointError, load_checkpoint
from edge.export.export import ExportSettings, export

CAFE = os.fsdecode(b"caf\xe9")  # Latin-1, which is not UTF-8
LABELS = ["a\0b", "gr\x1b[31mün\n", "日本" * 100]


@pytest.fixture(scope="module")
def odd_artefact(tmp_path_factory):
    return tmp_path_factory.mktemp("odd") / CAFE


@pytest.fixture
def artefact(odd_artefact, checkpoint, image_folder):
    """An artefact of classes with odd names in a folder whose name is not UTF-8; made once."""
    if not odd_artefact.exists():
        config = json.loads((checkpoint / "config.json").read_text())
        config |= {"id2label": dict(enumerate(LABELS)), "label2id": {label: n for n, label in enumerate(LABELS)}}
        (checkpoint / "config.json").write_text(json.dumps(config))
        export(checkpoint, odd_artefact, ExportSettings(recipe="fp32", dataset=image_folder))
    return odd_artefact


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / CAFE
    (folder / file_stem(LABELS[2])).mkdir(parents=True)
    for name in (f"{CAFE}.png", "n" * 250 + ".png", "two\nlines.png", f"{file_stem(LABELS[2])}/0.png"):
        Image.new("RGB", (20, 16), "red").save(folder / name)
    return folder


def printed_by(encoding: str, *arguments: str | Path) -> str:
    """What a command that succeeds prints where the encoding is what PYTHONIOENCODING or LC_ALL says."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(stream):
        assert cli.main([*map(str, arguments)]) == 0
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_labels_and_files_are_printed_whatever_they_are(artefact, photographs, encoding):
    files = sorted(path for path in photographs.rglob("*") if path.is_file())
    lines = printed_by(encoding, "run", artefact, *files, "--top_k", "3").splitlines()
    assert len(lines) == 4 * len(files)
    for label in (r"  a\x00b", r"  gr\x1b[31m", "日本" if encoding == "utf-8" else r"\u65e5\u672c"):
        assert sum(label in line and "%" in line[:10] for line in lines) == len(files)
    assert any(line.endswith(r"caf\udce9.png") for line in lines) and any(r"two\nlines" in line for line in lines)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_json_holds_every_name(artefact, photographs, encoding):
    file = photographs / f"{CAFE}.png"
    row = json.loads(printed_by(encoding, "run", artefact, file, "--json"))[0]
    assert Path(row["image"]) == file  # the very name, from escapes
    assert {prediction["label"] for prediction in row["predictions"]} == set(LABELS)


def test_every_command_takes_them(artefact, photographs, tmp_path):
    assert json.loads(printed_by("ascii", "self-test", artefact, "--json"))["num_images"] == 3
    assert json.loads(printed_by("ascii", "verify", artefact, "--dataset", photographs, "--json"))["num_labelled"] == 1
    assert json.loads(printed_by("ascii", "bench", artefact, "--repeats", "1", "--threads", "1", "--json"))["latency"]
    assert "gradle" in printed_by("ascii", "app", "android", artefact, "--output_dir", tmp_path / f"{CAFE} app")
    assert json.loads((tmp_path / f"{CAFE} app/app/src/main/assets/contract.json").read_text())["labels"] == LABELS
    assert "Nothing was uploaded" in printed_by("ascii", "publish", artefact, "org/name")


def test_errors_name_them_in_a_line(artefact, photographs, capsys):
    missing = photographs / "a\nb\x1b.png"
    assert cli.main(["run", str(artefact), str(missing)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["run", str(photographs / ("n" * 300)), str(missing)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_labels_that_are_no_text_are_refused_before_an_export(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"id2label": {"0": CAFE, "1": "b", "2": "c"}}))
    with pytest.raises(CheckpointError, match="can't encode character"):
        load_checkpoint(checkpoint)


def test_escapes_leave_people_s_letters_alone():
    assert printable("naïve 日本 👩\u200d🚀 'x'") == "naïve 日本 👩\u200d🚀 'x'"
    assert printable("a\tb\0\x1b\u2028\udce9") == r"a\tb\x00\x1b\u2028\udce9"
