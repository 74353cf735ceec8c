"""What would be uploaded of a program: the files of its manifest as they were exported, with a true card, and nothing else.

The upload itself is in tests/swin_hf/test_hub.py.
"""

import argparse
import json
import shutil
import subprocess
import sys

import pytest
from constant_programs import constant_program
from huggingface_hub import ModelCard

import edge.__main__ as cli
from edge.device.artefact import MANIFEST_FILE, InputContract, Manifest, Source, sha256_of
from edge.export.publishing import add_publish_command, prepare
from swin_hf.publish import PublishError, add_options

NAME = "org/program"
INPUT = vars(InputContract(height=16, width=24, resample=3))
CONSTANTS = {"labels": ["blue", "green", "red"], "temperature": [1.0], "input_contract": [json.dumps(INPUT)]}
FILES = {
    "model.pte": constant_program(CONSTANTS),
    "export.json": b"{}",
    "preprocessor_config.json": b"{}",
    "self_test.bpte": b"a program with images",
}
EVALUATION = {"dataset": "photos", "metric": "accuracy", "value": 0.9, "low": 0.8, "high": 0.95, "n": 40}


@pytest.fixture
def artefact(tmp_path):
    """A device artefact whose program nobody runs here."""
    folder = tmp_path / "artefact"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest()))
    return folder


def manifest(**changes) -> dict:
    one_image = {"batch_size": 1, "height": 16, "width": 24}
    content = {
        "task": "image-classification",
        "labels": ["blue", "green", "red"],
        "temperature": 1.0,
        "input": INPUT,
        "methods": {"forward": one_image},
        "recipe": "int8",
        "backend": "xnnpack",
        "equalised": False,
        "kept_in_float": [],
        "parity": {},
        "accuracy": {"num_images": 12, "model": 0.75, "program": 0.5},
        "program": {"size_bytes": 123456, "num_delegates": 1, "outside": {}, "planned_memory_bytes": 1},
        "self_test": {"num_images": 2, "tolerance": 0.1},
        "source": vars(Source(checkpoint="../checkpoint", parameters=1)),
        "versions": {},
        "sha256": {name: sha256_of(content) for name, content in FILES.items()},
        "format_version": Manifest.format_version,
        "palette": [],
        "map_size": None,
        "class_map": False,
        "explains": False,
    }
    return content | changes


def command_line(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m edge")
    add_publish_command(parser.add_subparsers(required=True))
    return parser.parse_args(["publish", *arguments])


def test_a_card_tells_what_was_measured(artefact, tmp_path, capsys):
    (artefact / "metrics.json").write_text(json.dumps({"latency_ms": 1.5, "evaluation": EVALUATION}))
    options = command_line(str(artefact), NAME, "--private", "--license", "apache-2.0")
    assert options.run(options) == 0
    shown = capsys.readouterr().out
    assert "org/program (private), branch main:" in shown and "Nothing was uploaded; add --upload." in shown
    for line in (
        "license: apache-2.0",
        "A program for ExecuTorch, recipe `int8`, for images of 16 x 24 pixels, 3 classes, exported with swin-hf.",
        "python -m edge predict org/program photo.jpg",
        "| size of the program | 123,456 bytes |",
        "| accuracy, 12 held-out images | 50.0 % |",
        "| accuracy of the model that it was made of | 75.0 % |",
        "| accuracy, 40 test images | 90.0 % [80.0, 95.0] |",
        "| latency ms | 1.5 |",
    ):
        assert line in shown.splitlines()
    prepare(artefact, NAME, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-classification", "executorch")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("photos", "accuracy", 0.9)


def test_a_backbone_without_figures_has_a_card_too(artefact, tmp_path):
    program = constant_program(CONSTANTS | {"labels": ["stage1"]})
    (artefact / "model.pte").write_bytes(program)
    changes = {"labels": ["stage1"], "sha256": manifest()["sha256"] | {"model.pte": sha256_of(program)}}
    (artefact / MANIFEST_FILE).write_text(json.dumps(manifest(task="feature-maps", accuracy={}, **changes)))
    prepare(artefact, NAME, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "image-feature-extraction" and card.data.eval_results is None
    assert "accuracy" not in card.text


def test_exactly_the_files_of_the_manifest_go(artefact, tmp_path):
    for name in ("notes.txt", ".token", "older.pte"):
        (artefact / name).write_text("private")
    (artefact / "README.md").write_text("# My own words")
    publication = prepare(artefact, NAME, tmp_path / "out")
    assert set(publication.files) == {*FILES, MANIFEST_FILE, "README.md"}
    assert publication.left_out == [".token", "notes.txt", "older.pte"]
    for name in publication.files:
        assert (tmp_path / "out" / name).read_bytes() == (artefact / name).read_bytes()


def test_what_is_not_an_export_is_refused(artefact, tmp_path, capsys):
    def refused(message: str, folder=artefact, name: str = NAME) -> None:
        with pytest.raises(PublishError, match=message):
            prepare(folder, name, tmp_path / "out")
        options = command_line(str(folder), name)
        assert options.run(options) == 1
        assert "error: " in capsys.readouterr().err

    refused("must be named like org/name, got 'name': it has no organisation", name="name")
    refused("has no edge.json; give a folder written by `python -m edge export`", folder=tmp_path)
    (artefact / "metrics.json").write_text(json.dumps({"evaluation": EVALUATION | {"n": "40"}}))
    refused("metrics.json: evaluation.n must be a positive integer, got '40'")
    (artefact / "metrics.json").unlink()
    (artefact / "self_test.bpte").write_bytes(b"another")
    refused("self_test.bpte is not the file that edge.json describes")
    (artefact / "self_test.bpte").unlink()
    refused("has no self_test.bpte")
    (artefact / "self_test.bpte").write_bytes(FILES["self_test.bpte"])
    (tmp_path / "harm").write_bytes(b"harm")
    sums = manifest()["sha256"] | {"../harm": sha256_of(b"harm")}
    (artefact / MANIFEST_FILE).write_text(json.dumps(manifest(sha256=sums)))
    refused("edge.json must name files beside it, got '../harm'")
    (artefact / MANIFEST_FILE).write_text(json.dumps(manifest(accuracy={"model": 0.5})))
    refused("edge.json must have the figures of an export: KeyError")
    (artefact / MANIFEST_FILE).write_text("{}")
    refused("edge.json has format_version None")


def test_options_are_those_of_checkpoints():
    ours, theirs = argparse.ArgumentParser(), argparse.ArgumentParser()
    add_publish_command(commands := ours.add_subparsers())
    add_options(theirs, "folder of an export")

    def described(parser: argparse.ArgumentParser) -> list[dict]:
        names = ("option_strings", "dest", "nargs", "const", "default", "type", "metavar", "help")
        return [{name: getattr(action, name) for name in names} for action in parser._actions]

    assert described(commands.choices["publish"]) == described(theirs)
    assert len(described(theirs)) == 10  # with --help


def test_other_commands_do_without_swin_hf():
    script = (
        "import argparse, sys; from edge.export.publishing import add_publish_command;"
        "add_publish_command(argparse.ArgumentParser().add_subparsers());"
        "sys.exit(any(name in sys.modules for name in ('swin_hf', 'transformers', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("name", ["README.md", "metrics.json", "model.pte", "edge.json"])
def test_what_links_lead_to_is_not_published(artefact, tmp_path, capsys, name):
    source = tmp_path / "source"
    shutil.copytree(artefact, source)
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(artefact / name if (artefact / name).exists() else "/etc/hostname")
    assert cli.main(["publish", str(source), "org/name"]) == 1
    assert f"got links to elsewhere: {name}; copy the folder with `cp -rL`" in capsys.readouterr().err
