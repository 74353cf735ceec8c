"""Files and folders that appear whole or not at all."""

import shutil
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that its name never stands for half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def move_into_place(work_dir: Path, folder: Path) -> None:
    """Give a finished folder its name; what bore it before goes away only afterwards."""
    previous = folder.with_name(f".{folder.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    work_dir.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)
