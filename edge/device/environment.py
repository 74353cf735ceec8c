"""What a figure was measured on: the machine and the versions of the packages."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path


def describe_machine() -> str:
    """Processor, cores and system in a line."""
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
    except importlib.metadata.PackageNotFoundError:  # run from its source folder
        return "not installed"


def environment_of_child() -> dict[str, str]:
    """Variables for a Python process that finds this package and whatever this process can import."""
    folders = [str(Path(__file__).parent.parent.parent), *filter(None, sys.path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(folders)}


def memory_of_this_process(field: str) -> int:
    """Bytes now (VmRSS) or at the peak (VmHWM), as Linux counts them; 0 elsewhere.

    Not getrusage: it carries the parent's peak over.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
