"""What is installed: every package, and every file that its code reads."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
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
