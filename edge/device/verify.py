"""Check a device artefact on labelled images and by the self-test that is bundled with it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from .artefact import PROGRAM_FILE, SELF_TEST_FILE, ArtefactError, read_file
from .bundle import Case, read_bundle
from .errors import ExplainedError
from .flatbuffer import FlatbufferError
from .image import UnreadableImageError
from .labelled import ImageReader, LabelledImage, open_folder
from .masks import IGNORED, MaskedReader, open_masked
from .runner import Runner, about_image
from .segmentation import Segmentation, confusion_of, mask_scores

Read = TypeVar("Read")  # what a reader reads

_ADVICE = "copy the artefact again or export it again"

SPLITS = ("test", "validation")  # to verify on, the first that there is


class VerificationError(ExplainedError):
    """An artefact cannot be verified, or its program does not compute what it should; the message says which."""


@dataclass(frozen=True, kw_only=True)
class ReadableImages:
    """Images to verify on, less those that cannot be decoded.

    labels: of each image; None where it is unknown or no class of the artefact.
    names: of the images, by which they are labelled.
    """

    readers: list[ImageReader]
    labels: list[str | None]
    names: list[str]
    num_unreadable: int

    @property
    def labelled(self) -> list[int]:
        """Indices of the images whose label is known."""
        return [index for index, label in enumerate(self.labels) if label is not None]

    def why_unlabelled(self, known: list[str]) -> str:
        """Which images have no label, and the labels that they could have."""
        others = [name for name, label in zip(self.names, self.labels) if label is None]
        return why_unlabelled(others, len(self.names), known)


def why_unlabelled(names: list[str], num_images: int, known: list[str]) -> str:
    """Which of so many images have no label, and the labels that they could have."""
    return (
        f"{len(names)} of {num_images} images lie in no folder named after a label and are not called <label>_<n>: "
        f"{_first(names)}; the labels are {_first(known)}"
    )


def verify(folder: str | Path, dataset: str | Path) -> dict[str, float | int | str]:
    """Run the program on all images under the folder `dataset` and return its accuracy and counts as JSON values.

    Of a segmenter, the mean intersection over union of the classes and the share of right pixels, each image at its own size,
    as on ADE20K (Zhou et al. 2017); images and masks lie in folders of these names.

    Accuracy is counted over images whose label is known: from their class folder, or from a name `<label>_<n>`. If there are
    folders of splits, the images are those in `test`, or else in `validation`.

    Raises:
        FileNotFoundError: `dataset` is not a folder or holds no images.
        SplitError: it has training images only.
        NotFiniteError: an output is NaN or infinite; the message names the image.
        VerificationError: the artefact is a backbone, or none of the images can be read or has a known label.
    """
    runner = Runner(folder)
    labels = runner.manifest.labels
    if runner.manifest.is_segmenter:
        return mask_figures(runner, readable_masks(open_masked(dataset, SPLITS), dataset, len(labels), require_masks=True))
    if not runner.manifest.is_classifier:
        raise VerificationError("the artefact must be a classifier or a segmenter to be verified on labels, got a backbone")
    images = readable_images(runner, open_folder(dataset, runner.manifest.labels, SPLITS), dataset)
    if not images.labelled:
        raise VerificationError(
            f"dataset must hold images in class folders or with names like <label>_<n>.png, got none in {dataset}: "
            f"{images.why_unlabelled(runner.manifest.labels)}"
        )
    return label_figures(runner, images, program_outputs(runner, images))


def readable_images(runner: Runner, readers: list[ImageReader], dataset: str | Path) -> ReadableImages:
    """Those of the readers that work, with the labels that the artefact knows.

    Raises:
        VerificationError: none of them works.
    """
    working, labels, names = [], [], []
    for read, image in read_images(readers, dataset):
        working.append(read)
        labels.append(image.label if runner.manifest.is_classifier and image.label in runner.manifest.labels else None)
        names.append(image.name)
    return ReadableImages(readers=working, labels=labels, names=names, num_unreadable=len(readers) - len(working))


def read_images(readers: list[Callable[[], Read]], dataset: str | Path) -> Iterator[tuple[Callable[[], Read], Read]]:
    """Those of the readers that work, one after another, each with what it read.

    Raises:
        VerificationError: none of them works.
    """
    first_error, num_read = None, 0
    for read in readers:
        try:
            image = read()
        except UnreadableImageError as error:
            first_error = first_error or error
            continue
        num_read += 1
        yield read, image
    if not num_read:
        raise VerificationError(f"none of the images in {dataset} can be read: {first_error}")


def program_outputs(runner: Runner, images: ReadableImages) -> np.ndarray:
    """Outputs (n, ..) of the program: logits, or all feature maps flattened.

    Raises:
        NotFiniteError: one is NaN or infinite; the message names the image.
    """
    return np.stack([_outputs_for(runner, read()) for read in images.readers])


def _outputs_for(runner: Runner, image: LabelledImage) -> np.ndarray:
    with about_image(image.name):
        outputs = runner.outputs(runner.manifest.input.pixel_values(image.image))
    if runner.manifest.is_classifier:
        return outputs[0].ravel()  # without class maps
    return np.concatenate([values.ravel() for values in outputs])


def label_figures(runner: Runner, images: ReadableImages, outputs: np.ndarray) -> dict[str, float | int | str]:
    """Counts of images; of a classifier also the accuracy of its logits (n, K), and why images have no label."""
    figures = {"num_images": len(images.readers), "num_unreadable": images.num_unreadable}
    if not runner.manifest.is_classifier:
        return figures
    figures["num_labelled"] = len(images.labelled)
    right = [runner.manifest.labels[outputs[index].argmax()] == images.labels[index] for index in images.labelled]
    if right:
        figures["accuracy"] = float(np.mean(right))
    if len(right) < len(images.readers):
        figures["unlabelled"] = images.why_unlabelled(runner.manifest.labels)
    return figures


@dataclass(frozen=True, kw_only=True)
class ReadableMasks:
    """Images to verify a segmenter on, less those that cannot be decoded; with_masks: those of them that have one."""

    readers: list[MaskedReader]
    with_masks: list[MaskedReader]
    num_unreadable: int


def readable_masks(readers: list[MaskedReader], dataset: str | Path, num_classes: int, require_masks: bool) -> ReadableMasks:
    """Those of the readers that work.

    Raises:
        VerificationError: none of them works, or none has a mask though masks are required, or a mask has a number that is
            that of no class; the message names the image.
    """
    working, with_masks = [], []
    for read, image in read_images(readers, dataset):
        working.append(read)
        if image.mask is not None:
            with_masks.append(read)
            largest = image.mask[image.mask != IGNORED].max(initial=0)
            if largest >= num_classes:
                raise VerificationError(
                    f"the mask of {image.name} must hold numbers of the {num_classes} classes, or {IGNORED}, got {largest}"
                )
    if require_masks and not with_masks:
        raise VerificationError(
            f"dataset must hold a folder images and a folder masks with files of the same names, got no mask in {dataset}"
        )
    return ReadableMasks(readers=working, with_masks=with_masks, num_unreadable=len(readers) - len(working))


def mask_figures(runner: Runner, masks: ReadableMasks) -> dict[str, float | int | str]:
    """Counts of images, and how well the class maps fit the masks, if there are any."""
    K, figures = len(runner.manifest.labels), {}
    if masks.with_masks:
        figures = mask_scores(masks_against(runner.segment, masks, K))
    counts = {
        "num_images": len(masks.readers),
        "num_unreadable": masks.num_unreadable,
        "num_with_masks": len(masks.with_masks),
    }
    return counts | figures


def masks_against(segment: Callable[[Image.Image], Segmentation], masks: ReadableMasks, num_classes: int) -> np.ndarray:
    """Counts (K, K) of the pixels of all images with masks, true classes in rows; each image at its own size."""
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for image in (read() for read in masks.with_masks):
        with about_image(image.name):
            confusion += confusion_of(segment(image.image).class_map, image.mask, num_classes, IGNORED)
    return confusion


def _first(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", .." if len(names) > count else "")


def self_test(folder: str | Path) -> tuple[int, float]:
    """Run the bundled program on its own images; returns their number and the difference that their outputs may have.

    Raises:
        ArtefactError: the artefact has no bundle, or a damaged one.
        NotFiniteError: an output is NaN or infinite.
        VerificationError: the outputs differ from those of the machine that exported the program.
    """
    runner, file = Runner(folder), Path(folder) / SELF_TEST_FILE
    about = runner.manifest.self_test
    for number, case in enumerate(_read_cases(runner, file)):
        with about_image(f"image {number} of {file}"):
            outputs = runner.outputs(case.inputs[0])
        if [values.shape for values in outputs] != [values.shape for values in case.outputs]:
            raise ArtefactError(f"{file} must hold outputs of the program's shapes, got others; {_ADVICE}")
        largest = max(_difference(found, expected) for found, expected in zip(outputs, case.outputs))
        if not largest <= about.tolerance:
            raise VerificationError(
                f"the outputs of the program for image {number} of {file} differ from those of the machine that exported it "
                f"by {largest:.2g}, more than {about.tolerance:.2g}: this runtime or processor computes the program wrongly"
            )
    return about.num_images, about.tolerance


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of numbers; of classes, the share that differs."""
    return float((found != expected).mean() if found.dtype == np.uint8 else np.abs(found - expected).max())


def _read_cases(runner: Runner, file: Path) -> list[Case]:
    """The images of a bundle and the outputs for them.

    Raises:
        ArtefactError: the bundle is missing, damaged or of another program.
    """
    manifest = runner.manifest
    content = read_file(file.parent, manifest, SELF_TEST_FILE)
    try:
        bundle = read_bundle(content)
    except FlatbufferError as error:
        raise ArtefactError(f"{file} is not a whole bundle of ExecuTorch: {error}; {_ADVICE}") from error
    wanted = (runner.shape("forward"), manifest.input.dtype)
    for holds, what in (
        (bytes(bundle.program) == runner.program_bytes, f"a copy of {PROGRAM_FILE}"),
        (len(bundle.cases) == manifest.self_test.num_images, f"{manifest.self_test.num_images} images"),
        (all([(x.shape, x.dtype) for x in case.inputs] == [wanted] for case in bundle.cases), f"inputs of {wanted}"),
    ):
        if not holds:
            raise ArtefactError(f"{file} must hold {what}, got others; {_ADVICE}")
    return bundle.cases
