"""The model card of a finished training."""

from pathlib import Path

from transformers import (
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)

from distill.public_names import public_name
from distill.training.settings import FinetuneSettings
from swin_hf.model_card import Card, as_markdown, loading_code, write_card

AUTO_CLASSES = (
    *(AutoModelForImageClassification, AutoModelForSemanticSegmentation),
    *(AutoModelForObjectDetection, AutoModelForMaskedImageModeling),
)
LIMITS = (
    "The figures hold for images like those that it was tested on. How it does on others, or on what lies outside its "
    "classes, was not measured."
)


def write_training_card(settings: FinetuneSettings, model: PreTrainedModel, output_dir: Path) -> None:
    """Write a model card that says what was trained on which data, how it is loaded, the figures measured, and its limits."""
    choice, teachers = settings.model, " and ".join(as_markdown(public_name(name)) for name in settings.teachers)
    by_whom = f", taught by {teachers}" if teachers else ""
    loads = (kind.__name__ for kind in AUTO_CLASSES if kind._model_mapping.get(type(model.config), None) is type(model))
    is_stock = not type(model).__module__.startswith("swin_hf")
    backbone = getattr(getattr(model.config, "backbone_config", None), "model_type", "")
    card = Card(
        pipeline=settings.kind.pipeline_tag,
        library="transformers",
        about=(
            f"{as_markdown(choice.public_name)}, trained for {settings.task.task} on "
            f"{as_markdown(settings.images.public_name)} at {settings.task.image_size} x {settings.task.image_size} pixels "
            f"with swin-hf's `scripts/finetune.py`{by_whom}."
        ),
        use=loading_code(next(loads, "AutoModel"), is_stock, has_our_backbone=is_stock and backbone.startswith("swin_hf")),
        limits=LIMITS,
        base_model=None if choice.is_preset or Path(choice.name).exists() else choice.name,
    )
    write_card(card, output_dir.name, output_dir, output_dir)
