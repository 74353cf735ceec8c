"""The documentation as a site: `make docs`, or `python scripts/build_docs.py`, writes build/docs/site.

The pages are those of the repository, in the same folders so that their links hold, and three kinds that are made here: the
Python interface from its docstrings, a gallery of all pictures, and every error message with the place that it comes from.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "docs" / "pages"
WRITTEN = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "edge/cpp/README.md", "edge/apps/*/README.md")
PICTURES = "scripts/measurements/*.png"
INTERFACE = {  # what people import, by package
    "swin_hf": (
        *(
            "swin_hf.configuration_swin_hf",
            "swin_hf.modeling_swin_hf",
            "swin_hf.segmentation_swin_hf",
            "swin_hf.presets_swin_hf",
        ),
        *("swin_hf.image_processing_swin_hf", "swin_hf.convert", "swin_hf.publish", "swin_hf.explanations"),
        *("swin_hf.uploading", "swin_hf.distillation_losses", "swin_hf.dense_inference"),
    ),
    "edge": (
        *("edge.device.runner", "edge.device.segmentation", "edge.device.bench", "edge.device.verify", "edge.device.artefact"),
        *("edge.export.export", "edge.lower.recipes", "edge.verbs.opening", "edge.verbs.evaluate", "edge.apps.writer"),
    ),
    "distill": (
        "distill.pruning.plan",
        "distill.pruning.apply",
        "distill.compress.weight_selection",
        "distill.compress.teachers",
    ),
}


def write_pages() -> None:
    """Put all pages together."""
    shutil.rmtree(PAGES, ignore_errors=True)
    pictures = sorted(ROOT.glob(PICTURES))
    for file in [*(file for pattern in WRITTEN for file in sorted(ROOT.glob(pattern))), *pictures]:
        copy = PAGES / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    for package, modules in INTERFACE.items():
        page = PAGES / "api" / f"{package}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(f"# {package}\n\n" + "\n".join(f"::: {module}\n" for module in modules), encoding="utf-8")
    shown = [f"## {file.stem.replace('_', ' ')}\n\n![{file.stem}]({file.relative_to(ROOT)})\n" for file in pictures]
    told = "What the figures look like; [benchmarks](docs/benchmarks.md) says how each was measured.\n"
    (PAGES / "gallery.md").write_text(f"# Gallery\n\n{told}\n" + "\n".join(shown), encoding="utf-8")
    (PAGES / "errors.md").write_text(page_of_errors(), encoding="utf-8")


def page_of_errors() -> str:
    """Every message that the code explains something with, by module. What varies is in braces."""
    lines = [
        "# Error messages",
        "",
        "Every message says what was expected, what came, and what to do. Here they are as they stand in the code; what",
        "varies is in braces. Search this page for words of yours.",
    ]
    for module, found in messages().items():
        lines += ["", f"## {module}", "", "| error | message |", "|---|---|"]
        lines += [f"| {kind} | {_cell(text)} |" for kind, text in found]
    return "\n".join(lines) + "\n"


def messages() -> dict[str, list[tuple[str, str]]]:
    """Kind and text of every error that is raised with a text of its own, or by `require`, by module."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for package in ("swin_hf", "edge", "distill"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                kind, text = _raised(node) or _required(node) or ("", "")
                if text:
                    found[".".join(file.relative_to(ROOT).with_suffix("").parts)].append((kind, text))
    return dict(found)


def _raised(node: ast.AST) -> tuple[str, str] | None:
    """Kind and text of an error that a statement raises."""
    if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
        return None
    kind = node.exc.func
    is_error = isinstance(kind, ast.Name) and kind.id.endswith(("Error", "Stopped"))
    return (kind.id, _text(node.exc.args[0])) if is_error else None


def _required(node: ast.AST) -> tuple[str, str] | None:
    """Kind and text of what `require(holds, flag, rule, value, hint)` raises where something does not hold."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require"):
        return None
    if len(node.args) < 4 or not _text(node.args[2]):
        return None
    flag = _text(node.args[1]) or f"{{{ast.unparse(node.args[1])}}}"
    hint = f"; {_text(node.args[4])}" if len(node.args) > 4 and _text(node.args[4]) else ""
    return "SettingsError", f"--{flag} must {_text(node.args[2])}, got {{{ast.unparse(node.args[3])}}}{hint}"


def _text(node: ast.expr) -> str:
    """The text of a string with what is put into it in braces; empty if it is put together in another way."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}" for part in node.values)
        return "".join(parts)
    return ""


def _cell(text: str) -> str:
    """A text as one cell of a table, as it is."""
    fence = "``" if "`" in text else "`"
    return f"{fence} {' '.join(text.split())} {fence}".replace("|", "\\|")


def main() -> int:
    write_pages()
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
