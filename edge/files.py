"""Files and folders that are written completely or not at all."""

import shutil
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a temporary name, and rename it when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def move_into_place(work_dir: Path, folder: Path) -> None:
    """Move a finished folder to its final path; an older folder there is deleted only afterwards."""
    previous = folder.with_name(f".{folder.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    work_dir.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)
