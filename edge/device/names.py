"""Names of files, folders and classes: which are hidden, which are splits, and how a class is named in a file."""

import difflib
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# What systems leave beside people's files; other hidden names begin with a dot.
SYSTEM_NAMES = frozenset(
    ("__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "__pycache__")
    + ("system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
)
_SPLIT = re.compile(
    r"(images|image|imgs|img|data)?"
    r"((?P<train>training|trainval|train)|(?P<validation>validation|validate|valid|val|development|dev|evaluation|eval)"
    r"|(?P<test>testing|test|holdout|heldout))"
    r"(set|split|data|images|image|imgs|img|folder)?\d{0,4}"
)
_UNSAFE = re.compile(r'[%/\\:*?"<>|\x00-\x1f\x7f]|^[.~]|[. ]$')
# Of folders and of columns, in lower case.
IMAGE_NAMES = ("image", "images", "image_path", "file_name", "filename", "path", "img")
MASK_NAMES = ("mask", "masks", "annotation", "annotations", "segmentation", "segmentation_mask", "mask_path")
LONGEST_NAME = 200  # bytes; file systems take 255 with number and suffix


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system or to a program, and not to a data set."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


@cache
def split_of(name: str) -> str | None:
    """Train, validation or test, if a name stands for one of them: `Training_set`, `val2017`, `dev`, `hold-out`."""
    match = _SPLIT.fullmatch(re.sub(r"[-_. ]", "", plain(name).lower()))
    return match and next(split for split in ("train", "validation", "test") if match[split])


def plain(name: str) -> str:
    """A name as it is compared: composed characters (NFC) and no space around it."""
    return unicodedata.normalize("NFC", name).strip()


def as_utf8(name: str | Path) -> str:
    """A name of a file for messages and records, with escapes for what is not UTF-8."""
    return str(name).encode(errors="backslashreplace").decode()


def file_stem(label: str) -> str:
    """A name for files of a class, another one for every class; what file systems refuse is written as in a URL.

    A name that would be too long is cut and ends in a part of its SHA-256.
    """
    stem = _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), plain(label))
    if len(stem.encode()) <= LONGEST_NAME:
        return stem
    digest = hashlib.sha256(stem.encode()).hexdigest()[:16]
    return f"{stem.encode()[: LONGEST_NAME - 17].decode(errors='ignore')}~{digest}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a message, beginning with a semicolon, if a name is nearly one of those that are known; else empty."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""
