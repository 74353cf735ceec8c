"""Checkpoints to export: model, image processor, and the input contract that follows from the processor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from edge.deploy.form import Exportable, encoder_config, flat
from edge.deploy.view import InputView
from edge.device.artefact import CLASSIFICATION, COLOURS, FEATURES, SEGMENTATION, InputContract, Manifest
from edge.device.errors import ExplainedError
from edge.device.runner import NotFiniteError
from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForSemanticSegmentation,
    SwinHfImageProcessorPil,
    SwinHfUperNetConfig,
)
from swin_hf.configuration_swin_hf import class_names
from swin_hf.weight_files import ConversionError, WeightFiles, not_finite, read_json_object, why_unreadable
from swin_hf.weight_import import architecture_of
from swin_hf.working_processor import require_working_processor

EXPORTED = {kind.__name__: kind for kind in Exportable.__args__}
MODEL_TYPES = (SwinHfConfig.model_type, SwinHfUperNetConfig.model_type)
MOST_CLASSES = 255  # of a mask's pixels, in which 255 stands for none


class CheckpointError(ExplainedError):
    """A checkpoint cannot be exported; the message says why."""


def load_checkpoint(folder: Path) -> tuple[Exportable, SwinHfImageProcessorPil]:
    """The model, in fp32, and the image processor of a checkpoint folder; the logits of a segmenter are not resized.

    Raises:
        CheckpointError: the folder does not hold a whole model of ours that can be exported, with its image processor.
    """
    folder = Path(folder)
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; give a folder written by save_pretrained of model and processor")
    try:
        config = read_json_object(folder / "config.json", finite=True)
        read_json_object(folder / "preprocessor_config.json", finite=True)
        name = architecture_of(WeightFiles(name=str(folder), weights={}, config=config)) or "SwinHfForImageClassification"
    except ConversionError as error:
        raise CheckpointError(str(error)) from error
    if config.get("model_type") not in MODEL_TYPES:
        raise CheckpointError(f"{folder} must hold a model of type {' or '.join(MODEL_TYPES)}, got {config.get('model_type')}")
    if name not in EXPORTED:
        raise CheckpointError(f"{folder} must hold a {' or '.join(EXPORTED)}, got a {name}")
    try:
        model, report = EXPORTED[name].from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        processor = SwinHfImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # on values of a wrong type and damaged weights transformers and PyTorch raise anything
        raise CheckpointError(f"{folder} cannot be loaded: {why_unreadable(error)}") from error
    if report["missing_keys"]:
        raise CheckpointError(
            f"{folder} lacks weights: {', '.join(sorted(report['missing_keys'])[:5])}; if they have other names in its files, "
            f"python -m swin_hf.convert {folder} FOLDER"
        )
    if bad := not_finite(model.state_dict()):
        raise CheckpointError(f"{folder} must hold finite weights, got {bad}; take an earlier checkpoint of this model")
    if isinstance(model, SwinHfForSemanticSegmentation):
        model.config.resize_logits = False  # a device enlarges class maps to the size of its image
        if model.config.num_labels > MOST_CLASSES:
            raise CheckpointError(
                f"{folder} must hold a segmenter of {MOST_CLASSES} classes at most, got {model.config.num_labels}"
            )
    if not isinstance(model, SwinHfBackbone):
        try:
            "".join(class_names(model.config)).encode()  # a program holds its labels in UTF-8
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        if model.config.num_labels < 2:
            raise CheckpointError(f"{folder} must hold a model of two or more classes, got {model.config.num_labels}")
    one_class = (None, "single_label_classification")
    if isinstance(model, SwinHfForImageClassification) and model.config.problem_type not in one_class:
        raise CheckpointError(
            f"{folder} must hold a classifier that gives each image one class, got {model.config.problem_type}: a device "
            "shows the softmax of its outputs as probabilities"
        )
    return model.eval(), processor


def task_of(model: Exportable) -> str:
    """As in `edge.json`."""
    if isinstance(model, SwinHfForSemanticSegmentation):
        return SEGMENTATION
    return FEATURES if isinstance(model, SwinHfBackbone) else CLASSIFICATION


def outputs_named(model: Exportable) -> list[str]:
    """Names of what a model puts out: its classes, or its feature maps."""
    return list(model.out_features) if isinstance(model, SwinHfBackbone) else class_names(model.config)


def load_source(folder: Path, manifest: Manifest) -> tuple[Exportable, SwinHfImageProcessorPil]:
    """The model that an artefact was exported from, as its kind and sizes tell, and its image processor.

    Raises:
        CheckpointError: the folder holds another model, or none that can be exported.
    """
    model, processor = load_checkpoint(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for what, expected, got in (
        ("task", manifest.task, task_of(model)),
        ("number of outputs", len(manifest.labels), len(outputs_named(model))),
        ("number of image channels", manifest.input.channels, encoder_config(model).num_channels),
        ("number of parameters", manifest.source.parameters, parameters),
    ):
        if got != expected:
            raise CheckpointError(
                f"{folder} must hold the model that the artefact was exported from, with the {what} {expected}, got {got}"
            )
    return model, processor


def input_contract(config: SwinHfConfig, processor: SwinHfImageProcessorPil, input_dtype: str = "float32") -> InputContract:
    """What a device does to an image before the program: everything that the processor does except the normalisation.

    Raises:
        CheckpointError: the processor does something that a device cannot repeat, or resizes to another size than the model's.
    """
    height, width = config.image_height_width
    if input_dtype not in ("float32", "uint8"):
        raise CheckpointError(f"input_dtype must be float32 or uint8, got {input_dtype!r}")
    if config.num_channels not in COLOURS:
        raise CheckpointError(f"num_channels must be 3 (RGB) or 1 (greyscale) for images, got {config.num_channels}")
    if processor.do_center_crop or not (processor.do_resize and processor.do_rescale and processor.do_normalize):
        raise CheckpointError(
            "the image processor must resize, rescale and normalise to be repeated on a device, and crop only by crop_pct"
        )
    require_working_processor(processor, config.num_channels, "the checkpoint", CheckpointError)
    if (processor.size.height, processor.size.width) != (height, width):
        raise CheckpointError(f"the image processor must resize to the model's {height} x {width}, got {dict(processor.size)}")
    if not np.isclose(processor.rescale_factor, 1 / 255):
        raise CheckpointError(f"the image processor must rescale by 1/255, got {processor.rescale_factor}")
    contract = InputContract(
        height=height,
        width=width,
        resample=int(processor.resample),
        crop_pct=processor.crop_pct,
        channels=config.num_channels,
        colour=COLOURS[config.num_channels],
    )
    if input_dtype == "uint8":
        return replace(contract, dtype="uint8", layout="NHWC", value_range=(0.0, 255.0))
    return contract


def input_view(
    processor: SwinHfImageProcessorPil, contract: InputContract, batch_size: int, height: int, width: int
) -> InputView:
    """The input of a method, as the deploy form takes it."""
    return InputView(
        batch_size=batch_size,
        height=height,
        width=width,
        image_mean=tuple(processor.image_mean),
        image_std=tuple(processor.image_std),
        dtype=contract.dtype,
    )


@torch.no_grad()
def model_outputs(
    model: Exportable,
    processor: SwinHfImageProcessorPil,
    inputs: list[np.ndarray],
    names: list[str],
) -> np.ndarray:
    """Logits (n, K), or flattened logits of pixels or feature maps (n, ..), of the model for inputs (B, ..) of the program.

    names: of the images in the inputs; the last input may have some of the first images again.

    Raises:
        NotFiniteError: an output is NaN or infinite; the message names the image.
    """
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (processor.image_mean, processor.image_std))
    rows = []
    for array in inputs:
        pixels = torch.from_numpy(array)
        if pixels.dtype == torch.uint8:
            pixels = pixels.permute(0, 3, 1, 2) / 255
        outputs = model((pixels - mean) / std, return_dict=True)
        rows.append(flat(outputs.logits if hasattr(outputs, "logits") else outputs.feature_maps))
    outputs = np.concatenate(rows)
    damaged = ~np.isfinite(outputs).all(axis=1)
    if damaged.any():
        raise NotFiniteError(
            f"{names[damaged.argmax() % len(names)]}: the outputs of the model must be finite, got NaN or infinity for "
            f"{damaged.sum()} of {len(outputs)} images; train it again, or check image_mean and image_std of its processor"
        )
    return outputs
