"""What is installed: every package, and every file that its code reads; and that what is released can be installed."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS, VERSION = PROJECT["tool"]["setuptools"], PROJECT["project"]["version"]
PACKAGES = ("swin_hf", "edge", "distill")


def test_files_beside_the_code_are_installed_with_it():
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    others = {path for path in files if path.suffix not in (".py", ".pyc")}
    installed = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    assert others and others <= installed


def test_every_folder_of_code_is_a_package_that_is_found():
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    assert SETUPTOOLS["packages"]["find"]["include"] == [f"{package}*" for package in PACKAGES]


@pytest.fixture(scope="module")
def distribution(tmp_path_factory) -> Path:
    """The folder of a wheel and a source distribution, built of a copy of what git tracks or would track."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def test_distributions_are_what_an_index_takes(distribution):
    files = sorted(path.name for path in distribution.iterdir())
    assert files == [f"swin_hf-{VERSION}-py3-none-any.whl", f"swin_hf-{VERSION}.tar.gz"]
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, distribution.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout


def test_the_wheel_runs_without_its_source(distribution, tmp_path):
    (wheel,) = distribution.glob("*.whl")
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([*pip, "--disable-pip-version-check"], check=True)
    environment = os.environ | {"PYTHONPATH": str(target)}
    code = "import swin_hf, edge, distill; print(*(module.__file__ for module in (swin_hf, edge, distill)), sep='\\n')"
    for command in (["-c", code], ["-m", "edge", "app", "--help"], ["-m", "distill.run", "--help"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        if command[0] == "-c":
            assert all(line.startswith(str(target)) for line in done.stdout.splitlines())
    assert (target / "distill" / "pipeline" / "templates" / "report.html").is_file()
    assert (target / "edge" / "apps" / "android").is_dir()


def test_versions_agree():
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()
