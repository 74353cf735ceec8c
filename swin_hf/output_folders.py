"""Output folders and files: what a command may write to, and what of it may be replaced.

Whatever a command makes holds a record: a JSON file that says that this project made it, as what, and its files with their
sizes in bytes. Only what such a record lists is ever replaced or removed; anything else is somebody's own.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import ExplainedError

MADE_BY = "swin-hf"
SYSTEM_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})  # which a file manager leaves, and makes again
SHOWN = 3  # names in a message
FULL_DISK_BYTES = 2**20  # less free space than this means that the disk is full
FULL_DISK_WORDS = ("No space left", "PytorchStreamWriter failed", "unexpected pos")  # of safetensors and of torch.save


class OutputError(ExplainedError, OSError):
    """An output cannot be written without touching what is not ours, or not at all; the message says why and what to do."""


# -- what a command may write to -----------------------------------------------------------------------------------------


def check_apart(output: Path, flag: str = "output_dir", **inputs: str | Path | None) -> None:
    """Refuse an output that is one of the inputs, or lies inside or around one.

    inputs: by the names of their flags; None and what is not on this disk, like a Hub id, is passed over.

    Raises:
        OutputError: they are not apart.
    """
    inside = Path(output).resolve()
    for name, value in inputs.items():
        if value is None or not os.path.exists(value):
            continue
        given = Path(value).resolve()
        where = "be another folder than" if inside == given else "lie outside"
        if _lies_in(inside, given):
            raise OutputError(f"{flag} must {where} {name} {value}, got {output}; nothing was changed, give another {flag}")
        if _lies_in(given, inside):
            raise OutputError(f"{flag} must not hold {name} {value}, got {output}; nothing was changed, give another {flag}")


def check_free(folder: Path, flag: str = "output_dir", hint: str = "give another one") -> None:
    """Refuse an output folder that exists and holds anything.

    Raises:
        OutputError: it does.
    """
    folder = Path(folder)
    if folder.is_symlink() and not folder.exists():
        raise OutputError(f"{flag} must be a new or an empty folder, got {folder}, a link to nothing; {hint}")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{flag} must be a new or an empty folder, got the file {folder}; {hint}")
    if folder.is_dir() and (own := [path.name for path in folder.iterdir() if path.name not in SYSTEM_FILES]):
        raise OutputError(f"{flag} must be a new or an empty folder, got {folder} with {shown(own)} in it; {hint}")


def check_holds_only(folder: Path, listed: Iterable[str], what: str, flag: str = "output_dir") -> None:
    """Refuse to replace a folder with files that a record of it does not list.

    listed: paths relative to the folder. what: that the folder is, for the message.

    Raises:
        OutputError: there are others.
    """
    listed = set(listed)
    others = [name for name in list_files(folder) if name not in listed and Path(name).name not in SYSTEM_FILES]
    if others:
        raise OutputError(
            f"{flag} must be a new folder or {what} and nothing else, got {folder} with {shown(others)}; it is left as it is: "
            f"move these files elsewhere or give another {flag}"
        )


def check_file_replaceable(file: Path, flag: str = "output_file") -> None:
    """Refuse an output file that exists and that no command of ours made, by what `write_json` writes into it.

    Raises:
        OutputError: it is somebody's own.
    """
    file = Path(file)
    try:
        is_ours = not os.path.lexists(file) or _read(file).get("made_by") == MADE_BY
    except OutputError:
        is_ours = False
    if not is_ours:
        raise OutputError(
            f"{flag} must be a new file or one that such a command wrote, got {file}; it is left as it is: give another {flag}"
        )
    check_writable(file.parent)


def check_writable(folder: Path) -> None:
    """Find out before any work whether something can be written to a folder, which need not exist yet.

    Raises:
        OSError: it cannot.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise OutputError(f"{folder} cannot be made: {existing} is not a folder; give another one")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(f"nothing can be written to {existing}: {error.strerror}; give another folder") from error


# -- records -------------------------------------------------------------------------------------------------------------


def list_files(folder: Path) -> dict[str, int]:
    """The sizes in bytes of all files below a folder, by their relative paths; links are not followed."""
    found = {}
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for path in (Path(root, name) for name in (*files, *links)):
            found[path.relative_to(folder).as_posix()] = path.lstat().st_size
    return found


def write_record(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write the record of a finished folder, with the files that are in it now."""
    files = {path: size for path, size in list_files(folder).items() if path != name}
    write_json(folder / name, {**content, "files": files})


def hashes_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of files of a folder."""
    found = {}
    for name in names:
        with open(folder / name, "rb") as content:
            found[name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object that says that this project made it, completely or not at all."""
    text = json.dumps({"made_by": MADE_BY, **content}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(file, text)


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of a folder, or None if it has none.

    Raises:
        OutputError: it is damaged, or somebody else's file.
    """
    if not os.path.lexists(folder / name):
        return None
    record = _read(folder / name)
    files = record.get("files", {})
    sizes = files.values() if isinstance(files, dict) else [None]
    if record.get("made_by") != MADE_BY or not all(type(size) is int for size in sizes):
        raise OutputError(
            f"{folder / name} is damaged or was not written by this project, so that it does not tell whose files lie in "
            f"{folder}; they are left as they are: move or remove this folder and start again"
        )
    return record


def changes(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """What differs from a record, in words: files that are missing, or of another size. Others do not matter."""
    found = list_files(folder)
    differing = []
    for name, size in record.get("files", {}).items():
        if name not in found:
            differing.append(f"{name} is missing")
        elif found[name] != size and Path(name).name not in SYSTEM_FILES:
            differing.append(f"{name} has {found[name]} bytes instead of {size}")
    return differing


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise OutputError(
            f"{file} is damaged: it holds no JSON object, so that it does not tell whose files lie in {file.parent}; they are "
            "left as they are: move or remove this folder and start again"
        )
    return content


# -- writing -------------------------------------------------------------------------------------------------------------


def write_whole(file: Path, text: str) -> None:
    """Write a text file under a temporary name, and rename it when it is complete; a link is replaced, not followed."""
    partial = file.with_name(f".swin_hf-{secrets.token_hex(4)}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def copy_whole(source: Path, file: Path) -> None:
    """Copy a file like `write_whole` writes one."""
    partial = file.with_name(f".swin_hf-{secrets.token_hex(4)}")
    try:
        shutil.copyfile(source, partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path, check: Callable[[Path], None] = check_free) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `folder` at the end, or is removed after an error.

    check: refuses a `folder` that may not be replaced; it is asked before the work and again after it.

    Raises:
        OutputError: `check` refuses, nothing can be written there, or the disk is full.
    """
    folder = Path(folder).resolve()
    check(folder)
    check_writable(folder.parent)
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    work_dir = folder.with_name(f".swin_hf-{secrets.token_hex(4)}")
    work_dir.mkdir()
    try:
        with explained_full_disk(folder.parent, "nothing was written; free some space and start again"):
            yield work_dir
        check(folder)
        move_into_place(work_dir, folder)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
        if not folder.exists():
            for parent in made:
                remove_if_empty(parent)


def move_into_place(work_dir: Path, folder: Path) -> None:
    """Move a finished folder to its final path; an older folder there, which is ours, is deleted only afterwards.

    A link to a folder is replaced; the folder that it points to stays.
    """
    previous = None
    if folder.is_symlink():
        print(f"      {folder} was a link to {os.readlink(folder)}, which is left as it is", flush=True)
        folder.unlink()
    elif folder.exists():
        previous = work_dir.with_name(f".swin_hf-{secrets.token_hex(4)}")
        folder.rename(previous)
    work_dir.rename(folder)
    if previous is not None:
        shutil.rmtree(previous, ignore_errors=True)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that we made, unless there is something in it."""
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def explained_full_disk(folder: Path, what_to_do: str) -> Iterator[None]:
    """Explain errors of a full disk, of which torch and safetensors raise their own kinds.

    Raises:
        OutputError: the disk that holds `folder` is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ExplainedError) or not _tells_full_disk(error, folder):
            raise
        raise OutputError(f"the disk that holds {folder} is full; {what_to_do}") from error


def _tells_full_disk(error: Exception, folder: Path) -> bool:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    if any(words in str(error) for words in FULL_DISK_WORDS):
        return True
    return os.path.exists(folder) and shutil.disk_usage(folder).free < FULL_DISK_BYTES


# -- shared --------------------------------------------------------------------------------------------------------------


def shown(names: Iterable[str]) -> str:
    """The first names of many, for a message."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or lies in it, also where names differ only in case or through mounts."""
    parts = (path, *path.parents)
    return folder in parts or (folder.exists() and any(part.exists() and part.samefile(folder) for part in parts))
