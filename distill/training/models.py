"""The model to fine-tune and its image processor: a preset, or a checkpoint with a head for other classes at another size."""

import re
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)

from distill.training.command_line import SettingsError, require
from distill.training.settings import FinetuneSettings
from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForSemanticSegmentation,
    SwinHfImageProcessorPil,
    SwinHfUperNetConfig,
)
from swin_hf.configuration_swin_hf import named_classes
from swin_hf.convert import processor_settings, resized_processor
from swin_hf.presets_swin_hf import PRESETS
from swin_hf.segmentation_swin_hf import AUXILIARY_STAGE
from swin_hf.weight_files import ConversionError

AUTO_CLASSES = {
    "image-classification": AutoModelForImageClassification,
    "masked-image-modeling": AutoModelForMaskedImageModeling,
    "semantic-segmentation": AutoModelForSemanticSegmentation,
}
# Weights of a head, which a checkpoint need not have; UperNet's all are where only the backbone comes from one.
FRESH_WEIGHTS = re.compile(r"(^|_head\.)(classifier|decoder)\.|mask_token$")
FRESH_IN_BACKBONE = re.compile(r"^hidden_states_norms\.")


class ModelError(ValueError):
    """`--model` cannot be trained for the task; the message says why."""


def load_model(settings: FinetuneSettings, class_names: list[str]) -> PreTrainedModel:
    """The model of `--model` with a head for these classes: a checkpoint's at `--image_size`, or a preset's, untrained.

    A Swin of ours becomes the backbone of a UperNet (Xiao et al. 2018, arXiv:1807.10221) where pixels are classified.

    Raises:
        ModelError: it cannot be loaded, or the checkpoint lacks weights that are not its head's.
        SettingsError: `--model_args` or `--head_args` are no fields of its config.
    """
    task, auto_class = settings.task, AUTO_CLASSES[settings.task.task]
    try:
        config = _load_config(settings, class_names)
        if task.task == "semantic-segmentation" and isinstance(config, SwinHfConfig):
            return _segmenter_over(config, settings, class_names)
        if task.model in PRESETS:
            return auto_class.from_config(config)
        model, report = auto_class.from_pretrained(
            task.model, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except SettingsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"--model {task.model} must be a preset ({', '.join(PRESETS)}), or a checkpoint folder or Hub id for "
            f"{auto_class.__name__}: {error}"
        ) from error
    _check_weights(settings, model, report, FRESH_WEIGHTS)
    return model


def load_processor(settings: FinetuneSettings):
    """The checkpoint's image processor at `--image_size`, or ours for a preset."""
    size = {"height": settings.task.image_size, "width": settings.task.image_size}
    if settings.task.model in PRESETS:
        return SwinHfImageProcessorPil(size=size)
    try:
        processor = AutoImageProcessor.from_pretrained(settings.task.model, backend="pil", size=size)
    except OSError:
        return SwinHfImageProcessorPil(size=size)
    if settings.task.task != "semantic-segmentation" and getattr(processor, "do_center_crop", False):
        saved = AutoImageProcessor.from_pretrained(settings.task.model, backend="pil").to_dict()
        try:  # a crop of another image size is another crop
            return resized_processor(SwinHfImageProcessorPil(**processor_settings(saved)), settings.task.image_size)
        except ConversionError as error:
            raise ModelError(f"--model {settings.task.model}: {error}") from error
    if settings.task.task == "semantic-segmentation":  # masks are not cropped with their images
        for crop in ("do_center_crop", "crop_pct"):
            if getattr(processor, crop, None):
                setattr(processor, crop, None)
    return processor


def _load_config(settings: FinetuneSettings, class_names: list[str]) -> PreTrainedConfig:
    """The config of `--model` with the changes of `--model_args`, for these classes and `--image_size`."""
    task = settings.task
    changes = _fields(task.model_args, "model_args")
    if task.task != "masked-image-modeling":
        changes |= named_classes(class_names)
    if task.model in PRESETS:
        config = PRESETS[task.model](**{"image_size": task.image_size} | changes)
        if task.task == "masked-image-modeling" and "encoder_stride" not in changes:
            config.encoder_stride = config.token_height_width[0]
        return config
    config, unknown = AutoConfig.from_pretrained(task.model, return_unused_kwargs=True, **changes)
    require(not unknown, "model_args", f"be fields of {type(config).__name__}", ", ".join(sorted(unknown)))
    for own in (config, getattr(config, "backbone_config", None)):
        if isinstance(own, SwinHfConfig):
            own.image_size = task.image_size
    return config


def _segmenter_over(config: SwinHfConfig, settings: FinetuneSettings, class_names: list[str]) -> PreTrainedModel:
    """A new UperNet over the feature maps of all stages of a Swin, whose weights come from `--model` if it has any."""
    config.set_output_features_output_indices(out_features=config.stage_names[1:], out_indices=None)
    head = {"use_auxiliary_head": len(config.depths) > AUXILIARY_STAGE} | _fields(settings.task.head_args, "head_args")
    unknown = set(head) - set(SwinHfUperNetConfig().to_dict())
    require(not unknown, "head_args", "be fields of SwinHfUperNetConfig", ", ".join(sorted(unknown)))
    model = SwinHfForSemanticSegmentation(SwinHfUperNetConfig(backbone_config=config, **named_classes(class_names), **head))
    if settings.task.model not in PRESETS:
        backbone, report = SwinHfBackbone.from_pretrained(
            settings.task.model, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
        _check_weights(settings, backbone, report, FRESH_IN_BACKBONE)
        model.backbone.load_state_dict(backbone.state_dict())
    return model


def _check_weights(settings: FinetuneSettings, model: PreTrainedModel, report: dict[str, Any], fresh_ones: re.Pattern) -> None:
    """Say which weights are new, and that there are none too many.

    Raises:
        ModelError: the checkpoint lacks weights that are not its head's.
    """
    mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}  # alone, or with both shapes
    fresh = sorted(set(report["missing_keys"]) | mismatched)
    lacking = [key for key in fresh if not fresh_ones.search(key)]
    if lacking:
        raise ModelError(f"--model {settings.task.model} lacks weights of {type(model).__name__}: {', '.join(lacking[:5])}")
    if settings.trainer.process_index == 0:
        print(f"weights from {settings.task.model}; new: {', '.join(fresh) or 'none'}", flush=True)


def _fields(text: str, name: str) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(text or "{}")
    except yaml.YAMLError:
        fields = None
    require(isinstance(fields, dict), name, 'be YAML like "{depths: [1, 2]}"', text)
    return fields
