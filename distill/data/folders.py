"""Images in folders: one folder per class, a folder of images and one of masks, or only images."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from distill.data.sources import IMAGE_NAMES, MASK_NAMES, SPLIT_NAMES, DataError, FoundImages, ImageSource
from edge.device.image import IMAGE_SUFFIXES


def images_in_class_folders(folder: Path) -> FoundImages:
    """Class folders, or train / validation / test folders of class folders."""
    roots = _split_folders(folder) or {"all": folder}
    class_folders = {split: _subfolders(root) for split, root in roots.items()}
    class_names = sorted({path.name for paths in class_folders.values() for path in paths})
    images, labels = {}, {}
    for split, paths in class_folders.items():
        files = [file for path in paths for file in _files(path)]
        images[split] = _from_files(files)
        labels[split] = [class_names.index(file.relative_to(roots[split]).parts[0]) for file in files]
    if not any(images.values()):
        raise DataError(
            f"--dataset {folder} holds no images in class folders; make one folder per class and put its images "
            f"({' '.join(IMAGE_SUFFIXES)}) into it"
        )
    return FoundImages(images=images, labels=labels, class_names=class_names)


def images_in_mask_folders(folder: Path, class_names: Path | None) -> FoundImages:
    """Images and masks with the same names; `class_names`, or classes.txt in the folder, names the classes."""
    images, masks = _paired(folder)
    names = read_class_names(class_names or folder / "classes.txt", str(folder))
    labels = {split: [0] * len(sources) for split, sources in images.items()}
    return FoundImages(images=images, labels=labels, class_names=names, masks=masks)


def images_alone(folder: Path) -> FoundImages:
    """All images of a folder and its subfolders, by split where there are split folders."""
    images = {split: _from_files(_files(root)) for split, root in (_split_folders(folder) or {"all": folder}).items()}
    labels = {split: [0] * len(sources) for split, sources in images.items()}
    return FoundImages(images=images, labels=labels, class_names=["image"])


def _paired(folder: Path) -> tuple[dict[str, list[ImageSource]], dict[str, list[ImageSource]]]:
    """Folders "images" and "masks" with files of the same names, with train / validation / test folders in or around them."""
    pairs = {}
    image_root, mask_root = _subfolder(folder, IMAGE_NAMES), _subfolder(folder, MASK_NAMES)
    if image_root and mask_root:
        parts = _split_folders(image_root)
        pairs = {split: (root, mask_root / root.name) for split, root in parts.items()} or {"all": (image_root, mask_root)}
    for split, root in ({} if pairs else _split_folders(folder)).items():
        pairs[split] = (_subfolder(root, IMAGE_NAMES), _subfolder(root, MASK_NAMES))
    if not pairs or not all(root and root.is_dir() for pair in pairs.values() for root in pair):
        raise DataError(
            f"--dataset {folder} must have a folder images and a folder masks (or annotations) with files of the same names, "
            "both with the same split folders, if there are any"
        )
    images, masks = {}, {}
    for split, (image_root, mask_root) in pairs.items():
        by_name = {file.relative_to(mask_root).with_suffix(""): file for file in _files(mask_root)}
        files = _files(image_root)
        lacking = [file for file in files if file.relative_to(image_root).with_suffix("") not in by_name]
        if lacking:
            raise DataError(
                f"{len(lacking)} of {len(files)} images have no mask of their name in {mask_root}: {lacking[0]}, ..."
            )
        images[split] = _from_files(files)
        own = [by_name[file.relative_to(image_root).with_suffix("")] for file in files]
        masks[split] = _from_files(own)
    return images, masks


def read_class_names(file: Path | None, dataset: str) -> list[str]:
    names = file.read_text().split("\n") if file is not None and file.is_file() else []
    names = [name.strip() for name in names if name.strip()]
    if len(names) < 2:
        raise DataError(
            f"--dataset {dataset} does not name its classes; give --class_names FILE (or classes.txt in the folder), a text "
            "file with one name in each line, in the order of their numbers in the masks"
        )
    return names


def _from_files(files: list[Path]) -> list[ImageSource]:
    return [ImageSource(str(file), partial(Path, file)) for file in files]


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folders of splits, if one of them is for training and there are no other folders.

    Raises:
        DataError: there are folders of two or more splits and other folders beside them.
    """
    splits = {SPLIT_NAMES[path.name.lower()]: path for path in _subfolders(folder) if path.name.lower() in SPLIT_NAMES}
    others = [path.name for path in _subfolders(folder) if path.name.lower() not in SPLIT_NAMES]
    if others and len(splits) > 1 and "train" in splits:
        raise DataError(
            f"--dataset {folder} has folders of splits ({', '.join(splits)}) and others ({', '.join(others[:5])}); "
            "move the others away, or rename the splits if they are classes"
        )
    return splits if "train" in splits and not others else {}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _subfolder(folder: Path, names: Iterable[str]) -> Path | None:
    return next((path for path in _subfolders(folder) if path.name.lower() in names), None)


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES]
