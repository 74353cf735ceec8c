"""What benchmarks write, and where: a report in JSON with what it was measured on, and pictures beside it."""

from datetime import UTC, datetime
from pathlib import Path

import torch

from edge.device.environment import describe_machine, installed_versions
from swin_hf.output_folders import OutputError, check_file_replaceable


def check_report(file: Path) -> None:
    """Refuse a place for a report before any work.

    Raises:
        OutputError: it is no JSON file, or somebody's own.
    """
    check_file_replaceable(file, "--output_file")
    if file.suffix != ".json":
        raise OutputError(f"--output_file must end in .json, got {file}")


def picture_beside(report: Path, ending: str = "") -> Path:
    """The file of a picture that belongs to a report, whose name it has, and an ending.

    Raises:
        OutputError: there is such a file but no report, so it is somebody's own.
    """
    picture = report.with_name(f"{report.stem}{ending}.png")
    if picture.exists() and not report.exists():
        raise OutputError(f"--output_file must leave {picture} free for the picture; it is left as it is: give another name")
    return picture


def measured_here(*packages: str, device: str | torch.device = "cpu") -> dict:
    """What every report begins with: today's date, the machine or its GPU, the versions of Python and of `packages`."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": torch.cuda.get_device_name(device) if on_gpu else describe_machine(),
        "versions": installed_versions(*packages),
    }
