"""The pictures of a report's page: images of each class, mistakes with what spoke for them, and what quantization changed."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from distill.compress.teachers import Classifier, load_classifier
from distill.data.examples import Example, to_tensor
from distill.pipeline.report import Report
from distill.pipeline.run_folder import read_data_facts, stored_examples
from edge.device.explanation import heat
from swin_hf.explanations import ExplanationError, class_maps

MOST_CLASSES, OF_CLASS = 24, 4  # of the sheet of examples, and its images of each
MOST_FLIPS = 24
SIDE, SMALL = 160, 64  # largest side in the page, and the largest of what is kept without loss, in pixels


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures as addresses that hold them (`data:`).

    examples: training images by class. mistakes: of each mistake of the report the image and, if it can be had, the image
    under what spoke for the wrong class. flips: of each flip of the report, up to 24.
    """

    examples: dict[str, list[str]] = field(default_factory=dict)
    mistakes: list[list[str]] = field(default_factory=list)
    flips: list[str] = field(default_factory=list)


def pictures_of(report: Report, run_dir: Path) -> Pictures:
    """The pictures of a run's report."""
    names, examples = read_data_facts(run_dir / "data")["class_names"], stored_examples(run_dir / "data")
    classifier = load_classifier(run_dir / report.last_model, names)
    test = examples["test"]
    return Pictures(
        examples={
            name: [address(example.source.load()) for example in of_class(examples["train"], number)]
            for number, name in enumerate(names[:MOST_CLASSES])
        },
        mistakes=[
            [address(image) for image in explained(test[own.image], classifier, names.index(own.predicted))]
            for own in report.mistakes
        ],
        flips=[address(test[flip.image].source.load()) for flip in report.flips[:MOST_FLIPS]],
    )


def of_class(examples: list[Example], number: int) -> list[Example]:
    return [example for example in examples if example.label == number][:OF_CLASS]


@torch.no_grad()
def explained(example: Example, classifier: Classifier, number: int) -> list[Image.Image]:
    """An image, and the same under the map of a class (`swin_hf.explanations`), if the model has such maps."""
    image = example.source.load()
    pixels = classifier.pixel_values((to_tensor(image).float() / 255)[None])
    try:
        maps = class_maps(classifier.model, pixels)[0]
    except ExplanationError:
        return [image]
    return [image, heat(maps[number].numpy(), image)]


def address(image: Image.Image) -> str:
    """A picture of at most 160 pixels as its own address: as PNG if it is small, otherwise as JPEG."""
    image, content = image.convert("RGB"), io.BytesIO()
    form = "PNG" if max(image.size) <= SMALL else "JPEG"
    image.thumbnail((SIDE, SIDE))
    image.save(content, form, **({} if form == "PNG" else {"quality": 85}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
