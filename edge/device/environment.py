"""The machine, the versions of packages and the memory that a measurement is reported with."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path


def describe_machine() -> str:
    """Processor, cores and system in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def installed_versions(*packages: str) -> dict[str, str]:
    """Version of Python and of each package."""
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # for example a package run from its source folder
        return "not installed"


def environment_of_child() -> dict[str, str]:
    """Environment variables for a Python process that can import this package and all that this process can import."""
    depth = len(__package__.split("."))  # this folder may be `edge.device`, or `device` alone
    folders = [str(Path(__file__).resolve().parents[depth]), *filter(None, sys.path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(folders)}


def memory_of_this_process(field: str) -> int:
    """Memory of the process in bytes, now (VmRSS) or at its peak (VmHWM); 0 where there is no /proc.

    getrusage is no use here: a child process inherits its parent's peak.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
