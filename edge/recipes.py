"""Export recipes: what is quantized, for which backend, and how close the program must stay to the model."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to lower a model.

    quantized_operators: ATen operators that become int8, with one scale per output channel of their weights and static
        scales for activations, found on calibration images. Everything else stays fp32: quantizing the additions of the
        residual stream as well costs accuracy and gains nothing.
    min_sqnr_db: least mean ratio of the model's logits to their error, in decibels.
    min_agreement: least share of images with the same top class as the model.
    """

    name: str
    backend: str = "xnnpack"
    quantized_operators: tuple[str, ...] = ()
    min_sqnr_db: float
    min_agreement: float


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="fp32", min_sqnr_db=80.0, min_agreement=1.0),
        Recipe(name="int8", quantized_operators=("linear", "conv2d"), min_sqnr_db=15.0, min_agreement=0.90),
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]
