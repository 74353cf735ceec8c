"""Which rooms and packages each room may import, as one table; checked for everything that a module loads."""

import ast
import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the modules of a folder may import.

    rooms: our other rooms.
    loads: third-party packages that importing one of its modules may load, directly or through other modules.
    asks_for: packages that its functions may import if they are installed.
    """

    rooms: tuple[str, ...] = ()
    loads: frozenset[str] = frozenset()
    asks_for: frozenset[str] = frozenset()


DEVICE = frozenset({"numpy", "PIL", "torch", "executorch"})  # ExecuTorch's wheel depends on torch
MODELS = frozenset({"numpy", "PIL", "torch", "transformers", "huggingface_hub", "safetensors"})
LOWERING = DEVICE | MODELS | {"torchao"}
IMAGES = frozenset({"numpy", "PIL", "torch", "datasets", "sklearn", "tqdm", "kornia", "transformers"})
TRAINING = IMAGES | MODELS | {"accelerate", "filelock", "matplotlib", "pycocotools", "pytorch_optimizer", "yaml"}
TRACKERS = frozenset({"wandb", "trackio"})

ROOMS = {
    "swin_hf": Room(loads=MODELS),
    "edge.device": Room(loads=DEVICE, asks_for=frozenset({"pillow_heif", "pillow_avif", "cv2", "tqdm"})),
    "edge.deploy": Room(rooms=("swin_hf", "edge.device"), loads=MODELS),
    "edge.lower": Room(rooms=("swin_hf", "edge.device", "edge.deploy"), loads=LOWERING, asks_for=frozenset({"accelerate"})),
    "edge.export": Room(
        rooms=("swin_hf", "edge", "edge.device", "edge.deploy", "edge.lower"), loads=LOWERING, asks_for=frozenset({"datasets"})
    ),
    "edge.compare": Room(
        rooms=("swin_hf", "edge", "edge.device", "edge.deploy", "edge.lower", "edge.export"),
        loads=LOWERING,
        asks_for=frozenset({"onnx", "onnxruntime", "openvino"}),
    ),
    "edge.verbs": Room(
        rooms=("swin_hf", "edge", "edge.device", "edge.deploy", "edge.lower", "edge.export"), loads=LOWERING | {"gradio"}
    ),
    "edge.apps": Room(rooms=("swin_hf", "edge", "edge.device"), loads=DEVICE),
    # quiet.py and the command line, whose commands import what they need when they run
    "edge": Room(
        rooms=("swin_hf", "edge.device", "edge.export", "edge.compare", "edge.apps", "edge.lower", "edge.verbs"), loads=DEVICE
    ),
    "distill": Room(
        rooms=("swin_hf", "edge", "edge.device"), loads=MODELS | {"datasets", "filelock"}, asks_for=frozenset({"psutil"})
    ),
    "distill.data": Room(rooms=("distill", "swin_hf", "edge", "edge.device"), loads=IMAGES | MODELS),
    "distill.compress": Room(
        rooms=("distill", "distill.data", "swin_hf", "edge", "edge.device"), loads=IMAGES | MODELS | {"torch_pruning"}
    ),
    "distill.training": Room(
        rooms=("distill", "distill.data", "distill.compress", "swin_hf", "edge", "edge.device"),
        loads=TRAINING,
        asks_for=TRACKERS,
    ),
    "distill.pruning": Room(
        rooms=(
            *("distill", "distill.data", "distill.compress", "swin_hf"),
            *("edge", "edge.device", "edge.deploy", "edge.lower", "edge.export", "edge.compare"),
        ),
        loads=IMAGES | LOWERING | {"torch_pruning"},
    ),
    "distill.pipeline": Room(
        rooms=(
            *("distill", "distill.data", "distill.compress", "distill.training", "distill.pruning", "swin_hf"),
            *("edge", "edge.device", "edge.deploy", "edge.lower", "edge.export", "edge.compare"),
        ),
        loads=TRAINING | LOWERING | {"torch_pruning", "jinja2", "markupsafe"},
    ),
}
COMMAND_LINES = {
    "edge.__main__",
    "distill.run",
    "distill.prune",
    "distill.latency",
}  # entry points, whose functions may import any room


# -- what a module imports -----------------------------------------------------------------------------------------------


class House:
    """The modules below a folder, and what they import."""

    def __init__(self, root: Path):
        files = [file for package in ("swin_hf", "edge", "distill") for file in (root / package).rglob("*.py")]
        self.files = {_name(file.relative_to(root)): file for file in files}

    def room_of(self, module: str) -> str:
        """The room that contains a module."""
        return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len)

    @cache  # noqa: B019  lives as long as the house
    def imports(self, module: str, when_loaded: bool) -> frozenset[str]:
        """What a module imports when it is loaded, or also in its functions; third-party modules by their package."""
        found: set[str] = set()
        for node in _import_nodes(ast.parse(self.files[module].read_text()), when_loaded):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                base = self._absolute(module, node)
                names = [f"{base}.{alias.name}" for alias in node.names]
            found |= {self._resolved(name) for name in names}
        return frozenset(found - {module})

    def loaded(self, module: str) -> frozenset[str]:
        """Everything that importing a module loads: our modules by their names, others by their packages."""
        seen, waiting = set(), [module]
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            if one in self.files:
                parents = [one.rsplit(".", depth)[0] for depth in range(1, one.count(".") + 1)]
                waiting += [*self.imports(one, True), *parents]
        return frozenset(seen - {module})

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module
        is_package = self.files[module].name == "__init__.py"
        base = module.split(".")[: len(module.split(".")) - node.level + is_package]
        return ".".join([*base, *([node.module] if node.module else [])])

    def _resolved(self, name: str) -> str:
        """Our module that a dotted name refers to or lies in, or else its third-party package."""
        parts = name.split(".")
        known = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        return next((one for one in known if one in self.files), parts[0])


def _name(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _import_nodes(tree: ast.AST, when_loaded: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports, without those for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        elif not (when_loaded and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from _import_nodes(node, when_loaded)


def violations(root: Path) -> list[str]:
    """Every import below a folder that the table does not allow."""
    house, found = House(root), []
    for module in sorted(house.files):
        name = house.room_of(module)
        room, own = ROOMS[name], {name, *ROOMS[name].rooms}
        named, loaded = house.imports(module, False), house.loaded(module)
        if module not in COMMAND_LINES:
            packages = {room.rsplit(".", depth)[0] for room in own for depth in range(room.count(".") + 1)}  # they come along
            ours = (named | loaded) & set(house.files) - packages
            rooms = {one for one in ours if house.room_of(one) not in own}
            found += [f"{module} imports {one}" for one in sorted(rooms)]
        foreign = loaded - set(house.files) - room.loads
        foreign |= named - set(house.files) - room.loads - room.asks_for
        found += [f"{module} imports {one}" for one in sorted(foreign - sys.stdlib_module_names)]
    return found


# -- tests ---------------------------------------------------------------------------------------------------------------


def test_every_room_imports_what_it_may_and_nothing_else():
    assert violations(ROOT) == []


def test_rooms_of_the_table_are_those_of_the_house():
    folders = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for name in ROOMS
        for file in ROOT.joinpath(*name.split(".")).glob("*.py")
    }
    assert folders == set(ROOMS)


@pytest.mark.parametrize(
    ("file", "planted", "found"),
    [
        ("edge/device/image.py", "import transformers", "edge.device.image imports transformers"),
        ("edge/device/parity.py", "def f():\n    import datasets", "edge.device.parity imports datasets"),
        ("edge/device/runner.py", "from ..deploy import form", "edge.device.runner imports edge.deploy.form"),
        ("edge/quiet.py", "import accelerate", "distill.run imports accelerate"),  # through another module
        ("edge/__init__.py", "import transformers", "edge.device.image imports transformers"),  # through its package
        (
            "edge/lower/recipes.py",
            "def f():\n    from edge.export.export import export",
            "edge.lower.recipes imports edge.export.export",
        ),
        ("swin_hf/windows.py", "from edge.quiet import quieten", "swin_hf.windows imports edge.quiet"),
        ("distill/data/sources.py", "import executorch.runtime", "distill.training.finetune imports executorch"),
        (
            "distill/training/trainer.py",
            "import distill.pipeline.stages",
            "distill.training.trainer imports distill.pipeline.stages",
        ),
        ("edge/export/bounds.py", "import distill", "edge.export.bounds imports distill"),
    ],
)
def test_a_planted_import_is_found(file, planted, found, tmp_path):
    for package in ("swin_hf", "edge", "distill"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / file).write_text((tmp_path / file).read_text() + f"\n{planted}\n")
    assert found in violations(tmp_path)


def test_scripts_are_imported_by_nobody():
    scripts = {file.stem for file in (ROOT / "scripts").glob("*.py")}
    house = House(ROOT)
    assert not {one for module in house.files for one in house.imports(module, False)} & scripts


def test_no_module_hides_a_library():
    # A file run as a script puts its folder first on sys.path, and so does the configuration of pytest with tests/support.
    libraries = {*importlib.metadata.packages_distributions(), *sys.stdlib_module_names, "evaluate", "compression"}
    paths = [path for folder in ("distill", "scripts", "tests/support") for path in (ROOT / folder).iterdir()]
    names = {path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").is_file()} - {"__init__"}
    assert names and not names & libraries
