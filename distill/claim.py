"""A folder that one command has to itself: new, or its own from before, and locked while it works there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from swin_hf.output_folders import check_free, check_writable, read_record, remove_if_empty, write_json

LOCK = ".lock"


@contextmanager
def claimed(folder: Path, record: str, is_resumed: bool = True, hint: str = "", flag: str = "--output_dir") -> Iterator[None]:
    """Lock a folder, which must be new, or hold this record if it is resumed; a new one is removed if nothing comes of it.

    Raises:
        OutputError: it holds other files, or nothing can be written there.
        filelock.Timeout: another command is at work there.
    """
    has_record = read_record(folder, record) is not None
    is_ours = has_record and is_resumed
    if not is_ours:
        check_free(folder, flag, hint if has_record and hint else f"give another {flag}")
    check_writable(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            if not is_ours:
                write_json(folder / record, {"files": {}})
            yield
    finally:
        if made and {path.name for path in folder.iterdir()} <= {LOCK, record}:
            for path in folder.iterdir():
                path.unlink()
            for path in made:
                remove_if_empty(path)
