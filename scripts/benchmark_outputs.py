"""Where benchmarks write: a report in JSON, and pictures beside it."""

from pathlib import Path

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
