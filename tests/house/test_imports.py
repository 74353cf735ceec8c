"""The arrows of the design: swin_hf <- edge <- distill <- scripts, and what the device side may import at all."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = ["swin_hf", "edge", "distill", "scripts"]
ON_THE_DEVICE = sorted(file.stem for file in (ROOT / "edge" / "device").glob("*.py"))


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """Top-level packages that a file imports, at any depth of its code or only when it is loaded."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ORDER)
def test_no_import_goes_back(package):
    later = set(ORDER[ORDER.index(package) + 1 :]) | {"tests"}
    files = sorted((ROOT / package).rglob("*.py"))
    assert files or package == "scripts"
    for file in files:
        assert not imported(file) & later, file


@pytest.mark.parametrize("module", ON_THE_DEVICE)
def test_device_modules_load_without_the_model_side(module):
    file = ROOT / "edge" / "device" / f"{module}.py"
    assert not imported(file, top_level_only=True) & {"swin_hf", "transformers", "datasets"}


def test_no_module_hides_a_library():
    # A file run as a script puts its folder first on sys.path.
    libraries = {"datasets", "evaluate", "accelerate", "distill", "edge", "torch", "transformers", "types", "copy", "random"}
    modules = {file.stem for package in ("distill", "scripts") for file in (ROOT / package).glob("*.py")}
    assert not modules & libraries
