"""The targets of images, classes or masks, and how they are found in folders and in rows."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets

from distill.data.digit_scenes import DigitScenes
from distill.data.folders import (
    images_alone,
    images_in_class_folders,
    images_in_mask_folders,
    images_with_boxes,
    read_class_names,
)
from distill.data.rows import (
    Rows,
    label_column,
    mask_column,
    rows_of_images,
    rows_with_boxes,
    rows_with_classes,
    rows_with_masks,
)
from distill.data.sources import DataError, FoundImages
from edge.device.listing import Listing

FEWEST_OF_A_CLASS = 4


@dataclass(frozen=True, kw_only=True)
class Targets:
    """One kind of target.

    in_folder: the images in a folder of files, with a file of class names or None.
    in_rows: the images in rows, by split, of a data set with this name, with a file of class names or None.
    columns: the columns of classes and of masks that are read from a streamed row; None for what is not needed.
    check: raises a `DataError` for images that cannot be learned from.
    have_classes: whether models store names of classes. have_masks, are_boxes: which are cropped along with their images.
    """

    in_folder: Callable[[Listing, Path | None], FoundImages]
    in_rows: Callable[[Rows, str, Path | None], FoundImages]
    columns: Callable[[datasets.Features, str], tuple[str | None, str | None]]
    check: Callable[[FoundImages, str], None]
    have_classes: bool = True
    have_masks: bool = False
    are_boxes: bool = False


def small_classes(found: FoundImages) -> dict[int, int]:
    """The classes with too few images to train on, and how many each has."""
    counts = Counter(found.labels[found.whole])
    return {label: counts[label] for label in range(len(found.class_names)) if counts[label] < FEWEST_OF_A_CLASS}


def _check_classes(found: FoundImages, dataset: str) -> None:
    """Check that there are two classes or more and enough training images of each."""
    small = small_classes(found)
    if len(found.class_names) - len(small) + len([label for label in small if small[label]]) < 2:
        names = ", ".join(name for label, name in enumerate(found.class_names) if small.get(label) != 0)
        raise DataError(f"--dataset {dataset} has one class only ({names}); a classifier needs two or more")
    if small:
        counts = ", ".join(f"{found.class_names[label]} ({count})" for label, count in small.items())
        raise DataError(
            f"--dataset {dataset} has too few training images of {len(small)} of {len(found.class_names)} classes: {counts}; "
            f"every class needs at least {FEWEST_OF_A_CLASS}, so that training, validation and test get one each; add images, "
            "or leave these classes out with --drop_small_classes true"
        )


def _check_boxes(found: FoundImages, dataset: str) -> None:
    """Check that there is something to detect."""
    if not found.class_names:
        raise DataError(f"--dataset {dataset} has no boxes; a detector needs some")


def _refuse_stream() -> tuple[None, None]:
    raise DataError("--streaming must be false for object-detection")


def _names_of_masks(dataset: str, class_names: Path | None) -> list[str]:
    return DigitScenes.MASK_CLASSES if dataset == "digit-scenes" else read_class_names(class_names, dataset)


CLASSES = Targets(
    in_folder=lambda listing, class_names: images_in_class_folders(listing),
    in_rows=lambda splits, dataset, class_names: rows_with_classes(splits, dataset),
    columns=lambda features, dataset: (label_column(features, dataset), None),
    check=_check_classes,
)
MASKS = Targets(
    in_folder=images_in_mask_folders,
    in_rows=lambda splits, dataset, names: rows_with_masks(splits, dataset, _names_of_masks(dataset, names)),
    columns=lambda features, dataset: (None, mask_column(features, dataset)),
    check=lambda found, dataset: None,
    have_masks=True,
)
BOXES = Targets(
    in_folder=lambda listing, class_names: images_with_boxes(listing),
    in_rows=lambda splits, dataset, class_names: rows_with_boxes(splits, dataset),
    columns=lambda features, dataset: _refuse_stream(),
    check=_check_boxes,
    are_boxes=True,
)
NOTHING = Targets(  # only images
    in_folder=lambda listing, class_names: images_alone(listing),
    in_rows=lambda splits, dataset, class_names: rows_of_images(splits, dataset),
    columns=lambda features, dataset: (None, None),
    check=lambda found, dataset: None,
    have_classes=False,
)
