"""The model to train and its image processor: a preset or a checkpoint, with a head for the classes and an image size."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    ConditionalDetrImageProcessorPil,
    DeformableDetrImageProcessorPil,
    DetrImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    RTDetrImageProcessorPil,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from distill.compress.weight_selection import SelectionError, select_weights
from distill.data.normalisation import channels_of
from distill.errors import SettingsError, require
from distill.public_names import public_name
from distill.published import loadable, why_not_loaded
from distill.training.tasks.task import HEAD_WEIGHTS, Task
from distill.training.yaml_text import parse_yaml
from edge.device.errors import ExplainedError
from edge.device.names import did_you_mean
from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForSemanticSegmentation,
    SwinHfImageProcessorPil,
)
from swin_hf.configuration_swin_hf import named_classes
from swin_hf.convert import processor_settings, resized_processor
from swin_hf.errors import in_one_line
from swin_hf.presets_swin_hf import PRESETS
from swin_hf.weight_files import ConversionError, not_finite
from swin_hf.working_processor import require_working_processor

SWINS = {  # by their kind of config, the class that loads them
    **dict.fromkeys(("swin_hf", "swin", "swinv2"), SwinHfForImageClassification),
    "swin_hf_upernet": SwinHfForSemanticSegmentation,
}
DETECTOR_PROCESSORS = {  # by their kind of config, what makes boxes of their outputs
    **dict.fromkeys(("detr", "table-transformer"), DetrImageProcessorPil),
    **dict.fromkeys(("conditional_detr", "dab-detr"), ConditionalDetrImageProcessorPil),
    "deformable_detr": DeformableDetrImageProcessorPil,
    **dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine", "deimv2"), RTDetrImageProcessorPil),
}
FRESH_IN_BACKBONE = re.compile(r"^hidden_states_norms\.")  # if only the backbone comes from a checkpoint
# Short names of weights that others published, trained on ImageNet-22k and then on ImageNet-1k (Wu et al. 2022).
PRETRAINED = {f"tiny_vit_{size}_pretrained": f"timm/tiny_vit_{size}_224.dist_in22k_ft_in1k" for size in ("5m", "11m", "21m")}


class ModelError(ExplainedError):
    """A model cannot be trained for the task; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A preset, to be trained from scratch, or a checkpoint folder or Hub id.

    args: fields of its config to change.
    head_args: fields of the head's config, where the model becomes a backbone.
    init_from: checkpoint of a larger Swin, with some of whose weights a preset starts; empty: with new ones.
    flag: its name on the command line, for messages.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    head_args: dict[str, Any] = field(default_factory=dict)
    init_from: str = ""
    flag: str = "model"

    @classmethod
    def parse(cls, flag: str, name: str, args: str, head_args: str = "", init_from: str = "") -> "ModelChoice":
        """From the values of `--FLAG`, `--FLAG_args` and `--head_args`, the latter two YAML.

        Raises:
            SettingsError: the name is empty, a value is not a YAML mapping, or a checkpoint is to start with other weights.
        """
        kinds = "name a preset, a checkpoint folder or a Hub id"
        require(bool(name.strip()), flag, kinds, name)
        name = PRETRAINED.get(name, name)
        if (
            name not in PRESETS
            and "/" not in name
            and not Path(name).exists()
            and (hint := did_you_mean(name, (*PRESETS, *PRETRAINED)))
        ):
            raise SettingsError(f"--{flag} must {kinds}, got {name!r}{hint}")
        choice = cls(
            name=name,
            args=_fields(args, f"{flag}_args"),
            head_args=_fields(head_args, "head_args"),
            init_from=init_from,
            flag=flag,
        )
        require(choice.is_preset or not init_from, choice.init_flag, f"come with a preset as --{flag}", name)
        return choice

    @property
    def init_flag(self) -> str:
        return "init_from" if self.flag == "model" else f"{self.flag}_init_from"

    @property
    def is_preset(self) -> bool:
        return self.name in PRESETS

    @property
    def source(self) -> str:
        """What `from_pretrained` takes for its name.

        Raises:
            ConversionError: it is a Swin or TinyViT of other code that cannot be read or expressed.
        """
        return loadable(self.name)

    def __str__(self) -> str:
        return self.name + (f" with {self.args}" if self.args else "")

    @property
    def public_name(self) -> str:
        """As `str`, without the folder that a checkpoint lies in."""
        return str(replace(self, name=public_name(self.name)))


def _fields(text: str, name: str) -> dict[str, Any]:
    try:
        fields = parse_yaml(text or "{}")
    except yaml.YAMLError:
        fields = None
    require(isinstance(fields, dict), name, 'be YAML like "{depths: [1, 2]}"', text)
    return fields


def load_model(
    choice: ModelChoice, task: Task, class_names: list[str], image_size: int, announce: bool = True
) -> PreTrainedModel:
    """The chosen model with a head for these classes: a checkpoint at `image_size`, or an untrained preset.

    announce: whether to print which weights are new.

    Raises:
        ModelError: it cannot be loaded, the checkpoint lacks weights that are not its head's, or it cannot start with the
            weights that it is to start with.
        SettingsError: a field to change is not in its config.
    """
    model = _load_model(choice, task, class_names, image_size, announce)
    if choice.init_from:
        start_with(model, load_larger(choice), choice, announce)
    return model


def _load_model(choice: ModelChoice, task: Task, class_names: list[str], image_size: int, announce: bool) -> PreTrainedModel:
    try:
        config = _load_config(choice, task, class_names, image_size)
        if task.over_backbone and isinstance(config, SwinHfConfig):
            return _over_backbone(choice, task, config, class_names, announce)
        if choice.is_preset:
            return task.auto_class.from_config(config)
        model, report = task.auto_class.from_pretrained(
            choice.source, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (SettingsError, ModelError):
        raise
    except Exception as error:  # on values of a wrong type and damaged weights transformers and PyTorch raise anything
        if choice.is_preset:
            raise ModelError(
                f"--{choice.flag} {choice.name} cannot be built with {choice.args} for images of {image_size} x {image_size} "
                f"pixels: {in_one_line(error)}"
            ) from error
        raise ModelError(
            f"--{choice.flag} {choice.name} must be a preset ({', '.join(PRESETS)}), or a checkpoint folder or Hub id for "
            f"{task.auto_class.__name__}: {why_not_loaded(choice.name, error)}"
        ) from error
    _check_weights(choice, model, report, task.fresh_weights, announce)
    if task.targets.have_classes:
        _check_size(choice, model, image_size)
    return model


def load_larger(choice: ModelChoice) -> PreTrainedModel:
    """The model with some of whose weights the chosen one starts.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        source = loadable(choice.init_from)
        architecture = AutoConfig.from_pretrained(source).model_type
        if architecture not in SWINS:
            raise ConversionError(f"it is a {architecture}")
        kind = SWINS[architecture]
        model, report = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # on values of a wrong type and damaged weights transformers and PyTorch raise anything
        why = why_not_loaded(choice.init_from, error)
        raise ModelError(f"--{choice.init_flag} {choice.init_from} must be a checkpoint of a Swin: {why}") from error
    _check_weights(replace(choice, name=choice.init_from, flag=choice.init_flag), model, report, HEAD_WEIGHTS, announce=False)
    return model


def start_with(model: PreTrainedModel, larger: PreTrainedModel, choice: ModelChoice, announce: bool) -> None:
    """Let a model start with some of the weights of a larger one, and print how many.

    Raises:
        ModelError: it cannot.
    """
    try:
        selection = select_weights(model, larger)
    except SelectionError as error:
        raise ModelError(f"--{choice.init_flag} {choice.init_from}: {error}") from error
    if announce and PartialState().is_local_main_process:
        print(
            f"{choice.name} starts with weights of {public_name(choice.init_from)}: {selection.num_blocks} of "
            f"{selection.of_blocks} blocks, {selection.share_of(model):.0%} of its weights",
            flush=True,
        )


def load_processor(
    choice: ModelChoice, image_size: int, crops: bool = True, config: PreTrainedConfig | None = None
) -> BaseImageProcessor:
    """The checkpoint's image processor at `image_size`, or ours for a preset.

    crops: whether it may crop the centre, if the checkpoint's does; otherwise whole images are resized.
    config: of the model, whose number of channels it must have.

    Raises:
        ModelError: the checkpoint's crop is not defined at another size, or it makes images of other channels.
    """
    num_channels = getattr(getattr(config, "backbone_config", None) or config, "num_channels", 3)
    processor = _processor_at(choice, image_size, crops, num_channels, config)
    require_working_processor(processor, num_channels, f"--{choice.flag} {choice.name}", ModelError)
    if channels_of(processor) != num_channels:
        raise ModelError(
            f"--{choice.flag} {choice.name} takes images of {num_channels} channels, and its image processor makes "
            f"{channels_of(processor)}; correct num_channels, image_mean and image_std in its preprocessor_config.json"
        )
    return processor


def detector_processor(kind: type[BaseImageProcessor], like: BaseImageProcessor) -> BaseImageProcessor:
    """The image processor of a detector, which makes boxes of its outputs, with the size and normalisation of another."""
    given = {name: getattr(like, name) for name in ("size", "resample", "do_normalize", "image_mean", "image_std")}
    return kind(**given | {"size": dict(like.size), "do_pad": False})


def _processor_at(
    choice: ModelChoice, image_size: int, crops: bool, num_channels: int, config: PreTrainedConfig | None
) -> BaseImageProcessor:
    size = {"height": image_size, "width": image_size}
    detector = DETECTOR_PROCESSORS.get(getattr(config, "model_type", ""))
    if choice.is_preset:
        ours = SwinHfImageProcessorPil(size=size, num_channels=num_channels)
        return detector_processor(detector, ours) if detector else ours
    try:
        processor = AutoImageProcessor.from_pretrained(choice.source, backend="pil", size=size)
    except Exception as error:  # on values of a wrong type transformers raises anything
        if not _has_processor(choice.source):
            return SwinHfImageProcessorPil(size=size, num_channels=num_channels)
        raise ModelError(
            f"--{choice.flag} {choice.name} has an image processor that cannot be loaded: {in_one_line(error)}"
        ) from error
    if crops and getattr(processor, "do_center_crop", False):
        saved = AutoImageProcessor.from_pretrained(choice.source, backend="pil").to_dict()
        try:  # the crop depends on the image size
            return resized_processor(SwinHfImageProcessorPil(**processor_settings(saved)), image_size)
        except ConversionError as error:
            raise ModelError(f"--{choice.flag} {choice.name}: {error}") from error
    if not crops:
        for crop in ("do_center_crop", "crop_pct"):
            if getattr(processor, crop, None):
                setattr(processor, crop, None)
    if detector and not hasattr(processor, "post_process_object_detection"):
        return detector_processor(detector, processor)
    return processor


def _has_processor(name: str) -> bool:
    """Whether a checkpoint folder or a Hub repository, as far as it can be reached, has an image processor."""
    return cached_file(name, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False) is not None


def _load_config(choice: ModelChoice, task: Task, class_names: list[str], image_size: int) -> PreTrainedConfig:
    """The config of the chosen model with its changes, for these classes and this image size."""
    changes = dict(choice.args)
    if task.targets.have_classes:
        changes |= named_classes(class_names)
    if choice.is_preset:
        config = PRESETS[choice.name](**{"image_size": image_size} | changes)
        task.adapt_config(config, changes)
        return config
    config, unknown = AutoConfig.from_pretrained(choice.source, return_unused_kwargs=True, **changes)
    rule = f"be fields of {type(config).__name__}"
    require(not unknown, f"{choice.flag}_args", rule, ", ".join(sorted(unknown)))
    config.return_dict = True
    for own in (config, getattr(config, "backbone_config", None)):
        if isinstance(own, SwinHfConfig):
            own.image_size = image_size
    return config


def _over_backbone(
    choice: ModelChoice, task: Task, config: SwinHfConfig, class_names: list[str], announce: bool
) -> PreTrainedModel:
    """A new head on a Swin backbone, with the backbone's weights from the checkpoint if one was chosen."""
    model = task.over_backbone(config, class_names, choice.head_args)
    if not choice.is_preset:
        inner = next(part for part in model.modules() if isinstance(part, SwinHfBackbone))
        backbone, report = SwinHfBackbone.from_pretrained(
            choice.source, config=inner.config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
        _check_weights(choice, backbone, report, FRESH_IN_BACKBONE, announce)
        weights = backbone.state_dict()  # of which detectors that freeze batch normalisation do not count the batches
        inner.load_state_dict({name: weights[name] for name in inner.state_dict()})
    return model


def _check_weights(
    choice: ModelChoice, model: PreTrainedModel, report: dict[str, Any], may_be_new: re.Pattern, announce: bool
) -> None:
    """Print which weights are new, and check that only a head's are, and that all are finite.

    Raises:
        ModelError: the checkpoint lacks weights that are not its head's, or has some that are not finite.
    """
    if bad := not_finite(model.state_dict()):
        raise ModelError(f"--{choice.flag} {choice.name} must hold finite weights, got {bad}; take an earlier checkpoint")
    mismatched = {
        key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]
    }  # the name alone, or with both shapes
    fresh = sorted(set(report["missing_keys"]) | mismatched)
    lacking = [key for key in fresh if not may_be_new.search(key)]
    if lacking:
        raise ModelError(f"--{choice.flag} {choice.name} lacks weights of {type(model).__name__}: {', '.join(lacking[:5])}")
    if announce and PartialState().is_main_process:
        print(f"weights from {choice.name}; new: {', '.join(fresh) or 'none'}", flush=True)


@torch.no_grad()
def _check_size(choice: ModelChoice, model: PreTrainedModel, image_size: int) -> None:
    """Run the model on one image of the training size, since not every architecture takes every size.

    Raises:
        ModelError: it takes images of another size only.
    """
    try:
        model(pixel_values=torch.zeros(1, getattr(model.config, "num_channels", 3), image_size, image_size))
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"--{choice.flag} {choice.name} must take images of {image_size} x {image_size} pixels: {error}; give the "
            "--image_size that it was made for"
        ) from error
