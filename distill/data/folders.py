"""Images in folders: one folder per class, a folder of images and one of masks, or only images."""

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from distill.data.boxes import Objects, numbered, read_coco, read_metadata
from distill.data.layout import find_class_folders, find_splits, innermost
from distill.data.sources import DataError, FoundImages, ImageSource, NoClassesError
from edge.device.listing import Listing, describe_left_out
from edge.device.names import IMAGE_NAMES, MASK_NAMES, as_utf8, plain

CLASSES_FILE = "classes.txt"
COCO_FILES, METADATA_FILE = ("annotations.json", "_annotations.coco.json"), "metadata.jsonl"


def images_in_class_folders(listing: Listing) -> FoundImages:
    """Class folders, or train / validation / test folders of class folders."""
    splits = find_class_folders(listing)
    name_of = {path.name: class_name(path) for _, folders in splits.values() for path in folders}
    class_names = sorted(set(name_of.values()))
    number_of = {name: number for number, name in enumerate(class_names)}
    images: dict[str, list[ImageSource]] = {split: [] for split in splits}
    labels: dict[str, list[int]] = {split: [] for split in splits}
    for image in listing.images:
        for split, (root, _) in splits.items():
            depth = len(root.parts)
            if image.parts[:depth] == root.parts and len(image.parts) > depth + 1:
                images[split].append(_source(listing.root / image))
                labels[split].append(number_of[name_of[image.parts[depth]]])
    left_out = _left_out(listing, sum(map(len, images.values())), "outside class folders")
    if not any(images.values()):
        table = next(listing.root.glob("metadata.*"), None)
        kind = NoClassesError if listing.images and table is None else DataError
        raise kind(
            f"--dataset {listing.root} holds no images in class folders{_in_brackets(left_out)}; make one folder per class "
            "and put its images into it" + (f", or give the table: --dataset {table}" if table else "")
        )
    return FoundImages(
        images=images, labels=labels, class_names=class_names, left_out=left_out, notes=notes_on_names(class_names)
    )


def images_in_mask_folders(listing: Listing, class_names: Path | None) -> FoundImages:
    """Images and masks with the same names; `class_names`, or classes.txt in the folder, names the classes."""
    images: dict[str, list[ImageSource]] = {}
    masks: dict[str, list[ImageSource]] = {}
    for split, (image_root, mask_root) in _roots(listing).items():
        files, of_name = listing.below(image_root), _by_name(listing, mask_root)
        own = [of_name.get(_stem(file, image_root)) for file in files]
        lacking = [file for file, mask in zip(files, own) if mask is None]
        if lacking:
            raise DataError(
                f"{len(lacking)} of {len(files)} images have no mask of their name in {listing.root / mask_root}: "
                f"{listing.root / lacking[0]}, ..."
            )
        images[split] = [_source(listing.root / file) for file in files]
        masks[split] = [_source(listing.root / mask) for mask in own]
    used = sum(len(own) for own in images.values()) + len({mask.name for own in masks.values() for mask in own})
    left_out = _left_out(listing, used, "outside the folders of images and masks, or a mask without an image")
    names = read_class_names(class_names or listing.root / CLASSES_FILE, str(listing.root))
    labels = {split: [0] * len(sources) for split, sources in images.items()}
    return FoundImages(images=images, labels=labels, class_names=names, masks=masks, left_out=left_out)


def images_with_boxes(listing: Listing) -> FoundImages:
    """Images with the objects in them, from a COCO file or a `metadata.jsonl` in the folder, or in that of each split."""
    top, files = innermost(listing), {plain(str(path)): path for path in listing.images}
    annotated = {}
    for split, root in find_splits(listing, top, lone_train=False).items():
        annotated[split] = (root, *_annotations_of(listing, root, top))
    names = list(dict.fromkeys(name for _, _, _, own in annotated.values() for name in own))
    used = {name for _, _, objects, _ in annotated.values() for own in objects.values() for name, _ in own}
    names = [name for name in names if name in used]
    images, boxes = {}, {}
    for split, (root, file, objects, _) in annotated.items():
        places = [root, root / "images", top, top / "images"]
        found = {name: _first_file(name, places, files) for name in objects}
        lacking = [name for name, path in found.items() if path is None]
        if lacking:
            raise DataError(
                f"{len(lacking)} of {len(found)} images that {file} names are not beside it: {lacking[0]}, ..; put them into "
                "its folder, or into a folder images there"
            )
        images[split] = [_source(listing.root / path) for path in found.values()]
        boxes[split] = [numbered(objects[name], names) for name in found]
    left_out = _left_out(listing, sum(map(len, images.values())), "without annotations")
    labels = {split: [0] * len(sources) for split, sources in images.items()}
    return FoundImages(images=images, labels=labels, class_names=names, boxes=boxes, left_out=left_out)


def _annotations_of(listing: Listing, root: Path, top: Path) -> tuple[Path, dict[str, Objects], list[str]]:
    """The file that describes the objects in the images of a folder, and what it says.

    Raises:
        DataError: there is none, or more than one that could be it.
    """
    folder = listing.root / root
    own = [folder / name for name in (*COCO_FILES, METADATA_FILE)]
    official = listing.root / top / "annotations" / f"instances_{root.name}.json"
    found = [file for file in (*own, official) if file.is_file()] or sorted(folder.glob("*.json"))
    if len(found) != 1:
        several = ", ".join(file.name for file in found[:3]) or "none"
        raise DataError(
            f"--dataset {folder} must have one file with the boxes of its images, {', '.join(COCO_FILES)} or {METADATA_FILE}, "
            f"got {several}"
        )
    read = read_metadata if found[0].name == METADATA_FILE else read_coco
    return (found[0], *read(found[0]))


def _first_file(name: str, places: list[Path], files: dict[str, Path]) -> Path | None:
    """The file of the listing that an annotation names, seen from one of these folders."""
    return next((files[key] for place in places if (key := plain(str(place / name))) in files), None)


def images_alone(listing: Listing) -> FoundImages:
    """All images of a folder and its subfolders, by split where there are split folders."""
    roots = find_splits(listing, innermost(listing))
    images = {split: [_source(listing.root / file) for file in listing.below(root)] for split, root in roots.items()}
    labels = {split: [0] * len(sources) for split, sources in images.items()}
    left_out = _left_out(listing, sum(map(len, images.values())), "outside the folders of splits")
    return FoundImages(images=images, labels=labels, class_names=["image"], left_out=left_out)


def class_name(folder: Path) -> str:
    """The class of a folder.

    Raises:
        DataError: the name is not UTF-8.
    """
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"folder {str(folder)!r} must have a name in UTF-8 to be a class; rename it") from error
    return plain(folder.name) or folder.name


def notes_on_names(class_names: list[str]) -> tuple[str, ...]:
    """Classes that differ in case alone."""
    alike = defaultdict(list)
    for name in class_names:
        alike[name.casefold()].append(name)
    return tuple(
        f"classes {' and '.join(names)} differ in case only; merge them if they are one class"
        for names in alike.values()
        if len(names) > 1
    )


def read_class_names(file: Path | None, dataset: str) -> list[str]:
    names = file.read_text(encoding="utf-8-sig").split("\n") if file is not None and file.is_file() else []
    names = [plain(name) for name in names if name.strip()]
    if len(names) < 2:
        raise DataError(
            f"--dataset {dataset} does not name its classes; give --class_names FILE (or classes.txt in the folder), a text "
            "file with one name in each line, in the order of their numbers in the masks"
        )
    return names


def _roots(listing: Listing) -> dict[str, tuple[Path, Path]]:
    """Folders "images" and "masks" by split, with train / validation / test folders in or around them."""
    top = innermost(listing)
    image_root, mask_root = _subfolder(listing, top, IMAGE_NAMES), _subfolder(listing, top, MASK_NAMES)
    pairs: dict[str, tuple[Path | None, Path | None]] = {}
    if image_root and mask_root:
        of_images = find_splits(listing, image_root, lone_train=False)
        of_masks = find_splits(listing, mask_root, lone_train=False)
        pairs = {split: (root, of_masks.get(split)) for split, root in of_images.items()}
    else:
        for split, root in find_splits(listing, top, lone_train=False).items():
            pairs[split] = (_subfolder(listing, root, IMAGE_NAMES), _subfolder(listing, root, MASK_NAMES))
    if not all(root for pair in pairs.values() for root in pair):
        raise DataError(
            f"--dataset {listing.root} must have a folder images and a folder masks (or annotations) with files of the same "
            "names, both with the same split folders, if there are any"
        )
    return pairs


def _by_name(listing: Listing, mask_root: Path) -> dict[str, Path]:
    """The masks by the names of their images."""
    found: dict[str, Path] = {}
    for file in listing.below(mask_root):
        other = found.setdefault(_stem(file, mask_root), file)
        if other != file:
            raise DataError(f"an image must have one mask, got {listing.root / other} and {listing.root / file}; remove one")
    return found


def _stem(file: Path, root: Path) -> str:
    return plain(str(file.relative_to(root).with_suffix("")))


def _subfolder(listing: Listing, folder: Path, names: Iterable[str]) -> Path | None:
    return next((path for path in listing.children(folder) if path.name.lower() in names), None)


def _left_out(listing: Listing, used: int, otherwise: str) -> dict[str, int]:
    """How many files are left out for each reason; `otherwise` is that of images that were found but are not used."""
    reasons = listing.reasons(but=CLASSES_FILE)
    return reasons | {otherwise: len(listing.images) - used} if len(listing.images) > used else reasons


def _in_brackets(left_out: dict[str, int]) -> str:
    return f" ({describe_left_out(left_out)})" if left_out else ""


def _source(file: Path) -> ImageSource:
    return ImageSource(as_utf8(file), partial(Path, file))
