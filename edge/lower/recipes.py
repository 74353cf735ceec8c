"""Export recipes as data: what is quantized how, for which backend, and how close the program must stay to the model."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from edge.device.errors import ExplainedError
from edge.device.names import did_you_mean

PRECISIONS = ("fp32", "int8-static", "int8-dynamic", "int4-dynamic")
BACKENDS = ("xnnpack", "coreml", "vulkan")
FLOAT_DTYPES = ("float32", "float16")


class RecipeError(ExplainedError):
    """There is no such recipe, or a recipe holds a value that means nothing; the message lists what there is."""


def require_one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Check a value, and suggest a similar one if it is unknown.

    Raises:
        RecipeError: it is unknown.
    """
    known = list(known)
    if value in known:
        return
    raise RecipeError(f"{name} must be one of {', '.join(known)}, got {value!r}{did_you_mean(str(value), known)}")


@dataclass(frozen=True)
class Rule:
    """Layers whose name matches the shell-style pattern are computed in this precision.

    fp32: not quantized.
    int8-static: weights with a scale per output channel; inputs and outputs with one scale each, found on calibration images.
    int8-dynamic: the same weights; the scale of the input is found in every run, and the output is float.
    int4-dynamic: weights of 4 bits with a scale for every 32, otherwise like int8-dynamic.

    The dynamic ones are for linear layers; convolutions that they match stay float.
    """

    pattern: str
    precision: str

    def __post_init__(self):
        require_one_of("precision", self.precision, PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to lower a model.

    backend: "xnnpack" runs on every phone and computer; "coreml" and "vulkan" programs are built here but not run.
    rules: for the linear layers and the convolution. The first that matches wins; layers that no rule matches stay float.
    float_dtype: "float32" or "float16", of everything that is not quantized.
    train_epochs: passes over the calibration images of quantization-aware training.
    min_sqnr_db: lower bound of the ratio of the model's outputs to their error on real images, in decibels.
    min_agreement: lower bound of the share of images with the same top class as the model.
    max_accuracy_drop: upper bound of the accuracy lost on held-out images; losing a single image is always allowed.
    self_test_bound: tolerance of the self-test, relative to the largest output: processors round differently.
    max_delegates: upper bound of the number of parts that the backend takes the program in.
    outside: operators that may run outside of them.
    executable: whether the program can be run, and so checked, on the exporting machine.
    """

    name: str
    summary: str
    backend: str = "xnnpack"
    rules: tuple[Rule, ...] = ()
    float_dtype: str = "float32"
    train_epochs: int = 0
    min_sqnr_db: float
    min_agreement: float
    max_accuracy_drop: float = 0.01
    self_test_bound: float = 0.05
    max_delegates: int = 1
    outside: tuple[str, ...] = ()
    executable: bool = True

    def __post_init__(self):
        require_one_of("backend", self.backend, BACKENDS)
        require_one_of("float_dtype", self.float_dtype, FLOAT_DTYPES)
        for name, holds, rule in (
            ("min_sqnr_db", self.min_sqnr_db >= 0, "be 0 or more"),
            ("min_agreement", 0 <= self.min_agreement <= 1, "lie in [0, 1]"),
            ("max_accuracy_drop", 0 <= self.max_accuracy_drop <= 1, "lie in [0, 1]"),
            ("train_epochs", self.train_epochs >= 0, "be 0 or more"),
            ("max_delegates", self.max_delegates >= 1, "be 1 or more"),
        ):
            if not holds:
                raise RecipeError(f"{name} of recipe {self.name} must {rule}, got {getattr(self, name)}")

    @property
    def is_calibrated(self) -> bool:
        """Whether it needs images to find the scales of activations."""
        return any(rule.precision == "int8-static" for rule in self.rules)

    @property
    def is_quantized(self) -> bool:
        return any(rule.precision != "fp32" for rule in self.rules)

    def precision_of(self, layer: str, is_convolution: bool = False) -> str:
        """Precision of a layer: that of the first rule that matches its name, or fp32."""
        found = next((rule.precision for rule in self.rules if fnmatch.fnmatchcase(layer, rule.pattern)), "fp32")
        return "fp32" if is_convolution and found.endswith("dynamic") else found


# The patch embedding is 1/300 of the work, and rounding its output costs more accuracy than rounding any other layer's.
PATCHES = Rule("encoder.embeddings.projection", "fp32")
STATIC = (PATCHES, Rule("*", "int8-static"))
# The outputs of these layers are the logits, and the residual stream after the blocks of a stage.
MIXED = (PATCHES, Rule("classifier", "int8-dynamic"), Rule("*.reduction", "int8-dynamic"), Rule("*", "int8-static"))
CASTS = ("aten::_to_copy", "dim_order_ops::_to_dim_order_copy")

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="fp32", summary="exact", min_sqnr_db=80.0, min_agreement=1.0, max_accuracy_drop=0.0, self_test_bound=1e-3),
        Recipe(
            name="fp16",
            summary="half the size of fp32; processors without float16 arithmetic cannot run it",
            float_dtype="float16",
            min_sqnr_db=35.0,
            min_agreement=0.97,
            outside=CASTS,
        ),
        Recipe(
            name="int8",
            summary="the default: int8-static, except for the layers that it hurts most and that cost little",
            rules=MIXED,
            min_sqnr_db=20.0,
            min_agreement=0.90,
        ),
        Recipe(
            name="int8-static",
            summary="the fastest: scales of activations found on calibration images",
            rules=STATIC,
            min_sqnr_db=20.0,
            min_agreement=0.90,
        ),
        Recipe(
            name="int8-dynamic",
            summary="no calibration: scales of activations found in every run",
            rules=(PATCHES, Rule("*", "int8-dynamic")),
            min_sqnr_db=20.0,
            min_agreement=0.90,
        ),
        Recipe(
            name="int8-qat",
            summary="int8-static after quantization-aware training (needs swin-hf[train])",
            rules=STATIC,
            train_epochs=3,
            min_sqnr_db=20.0,
            min_agreement=0.90,
        ),
        Recipe(
            name="int4",
            summary="experimental: 4-bit weights, for the smallest file",
            rules=(PATCHES, Rule("classifier", "int8-dynamic"), Rule("*", "int4-dynamic")),
            min_sqnr_db=5.0,
            min_agreement=0.5,
            max_accuracy_drop=0.5,
        ),
        Recipe(
            name="coreml",
            summary="fp16 for Apple's CoreML; needs coremltools",
            backend="coreml",
            float_dtype="float16",
            min_sqnr_db=35.0,
            min_agreement=0.97,
            executable=False,
        ),
        Recipe(
            name="vulkan",
            summary="fp32 for GPUs of phones",
            backend="vulkan",
            min_sqnr_db=80.0,
            min_agreement=1.0,
            max_delegates=8,
            executable=False,
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        RecipeError: there is none.
    """
    require_one_of("recipe", name, RECIPES)
    return RECIPES[name]
