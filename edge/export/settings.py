"""Settings of an export."""

from dataclasses import dataclass

from edge.device.errors import ExplainedError
from edge.export.images import Images
from edge.lower.recipes import find_recipe


class ExportError(ExplainedError):
    """A checkpoint cannot be exported, or its program is not close enough to it; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What to export.

    recipe: name of a recipe.
    dataset: real images, on which scales are found and the program is compared with the model.
    validation: held-out images in class folders, for the accuracy and the temperature.
    input_dtype: "float32" or "uint8", of the program's input.
    sizes: (height, width) of the images, a method for each; empty for the model's own size.
    batch_sizes: of the images, a method for each.
    enlarge: of a segmenter: whether the program enlarges its logits to the size of the image.
    class_map: of a segmenter: whether the program puts out the class of every pixel instead of logits.
    explain: of a classifier: whether the program puts out class maps too, whose mean is the logits.
    self_test: whether to write a bundle for a self-test on the device, which is as large as the program.
    """

    recipe: str = "int8"
    dataset: Images | None = None
    validation: Images | None = None
    input_dtype: str = "float32"
    sizes: tuple[tuple[int, int], ...] = ()
    batch_sizes: tuple[int, ...] = (1,)
    enlarge: bool = False
    class_map: bool = False
    explain: bool = False
    self_test: bool = True

    def __post_init__(self):
        find_recipe(self.recipe)
        if any(side < 1 for size in self.sizes for side in size):
            raise ExportError(f"sizes must be positive, got {self.sizes}")
        if self.batch_sizes[:1] != (1,) or min(self.batch_sizes) < 1:
            raise ExportError(f"batch_sizes must be positive and begin with 1, which `forward` takes, got {self.batch_sizes}")
