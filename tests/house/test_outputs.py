"""No command changes a file that is not this project's: the tree is the same before and after it."""

import importlib
import sys
from pathlib import Path

import pytest

from swin_hf.output_folders import list_files

ROOT = Path(__file__).parents[2]
# Every command that writes a folder, with its inputs, and with {out} where the output goes.
FOLDERS = {
    "distill/run.py": "--dataset {photos} --teacher {checkpoint} --output_dir {out}",
    "scripts/finetune.py": "--dataset {photos} --model {checkpoint} --use_cpu true --output_dir {out}",
    "scripts/finetune.py --resume true": "--dataset {photos} --model {checkpoint} --use_cpu true --output_dir {out}",
    "scripts/cache_teacher.py": "--dataset {photos} --teacher {checkpoint} --use_cpu true --teacher_cache {out}",
    "edge/__main__.py export": "{checkpoint} --recipe fp32 --dataset {photos} --output_dir {out}",
    "edge/__main__.py app android": "{edge} --output_dir {out}",
    "swin_hf/convert.py": "{checkpoint} {out}",
}
BENCHMARKS = ("model", "train", "edge", "students", "distill", "distill-steps", "weight-init")
FILES = [f"scripts/benchmark.py {name}" for name in BENCHMARKS]
OWN = (  # what people have, some of it named like our files and folders
    *("thesis.txt", "data/thesis.txt", "report/final.docx", "checkpoint-5000/weights.bin", "samples/1.png", "model.pte/a"),
    *(
        "README.md",
        "metrics.json",
        "data.json",
        "edge.json",
        "run.json",
        "training.json",
        "stage.json",
        "cache.json",
        ".out.partial/a",
    ),
)

REFUSALS = ("must be a new", "is damaged or was not written", "is damaged: it holds", "--resume must find a training")


@pytest.fixture
def tree(image_folder, checkpoint, artefact, tmp_path, monkeypatch) -> Path:
    """A folder with a data set, a checkpoint, a program, and somebody's own files."""
    for name in OWN:
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text("mine")
        (tmp_path / "single" / name.replace("/", "-")).mkdir(parents=True)
        (tmp_path / "single" / name.replace("/", "-") / Path(name).name).write_text("mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_files(folder)}


def refused(command: str, arguments: str, monkeypatch, capsys) -> str:
    """Start a command that must end with an explained error; returns what it says."""
    file, *first = command.split()
    names = {name: name for name in ("photos", "checkpoint", "edge")}
    argv = [*first, *arguments.format(**names).split()]
    monkeypatch.setattr(sys, "argv", [file, *argv])
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    name = file.removesuffix(".py").replace("/", ".")
    module = importlib.import_module(name.removeprefix("scripts."))
    assert module.main() in (1, 2), f"{command} {argv} ended with success"
    return capsys.readouterr().err


@pytest.mark.parametrize("command", FOLDERS)
def test_folders_of_others_are_left_alone(tree, command, monkeypatch, capsys):
    before = contents(tree)
    for out in ("own", *(f"single/{name.replace('/', '-')}" for name in OWN), "own/thesis.txt"):
        said = refused(command, FOLDERS[command].replace("{out}", out), monkeypatch, capsys)
        assert any(words in said for words in REFUSALS), said
        assert contents(tree) == before


@pytest.mark.parametrize("command", FOLDERS)
def test_outputs_lie_apart_from_inputs(tree, command, monkeypatch, capsys):
    before = contents(tree)
    inputs = [name for name in ("photos", "checkpoint", "edge") if f"{{{name}}}" in FOLDERS[command]]
    for name in inputs:
        for out in (name, f"{name}/new", f"{name}/a/b/new", "."):
            said = refused(command, FOLDERS[command].replace("{out}", out), monkeypatch, capsys)
            assert any(words in said for words in ("must be another folder than", "must lie outside", "must not hold")), said
            assert contents(tree) == before


@pytest.mark.parametrize("command", FILES)
def test_files_of_others_are_left_alone(tree, command, monkeypatch, capsys):
    before = contents(tree)
    for out in ("own/thesis.txt", "own/metrics.json", "own", "photos/red/0.png", "own/thesis.txt/new.json"):
        said = refused(command, f"--output_file {out}", monkeypatch, capsys)
        assert "--output_file must be a new file" in said or "is not a folder" in said, said
        assert contents(tree) == before
