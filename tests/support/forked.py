"""Scripts in processes of their own that need not import everything again: they are forked from one that has."""

import multiprocessing
import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["forked_imports"])


def start_script(command: list[str], output: Path, errors: Path) -> BaseProcess:
    """Start a script, the first word of `command`, as the main program of a new process; it writes to these two files."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv(
            "PYTHONPATH", os.pathsep.join(map(str, (HERE, HERE.parents[1])))
        )  # for the first process, which imports
        process = FORKS.Process(target=_become, args=(command, output, errors))
        process.start()
    return process


def _become(command: list[str], output: Path, errors: Path) -> None:
    for file, descriptor in ((output, 1), (errors, 2)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
