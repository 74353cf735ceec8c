"""Export recipes as data: what is quantized how, for which backend, and how close the program must stay to the model."""

import difflib
import fnmatch
from dataclasses import dataclass

PRECISIONS = ("fp32", "int8-static", "int8-dynamic", "int4-dynamic")


@dataclass(frozen=True)
class Rule:
    """Layers whose name matches the pattern (as of a shell) are computed in this precision.

    fp32: as they are.
    int8-static: weights with a scale per output channel, activations in and out with one scale found on calibration images.
    int8-dynamic: the same weights; the scale of what comes in is found in every run, what goes out is float.
    int4-dynamic: weights of 4 bits with a scale for 32 of them, otherwise as int8-dynamic.
    """

    pattern: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to lower a model.

    backend: "xnnpack" runs on every phone and computer; "coreml" and "vulkan" programs are built here, not run.
    rules: for the linear layers and the convolution; the first that matches wins, what none matches stays float.
    float_dtype: of everything that is not quantized.
    train_epochs: passes over the calibration images in which quantized weights learn to follow the model again.
    min_sqnr_db: least mean ratio of the model's outputs to their error on real images, in decibels.
    min_agreement: least share of images with the same top class as the model.
    max_accuracy_drop: most of the accuracy on held-out images, if there are any, that the program may lose; an image at least.
    self_test_bound: of the bundled outputs, relative to the largest: processors round differently, and int8 passes it on.
    max_delegates: most parts the backend may take the program in.
    outside: operators that may stay outside of them.
    executable: whether the program can be run, and so checked, on this machine.
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

    @property
    def is_calibrated(self) -> bool:
        """Whether it needs images to find the scales of activations."""
        return any(rule.precision == "int8-static" for rule in self.rules)

    @property
    def is_quantized(self) -> bool:
        return any(rule.precision != "fp32" for rule in self.rules)

    def precision_of(self, layer: str) -> str:
        """Precision of a layer by its name: that of the first rule that matches, or fp32."""
        return next((rule.precision for rule in self.rules if fnmatch.fnmatchcase(layer, rule.pattern)), "fp32")


# The patch embedding is a three-hundredth of the work, and rounding its output hurts more than any other layer.
PATCHES = Rule("encoder.embeddings.projection", "fp32")
STATIC = (PATCHES, Rule("*", "int8-static"))
# What these layers put out is the logits, and the residual stream after all blocks of a stage.
MIXED = (PATCHES, Rule("classifier", "int8-dynamic"), Rule("*.reduction", "int8-dynamic"), Rule("*", "int8-static"))
CASTS = ("aten::_to_copy", "dim_order_ops::_to_dim_order_copy")

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="fp32", summary="exact", min_sqnr_db=80.0, min_agreement=1.0, max_accuracy_drop=0.0, self_test_bound=1e-3),
        Recipe(
            name="fp16",
            summary="half the size of fp32; processors without float16 arithmetic refuse it",
            float_dtype="float16",
            min_sqnr_db=35.0,
            min_agreement=0.97,
            outside=CASTS,
        ),
        Recipe(
            name="int8",
            summary="the default: int8-static, but for the layers that it hurts most for nothing",
            rules=MIXED,
            min_sqnr_db=20.0,
            min_agreement=0.90,
        ),
        Recipe(
            name="int8-static",
            summary="scales of activations found on calibration images: the fastest",
            rules=STATIC,
            min_sqnr_db=20.0,
            min_agreement=0.90,
        ),
        Recipe(
            name="int8-dynamic",
            summary="scales of activations found in every run: needs no calibration",
            rules=(PATCHES, Rule("*", "int8-dynamic")),
            min_sqnr_db=20.0,
            min_agreement=0.90,
        ),
        Recipe(
            name="int8-qat",
            summary="int8-static whose weights were trained on with rounding in place (needs swin-hf[train])",
            rules=STATIC,
            train_epochs=3,
            min_sqnr_db=20.0,
            min_agreement=0.90,
        ),
        Recipe(
            name="int4",
            summary="experimental: weights of 4 bits, for size alone",
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
        ValueError: there is none.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}{hint}")
    return RECIPES[name]
