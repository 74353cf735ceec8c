"""Check a device artefact on labelled images and by the self-test that is bundled with it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .artefact import SELF_TEST_FILE, read_file, read_manifest
from .errors import ExplainedError
from .image import UnreadableImageError
from .labelled import ImageReader, open_folder
from .runner import Runner, run_bundle

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
        return (
            f"{len(others)} of {len(self.names)} images lie in no folder named after a label and are not called <label>_<n>: "
            f"{_first(others)}; the labels are {_first(known)}"
        )


def verify(folder: str | Path, dataset: str | Path) -> dict[str, float | int | str]:
    """Run the program on all images under the folder `dataset` and return its accuracy and counts as JSON values.

    Accuracy is counted over images whose label is known: from their class folder, or from a name `<label>_<n>`. If there are
    folders of splits, the images are those in `test`, or else in `validation`.

    Raises:
        FileNotFoundError: `dataset` is not a folder or holds no images.
        SplitError: it has training images only.
        VerificationError: the artefact is a backbone, or none of the images can be read or has a known label.
    """
    runner = Runner(folder)
    if not runner.is_classifier:
        raise VerificationError("the artefact must be a classifier to be verified on labels, got a backbone")
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
    working, labels, names, errors = [], [], [], []
    for read in readers:
        try:
            image = read()
        except UnreadableImageError as error:
            errors.append(error)
            continue
        working.append(read)
        labels.append(image.label if runner.is_classifier and image.label in runner.manifest.labels else None)
        names.append(image.name)
    if not working:
        raise VerificationError(f"none of the images in {dataset} can be read: {errors[0]}")
    return ReadableImages(readers=working, labels=labels, names=names, num_unreadable=len(errors))


def program_input(runner: Runner, read: ImageReader) -> np.ndarray:
    """The input of the method `forward` for an image."""
    return runner.manifest.input.pixel_values(read().image)


def program_outputs(runner: Runner, images: ReadableImages) -> np.ndarray:
    """Outputs (n, ..) of the program: logits, or all feature maps flattened."""
    outputs = (runner.outputs(program_input(runner, read)) for read in images.readers)
    return np.stack([np.concatenate([values.ravel() for values in of_image]) for of_image in outputs])


def label_figures(runner: Runner, images: ReadableImages, outputs: np.ndarray) -> dict[str, float | int | str]:
    """Counts of images; of a classifier also the accuracy of its logits (n, K), and why images have no label."""
    figures = {"num_images": len(images.readers), "num_unreadable": images.num_unreadable}
    if not runner.is_classifier:
        return figures
    figures["num_labelled"] = len(images.labelled)
    right = [runner.manifest.labels[outputs[index].argmax()] == images.labels[index] for index in images.labelled]
    if right:
        figures["accuracy"] = float(np.mean(right))
    if len(right) < len(images.readers):
        figures["unlabelled"] = images.why_unlabelled(runner.manifest.labels)
    return figures


def _first(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", .." if len(names) > count else "")


def self_test(folder: str | Path) -> tuple[int, float]:
    """Run the bundled program on its own images; returns their number and the difference that their outputs may have.

    Raises:
        ArtefactError: the artefact has no bundle, or a damaged one.
        VerificationError: the outputs differ from those of the machine that exported the program.
    """
    manifest = read_manifest(folder)
    content = read_file(folder, manifest, SELF_TEST_FILE)
    num_images, tolerance = manifest.self_test.num_images, manifest.self_test.tolerance
    try:
        run_bundle(content, num_images, tolerance)
    except RuntimeError as error:
        raise VerificationError(
            f"the outputs of the program in {Path(folder) / SELF_TEST_FILE} differ from those of the machine that exported it "
            f"by more than {tolerance:.2g}: {error}. This runtime or processor computes the program wrongly"
        ) from error
    return num_images, tolerance
