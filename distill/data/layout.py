"""Which folders of a data set are splits, which are classes, and which layouts are neither."""

from collections import defaultdict
from pathlib import Path

from distill.data.sources import DataError, by_split
from edge.device.listing import Listing
from edge.device.names import IMAGE_NAMES, plain, split_of

HOW_TO_NAME = "name the folders of splits train, validation and test, with nothing else beside them"


def find_splits(listing: Listing, top: Path = Path(), lone_train: bool = True) -> dict[str, Path]:
    """The folder of each split, or the one that holds "all".

    top: the folder to look in.
    lone_train: whether a single folder of training images among others can be a class, like the trains among vehicles.

    Raises:
        DataError: folders look like splits, but cannot be told from others.
    """
    named, others = _children(listing, top)
    if named and not others:
        splits = {split: top / name for split, name in by_split([path.name for path in named], _where(listing, top)).items()}
        if "train" not in splits:
            raise DataError(f"{_where(listing, top)} has folders of splits ({', '.join(splits)}) but none of them is train")
    else:
        _refuse_splits_beside(listing, top, named, others, lone_train)
        splits = {"all": top}
    for root in splits.values():
        _refuse_splits_below(listing, root)
    return splits


def find_class_folders(listing: Listing) -> dict[str, tuple[Path, list[Path]]]:
    """The folder of each split, or of "all", with its class folders; folders that only hold another one are looked into.

    Raises:
        DataError: folders look like splits, but cannot be told from classes.
    """
    result = {}
    for split, root in find_splits(listing, innermost(listing)).items():
        folder = root
        if split != "all":
            while len(inside := listing.children(folder)) == 1 and _wraps(inside[0]):
                folder = inside[0]
            _refuse_splits_beside(listing, folder, *_children(listing, folder), lone_train=True)
        _refuse_shared_names(listing, folder)
        result[split] = (folder, listing.children(folder))
    return result


def innermost(listing: Listing) -> Path:
    """The folder itself, or the one that alone lies in it, as archives are packed, if that has no images of its own."""
    top = Path()
    while len(inside := listing.children(top)) == 1 and not split_of(inside[0].name):
        if not listing.children(inside[0]) or {top, *inside} & listing.direct:
            break
        top = inside[0]
    return top


def _wraps(folder: Path) -> bool:
    """Whether a folder alone in that of a split holds its classes, as in train/train/cat and train/images/cat."""
    return split_of(folder.name) is not None or folder.name.lower() in IMAGE_NAMES


def _children(listing: Listing, folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders in a folder that have a name of a split, and those of the others that hold images."""
    inside = listing.children(folder)
    others = [path for path in inside if path in listing.with_images and not split_of(path.name)]
    return [path for path in inside if split_of(path.name)], others


def _refuse_splits_beside(listing: Listing, folder: Path, named: list[Path], others: list[Path], lone_train: bool) -> None:
    """Refuse folders of splits among others, except a class that happens to be called train."""
    held_out = [path for path in named if split_of(path.name) != "train"]
    nested = [path for path in named if set(listing.children(path)) & listing.with_images]
    if held_out or nested or len(named) > 1 or (named and not lone_train):
        beside = f" and others ({_names(others)})" if others else ""
        raise DataError(
            f"{_where(listing, folder)} has folders of splits ({_names(named)}){beside}; move the others away, or rename the "
            "splits if they are classes"
        )


def _refuse_splits_below(listing: Listing, root: Path) -> None:
    """Refuse held-out images inside of class folders or of other splits."""
    depth = len(root.parts)
    for folder in sorted(listing.with_images):
        below = folder.is_relative_to(root) and len(folder.parts) > depth + 1
        if below and split_of(folder.name) not in (None, "train", split_of(folder.parent.name)):
            raise DataError(
                f"{_where(listing, root)} must not have folders of splits inside of others, got {folder}; {HOW_TO_NAME}"
            )


def _refuse_shared_names(listing: Listing, folder: Path) -> None:
    """Refuse class folders that hold folders of the same names, or named like another of them.

    They are splits, or parts of the data, whose names are not known.
    """
    siblings = {path: plain(path.name).casefold() for path in listing.children(folder)}
    holders: dict[str, set[Path]] = defaultdict(set)
    for path, own in siblings.items():
        inside = {plain(below.name).casefold() for below in listing.children(path) if below in listing.with_images}
        for name in inside - {own, *IMAGE_NAMES}:
            holders[name].add(path)
    for name, paths in sorted(holders.items()):
        if len(paths) > 1 or name in siblings.values():
            raise DataError(
                f"{_where(listing, folder)} has folders ({_names(sorted(paths))}) that hold folders of one name ({name}), "
                f"or of the name of another, so they are no classes; {HOW_TO_NAME}, or put the images of each class directly "
                "into its folder"
            )


def _where(listing: Listing, folder: Path) -> str:
    return f"--dataset {listing.root / folder}"


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:5]) + (", .." if len(paths) > 5 else "")
