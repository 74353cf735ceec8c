"""The device's room where nothing else is installed: as part of the project, and copied alone to another folder."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DEVICE = ROOT / "edge" / "device"
# What executorch and torch import to load the runtime and PyTorch, beside themselves, NumPy and Pillow.
OF_THE_RUNTIME = ["filelock", "flatbuffers", "fsspec", "functorch", "jinja2", "markupsafe", "mpmath", "networkx", "ruamel"]
OF_THE_RUNTIME += ["sympy", "tabulate", "torchgen", "typing_extensions", "yaml"]
INSTALLED = ["numpy", "PIL", "torch", "executorch", *OF_THE_RUNTIME]

# Python runs this at every start, also of the processes that a command starts: other packages are not found, as if they were
# not installed.
SITE_CUSTOMIZE = """
import sys

class Installed:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package.startswith("_") or package in {installed}:
            return self.finder.find_spec(name, path, target)
        return None

sys.meta_path[:] = [Installed(finder) for finder in sys.meta_path]
"""


@pytest.fixture
def on_a_device(tmp_path):
    """Runs `python -m PACKAGE ...` in a folder, where only `INSTALLED` and the package can be imported."""

    def run(package: str, folder: Path, *arguments: str | Path) -> str:
        site = tmp_path / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(SITE_CUSTOMIZE.replace("{installed}", repr({*INSTALLED, package})))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-m", package, *map(str, arguments)],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


@pytest.fixture(params=["edge", "device"])
def command(request, on_a_device, artefact, checkpoint, tmp_path):
    """Runs a command of the project, or of a copy of `edge/device` alone, without the checkpoint."""
    shutil.rmtree(checkpoint)
    folder = ROOT
    if request.param == "device":
        folder = tmp_path / "pi"
        shutil.copytree(DEVICE, folder / "device", ignore=shutil.ignore_patterns("__pycache__"))
    return lambda name, *arguments: json.loads(on_a_device(request.param, folder, name, artefact, *arguments, "--json"))


def test_run_needs_the_runtime_alone(command, image_folder):
    predictions = command("run", image_folder / "red" / "0.png")[0]["predictions"]
    assert sorted(p["label"] for p in predictions) == ["blue", "green", "red"]
    assert sum(p["probability"] for p in predictions) == pytest.approx(1)


def test_verify_needs_the_runtime_alone(command, image_folder):
    figures = command("verify", "--dataset", image_folder)
    assert (figures["num_images"], figures["num_labelled"]) == (48, 48)
    assert 0 <= figures["accuracy"] <= 1


def test_self_test_needs_the_runtime_alone(command):
    assert command("self-test")["num_images"] == 3


def test_bench_and_its_processes_need_the_runtime_alone(command):
    latency = command("bench", "--repeats", "3", "--threads", "1")["latency"]
    assert [(row["threads"], row["repeats"]) for row in latency] == [(1, 3)]


def test_verify_counts_labels_where_the_checkpoint_lies_but_cannot_be_loaded(on_a_device, artefact, checkpoint, image_folder):
    assert checkpoint.is_dir()
    figures = json.loads(on_a_device("edge", ROOT, "verify", artefact, "--dataset", image_folder, "--json"))
    assert figures["num_labelled"] == 48 and "checkpoint" not in figures


def test_what_a_device_cannot_do_is_explained(on_a_device, artefact, checkpoint, image_folder, tmp_path):
    export = ("export", checkpoint, "--output_dir", tmp_path / "out", "--dataset", image_folder)
    for command in (export, ("publish", artefact, "org/name"), ("bench", artefact, "--compare")):
        with pytest.raises(AssertionError, match=r"error: No module named '\w+', which this command needs; pip install"):
            on_a_device("edge", ROOT, *command)
    assert not (tmp_path / "out").exists()


def test_other_packages_are_refused_there(on_a_device, tmp_path):
    # The test of the tests above: a package of the project and one of another project.
    (tmp_path / "probe").mkdir()
    for name in ("swin_hf", "transformers", "torchao", "safetensors", "huggingface_hub", "datasets", "sklearn", "distill"):
        (tmp_path / "probe" / "__main__.py").write_text(f"import {name}")
        with pytest.raises(AssertionError, match=f"No module named '{name}'"):
            on_a_device("probe", tmp_path)


@pytest.mark.parametrize("file", sorted(DEVICE.glob("*.py")), ids=lambda file: file.stem)
def test_the_device_imports_nothing_else_even_inside_functions(file):
    if_installed = {"pillow_heif", "pillow_avif", "cv2", "tqdm"}
    allowed = sys.stdlib_module_names | {"numpy", "PIL", "torch", "executorch"} | if_installed
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 or (node.level == 0 and node.module.partition(".")[0] in allowed)
