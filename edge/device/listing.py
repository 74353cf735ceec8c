"""The files under a folder: which are images, and why the others are not."""

import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .image import image_suffixes
from .names import as_utf8, is_hidden

HIDDEN, IRREGULAR, CLOSED, LOOP = "hidden", "not a regular file", "in a folder that cannot be opened", "in a loop of links"
HINTS = {".heic": "pip install pillow-heif", ".heif": "pip install pillow-heif", ".avif": "pip install pillow-avif-plugin"}


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files under a folder, as paths relative to it, sorted.

    images: regular files that are not hidden and whose suffix Pillow reads.
    folders: those that are not hidden, empty ones included.
    left_out: the other files, with the reason.
    """

    root: Path
    images: list[Path]
    folders: list[Path]
    left_out: dict[Path, str]

    @cached_property
    def with_images(self) -> set[Path]:
        """The folders that hold images, at any depth."""
        return {parent for folder in self.direct for parent in (folder, *folder.parents)}

    @cached_property
    def direct(self) -> set[Path]:
        """The folders that hold images themselves."""
        return {image.parent for image in self.images}

    def children(self, folder: Path) -> list[Path]:
        """The folders directly in a folder."""
        return self._children.get(folder, [])

    @cached_property
    def _children(self) -> dict[Path, list[Path]]:
        children: dict[Path, list[Path]] = {}
        for folder in self.folders:
            children.setdefault(folder.parent, []).append(folder)
        return children

    def below(self, folder: Path) -> list[Path]:
        """The images in a folder, at any depth."""
        return [image for image in self.images if image.is_relative_to(folder)]

    def reasons(self, but: str = "") -> dict[str, int]:
        """How many files are left out for each reason. but: a file in the folder that is read, though it is no image."""
        return dict(Counter(reason for path, reason in self.left_out.items() if path != Path(but)).most_common())


def list_files(folder: str | Path) -> Listing:
    """Look through a folder; links are followed.

    Raises:
        FileNotFoundError: it is not a folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give a folder of images")
    listing = Listing(root=root, images=[], folders=[], left_out={})
    _look_into(listing, Path(), frozenset())
    return listing


def _look_into(listing: Listing, folder: Path, above: frozenset[tuple[int, int]]) -> None:
    path = listing.root / folder
    status = path.stat()
    if (status.st_dev, status.st_ino) in above:
        listing.left_out[folder] = LOOP
        return
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except PermissionError:
        listing.left_out[folder] = CLOSED
        return
    for entry in entries:
        name = folder / entry.name
        if is_hidden(entry.name):
            listing.left_out.update(dict.fromkeys(_all_files(listing.root, name), HIDDEN))
        elif entry.is_dir():
            listing.folders.append(name)
            _look_into(listing, name, above | {(status.st_dev, status.st_ino)})
        elif not entry.is_file():
            listing.left_out[name] = IRREGULAR
        elif name.suffix.lower() in image_suffixes():
            listing.images.append(name)
        else:
            listing.left_out[name] = f"suffix {as_utf8(name.suffix)}" if name.suffix else "no suffix"


def _all_files(root: Path, name: Path) -> list[Path]:
    """A file, or all files under a folder without following links."""
    path = root / name
    if path.is_symlink() or not path.is_dir():
        return [name]
    return [Path(folder, file).relative_to(root) for folder, _, files in os.walk(path) for file in files]


def describe_left_out(reasons: dict[str, int]) -> str:
    """How many files were left out and why, in a sentence; what Pillow could read with a plugin is said."""
    parts = [
        f"{count} {reason}" + (f" ({hint})" if (hint := HINTS.get(reason.removeprefix("suffix ").lower())) else "")
        for reason, count in reasons.items()
    ]
    count = sum(reasons.values())
    return f"left out {count} file{'s' if count > 1 else ''}: {', '.join(parts)}"


def image_files(folder: str | Path) -> list[Path]:
    """All images under a folder, sorted.

    Raises:
        FileNotFoundError: the folder does not exist or holds no image.
    """
    listing = list_files(folder)
    if not listing.images:
        raise FileNotFoundError(no_images(folder, listing))
    return [listing.root / image for image in listing.images]


def no_images(folder: str | Path, listing: Listing) -> str:
    """The message for a folder without images."""
    left_out = f" ({describe_left_out(listing.reasons())})" if listing.left_out else ""
    return f"{folder} holds no images{left_out}; give a folder of images"
