"""The documentation against the code: commands parse, links lead somewhere, and the files, flags and names in it exist."""

import argparse
import ast
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
from accelerate.commands.launch import launch_command_parser

from distill.pipeline.settings import parse_settings
from distill.training.segmenter_evaluation import parse_evaluation_settings
from distill.training.settings import parse_finetune_settings
from edge.lower.recipes import RECIPES

ROOT = Path(__file__).parents[2]
README, DOCS = ROOT / "README.md", sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}

UNCHECKED = ("hf", "pip", "scp", "source")  # programs of others, and of the shell
PROGRAMS = ("accelerate", "make", "python", *UNCHECKED)
ARGPARSE_PROGRAMS = {  # first words of a command: the module whose `main` reads the others
    ("python", "-m", "edge"): "edge.__main__",
    ("python", "-m", "device"): "edge.device.__main__",
    ("python", "-m", "swin_hf.convert"): "swin_hf.convert",
    ("python", "-m", "swin_hf.publish"): "swin_hf.publish",
    ("python", "-m", "swin_hf.explain"): "swin_hf.explain",
    ("python", "-m", "distill.prune"): "distill.prune",
    ("python", "-m", "distill.latency"): "distill.latency",
    ("python", "scripts/benchmark.py"): "scripts.benchmark",
    ("python", "tests/arm64/arm64.py"): "tests.arm64.arm64",
}
SHELL_BLOCK = re.compile(r"^```(?:bash|console|sh)\n(.*?)^```$", re.M | re.S)
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
ANY_BLOCK = re.compile(r"^```.*?^```$", re.M | re.S)
INDENTED_BLOCK = re.compile(r"(?:^ {4}.*\n)+", re.M)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FLAG = re.compile(r"--[A-Za-z][\w-]*")


class UsageError(Exception):
    """A program does not take a command; the message is what it says."""


class CommandLineReached(Exception):
    """A program is about to read its command line."""


# -- what a page shows -------------------------------------------------------------------------------------------------


def prose_of(text: str) -> str:
    """A page without its blocks of code."""
    return INDENTED_BLOCK.sub("", ANY_BLOCK.sub("", text))


def commands_in(text: str) -> list[list[str]]:
    """The words of every command on a page: in blocks for a shell, in indented blocks and in inline code.

    A comment is dropped, and so are `...` at the end and a file that the shell writes. `...` at the start of inline code
    stands for the command before it.
    """
    without_blocks = ANY_BLOCK.sub("", text)
    shell = "".join(SHELL_BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    indented = "".join(INDENTED_BLOCK.findall(without_blocks)).replace("\\\n", " ").splitlines()
    shell, indented = ([line.strip().removeprefix("$ ") for line in lines] for lines in (shell, indented))
    lines = shell + [line for line in indented if line.split(" ")[0] in PROGRAMS]  # others are diagrams and formulas
    commands = [shlex.split(line, comments=True) for line in lines]
    before: list[str] = []
    for code in INLINE.findall(INDENTED_BLOCK.sub("", without_blocks)):
        words = code.split()
        if words[:1] == ["..."] and before:
            before = before + shlex.split(code)[1:]
        elif words[0] in PROGRAMS and len(words) > 1:
            before = shlex.split(code)
        else:
            continue
        commands.append(before)
    commands = [words[: words.index(">")] if ">" in words else words for words in commands if words]
    return [words[:-1] if words[-1] == "..." else words for words in commands]


COMMANDS = {" ".join(map(shlex.quote, words)): words for text in TEXTS.values() for words in commands_in(text)}


def test_commands_are_found_wherever_they_stand():
    text = """Say `python -m edge run DIR photo.jpg` or `make demo`; `make` and `accelerate` are names.

```bash
python a.py --x 1 \\
    --y "{b: 2}"  # a comment
$ pip install c
```

```python
python = 3
```

    make test    # a comment
    images -> program

| you want | command |
|---|---|
| one | `python -m d E` |
| other | `... --upload` |
| most | `accelerate launch f.py ...` |
"""
    assert commands_in(text) == [
        ["python", "a.py", "--x", "1", "--y", "{b: 2}"],
        ["pip", "install", "c"],
        ["make", "test"],
        ["python", "-m", "edge", "run", "DIR", "photo.jpg"],
        ["make", "demo"],
        ["python", "-m", "d", "E"],
        ["python", "-m", "d", "E", "--upload"],
        ["accelerate", "launch", "f.py"],
    ]


def test_no_kind_of_command_is_overlooked():
    assert len(COMMANDS) > 60
    for program, fewest in (
        ("python -m edge ", 15),
        ("python -m device ", 2),
        ("python -m swin_hf.convert ", 4),
        ("python -m swin_hf.publish ", 3),
        ("python -m pytest ", 2),
        ("python distill/run.py", 7),
        ("python -m distill.prune ", 1),
        ("python scripts/benchmark.py ", 7),
        ("python tests/arm64/arm64.py", 1),
        ("accelerate launch ", 9),
        ("make ", 3),
    ):
        assert sum(command.startswith(program) for command in COMMANDS) >= fewest, program


# -- whether the programs take it --------------------------------------------------------------------------------------


@cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser with which the `main` of a program reads the command line."""
    folders = [str(ROOT / folder) for folder in ("scripts", "tests/arm64")]  # where entry points find their parts
    with mock.patch.object(sys, "path", [*sys.path, *folders]):
        main = importlib.import_module(module).main
    reading = mock.patch.object(argparse.ArgumentParser, "parse_known_args", autospec=True, side_effect=CommandLineReached)
    with reading as parse_known_args, pytest.raises(CommandLineReached):
        main([])
    return parse_known_args.call_args.args[0]


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return parser.parse_args(words)
    except SystemExit:
        raise UsageError(complaint.getvalue().strip().splitlines()[-1]) from None


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The flags of a program and of its commands."""
    options = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options |= {option for command in action.choices.values() for option in options_of(command)}
    return options


def check_command(words: list[str]) -> None:
    """Have the program that a command starts read the rest of it.

    Raises:
        UsageError: argparse refuses it.
        ValueError: the settings of a program are refused.
    """
    for first, module in ARGPARSE_PROGRAMS.items():
        if tuple(words[: len(first)]) == first:
            parser, rest = parser_of(module), words[len(first) :]
            assert getattr(parse(parser, rest), "recipe", "int8") in RECIPES
            assert {word for word in rest if word.startswith("--")} <= options_of(parser)  # argparse takes abbreviations
            return
    match words:
        case ["accelerate", "launch", *rest]:
            arguments = parse(launch_command_parser(), rest)
            assert arguments.training_script in ("scripts/finetune.py", "scripts/cache_teacher.py")
            assert arguments.config_file is None or (ROOT / arguments.config_file).is_file(), arguments.config_file
            parse_finetune_settings([*arguments.training_script_args, "--use_cpu", "true"])  # which takes --bf16 anywhere
        case ["python", "distill/run.py", *rest]:
            parse_settings(rest)
        case ["python", "scripts/evaluate_segmenter.py", *rest]:
            parse_evaluation_settings(rest)
        case ["python", "-m", "pytest", *rest]:
            paths = [word for word in rest if not word.startswith("-")]
            assert paths and all((ROOT / path).exists() for path in paths)
        case ["make", *targets]:
            makefile = (ROOT / "Makefile").read_text()
            assert targets and all(re.search(rf"^{re.escape(target)}:", makefile, re.M) for target in targets)
        case _:
            raise UsageError(f"this test knows no program that reads {words}")


@pytest.mark.parametrize("command", [command for command, words in COMMANDS.items() if words[0] not in UNCHECKED])
def test_program_takes_the_command(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 1\n")  # a reader's own configuration
    with mock.patch.dict(os.environ):  # transformers notes the precision there
        check_command(COMMANDS[command])


def test_command_that_no_program_takes_is_noticed():
    for command in (
        "python -m edge run",
        "python -m edge export A --output_dir B --dataset C --recipe int7",
        "python -m swin_hf.convert SOURCE",
        "python -m swin_hf.convert SOURCE DESTINATION --allow",
        "accelerate launch scripts/finetune.py --no_such_flag 1",
        "python distill/run.py --config no_such_file",
        "make no_such_target",
        "python -m pytest tests/no_such_test.py",
        "python no_such_program.py",
    ):
        with pytest.raises((AssertionError, ValueError, UsageError)):
            check_command(shlex.split(command))


def test_flags_of_our_programs_have_no_hyphens():
    ours = [word for words in COMMANDS.values() if words[0] not in UNCHECKED for word in words]
    ours += [code for text in TEXTS.values() for code in INLINE.findall(prose_of(text)) if code.startswith("--")]
    flags = {flag for text in ours for flag in FLAG.findall(text)}
    assert len(flags) > 50
    assert not {flag for flag in flags if "-" in flag[2:]}


def test_flags_that_are_explained_exist():
    known = set().union(*(options_of(parser_of(module)) for module in ARGPARSE_PROGRAMS.values()))
    known |= options_of(launch_command_parser())
    for parse_words in (parse_settings, parse_finetune_settings, parse_evaluation_settings):
        shown = io.StringIO()
        with redirect_stdout(shown), suppress(SystemExit):
            parse_words(["--help_all"])
        known |= set(FLAG.findall(shown.getvalue()))
    flags = {
        flag: page.name
        for page, text in TEXTS.items()
        for code in INLINE.findall(prose_of(text))
        if code.startswith("--")
        for flag in FLAG.findall(code)
    }
    assert len(flags) > 40
    assert {flag: page for flag, page in flags.items() if flag not in known} == {}


def test_programs_start(tmp_path):
    # The others take long to import all of training.
    shutil.copytree(ROOT / "edge" / "device", tmp_path / "device")  # as the documentation has it copied to a Raspberry Pi
    programs = [list(first[1:]) for first in ARGPARSE_PROGRAMS if first[1] != "scripts/benchmark.py"]

    def show_help(program: list[str]) -> subprocess.CompletedProcess:
        alone = program == ["-m", "device"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {} if alone else {"PYTHONPATH": str(ROOT)}
        command, folder = [sys.executable, *program, "--help"], tmp_path if alone else ROOT
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)

    with ThreadPoolExecutor(2) as pool:
        for program, done in zip(programs, pool.map(show_help, programs)):
            assert done.returncode == 0, f"{program}: {done.stderr[-500:]}"
            assert "usage:" in done.stdout and "--help" in done.stdout, program


# -- whether what is named exists --------------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """The addresses of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", ANY_BLOCK.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in LINK.findall(TEXTS[page]) if not link.startswith(("http://", "https://"))]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors_of(target), link


def test_paths_in_the_repository_exist():
    packages = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
    tops = "|".join([*packages, "docs", "scripts", "tests"])
    found = {
        match.rstrip("/.") for text in TEXTS.values() for match in re.findall(rf"(?<![\w/.:-])((?:{tops})/[\w./-]*)", text)
    }
    assert len(found) > 50
    assert [path for path in sorted(found) if not (ROOT / path).exists()] == []


def test_readme_is_short_and_leads_to_every_page():
    assert len(TEXTS[README].splitlines()) <= 150
    links = LINK.findall(TEXTS[README])
    assert len(DOCS) >= 9
    assert not [page.name for page in DOCS if f"docs/{page.name}" not in links]


def test_readme_names_every_folder_of_code():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*/__init__.py")}
    assert len(folders) >= 10
    assert not [folder for folder in sorted(folders) if f"| `{folder}` |" not in TEXTS[README]]


def test_readme_has_the_table_of_the_demo():
    rows = re.findall(r"^\| (?:teacher|student|int8 \.pte) \| .*$", TEXTS[README], re.M)
    assert len(rows) == 3
    assert "\n".join(rows) in TEXTS[ROOT / "docs" / "distillation-and-pruning.md"]


def test_recipes_are_all_listed():
    table = TEXTS[ROOT / "docs" / "device.md"].split("| recipe | |\n")[1].split("\n\n")[0]
    names = {name for row in table.splitlines() for name in INLINE.findall(row.split("|")[1])}
    assert names == set(RECIPES)


@pytest.mark.parametrize(
    ("folder", "page"),
    [("distill/training/configs", "fine-tuning.md"), ("distill/pipeline/configs", "distillation-and-pruning.md")],
)
def test_configurations_are_all_listed(folder, page):
    names = [path.stem for path in (ROOT / folder).glob("*.yaml")]
    assert names
    assert not [name for name in names if f"`{name}`" not in TEXTS[ROOT / "docs" / page]]


def test_python_examples_import_what_exists():
    examples = [code for text in TEXTS.values() for code in PYTHON_BLOCK.findall(text)]
    assert len(examples) >= 5
    for node in (node for example in examples for node in ast.walk(ast.parse(example))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], node.module
