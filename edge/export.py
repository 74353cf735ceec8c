"""Export a checkpoint: deploy form, quantization, lowering, and a check of the finished program on real images."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.backends.xnnpack.utils.configs import (
    get_transform_passes,
    get_xnnpack_edge_compile_config,
    get_xnnpack_executorch_backend_config,
)
from executorch.devtools.backend_debug import get_delegation_info
from executorch.exir import to_edge_transform_and_lower
from safetensors import SafetensorError
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edge.artefact import MANIFEST_FILE, PROGRAM_FILE, InputContract, Manifest
from edge.deploy import deploy
from edge.deploy_layers import InputView
from edge.environment import installed_versions
from edge.files import move_into_place
from edge.image import find_images, load_image, to_pixel_values
from edge.parity import Parity, compare
from edge.recipes import Recipe, find_recipe
from edge.runner import Runner
from swin_hf import SwinHfConfig, SwinHfForImageClassification, SwinHfImageProcessorPil

MIN_CALIBRATION_IMAGES = 16
MAX_IMAGES = 256
MAX_DEPLOY_DIFFERENCE = 1e-4  # of the deploy form's logits, relative to the largest logit


class ExportError(ValueError):
    """A checkpoint cannot be exported, or its program is not close enough to it; the message says why."""


def export(checkpoint_dir: Path, out: Path, recipe_name: str, images: Path | None = None) -> Manifest:
    """Export the classifier in `checkpoint_dir` to `out`, which appears only if every check held.

    images: a folder of real images to calibrate on and to compare the program with the model. By default the
        `calibration` images of the run that the checkpoint belongs to.

    Raises:
        ExportError: no such checkpoint, an image processor that a device cannot repeat, too few images to calibrate on, or
            a program that is too far from the model.
        ValueError: an unknown recipe.
    """
    recipe = find_recipe(recipe_name)
    checkpoint_dir, out = Path(checkpoint_dir), Path(out)
    model, processor = load_checkpoint(checkpoint_dir)
    contract = input_contract(model.config, processor)
    if out.exists() and any(path.name not in (PROGRAM_FILE, MANIFEST_FILE) for path in out.iterdir()):
        raise ExportError(f"--out {out} must be a new folder or an earlier export, got a folder with other files in it")
    inputs = _load_inputs(checkpoint_dir, images, contract, recipe)

    view = InputView(
        height=contract.height,
        width=contract.width,
        image_mean=tuple(processor.image_mean),
        image_std=tuple(processor.image_std),
    )
    deployed = deploy(model, view)
    reference = model_logits(model, processor, inputs)
    deploy_difference = _check_deploy_form(deployed, inputs, reference)
    program, program_facts = _lower(deployed, recipe, [torch.from_numpy(x) for x in inputs])
    manifest = Manifest(
        labels=[model.config.id2label[index] for index in range(model.config.num_labels)],
        input=contract,
        recipe=recipe.name,
        backend=recipe.backend,
        parity={"deploy_max_difference": deploy_difference},
        program={"size_bytes": len(program), **program_facts},
        source={
            "checkpoint": os.path.relpath(checkpoint_dir.resolve(), out.resolve()),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        versions=installed_versions("swin-hf", "torch", "executorch", "torchao", "transformers"),
        sha256=hashlib.sha256(program).hexdigest(),
    )
    return _write_checked(manifest, program, recipe, inputs, reference, out)


def _check_deploy_form(deployed: torch.nn.Module, inputs: list[np.ndarray], reference: np.ndarray) -> float:
    """Largest difference of the deploy form's logits from the model's."""
    parity = compare(np.concatenate([deployed(torch.from_numpy(x)).numpy() for x in inputs]), reference)
    limit = MAX_DEPLOY_DIFFERENCE * max(1.0, float(np.abs(reference).max()))
    if not parity.max_difference <= limit:
        raise ExportError(f"the deploy form differs from the model by {parity.max_difference:.2e} (limit {limit:.2e})")
    return parity.max_difference


def _write_checked(
    manifest: Manifest, program: bytes, recipe: Recipe, inputs: list[np.ndarray], reference: np.ndarray, out: Path
) -> Manifest:
    """Write the artefact aside, run it from there as a device would, and give it its name if it follows the model."""
    work_dir = out.with_name(f".{out.name}.partial")
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    try:
        (work_dir / PROGRAM_FILE).write_bytes(program)
        manifest.write(work_dir)
        runner = Runner(work_dir)
        parity = compare(np.stack([runner.logits(x) for x in inputs]), reference)
        _require_parity(parity, recipe)
        figures = {
            "num_images": parity.num_images,
            "program_max_difference": parity.max_difference,
            "program_sqnr_db": parity.sqnr_db,
            "program_agreement": parity.agreement,
        }
        manifest = replace(manifest, parity=manifest.parity | figures)
        manifest.write(work_dir)
        move_into_place(work_dir, out)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return manifest


def load_checkpoint(folder: Path) -> tuple[SwinHfForImageClassification, SwinHfImageProcessorPil]:
    """The model, in fp32, and the image processor of a checkpoint folder.

    Raises:
        ExportError: the folder does not hold a whole swin_hf classifier with its image processor.
    """
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise ExportError(f"{folder} has no {name}; give a folder written by save_pretrained of model and processor")
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type != SwinHfConfig.model_type:
        raise ExportError(f"{folder} must hold a model of type {SwinHfConfig.model_type}, got {model_type}")
    try:
        model, report = SwinHfForImageClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        processor = SwinHfImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExportError(f"{folder} cannot be loaded: {error}") from error
    if report["missing_keys"]:
        raise ExportError(f"{folder} lacks weights: {', '.join(sorted(report['missing_keys'])[:5])}")
    return model.eval(), processor


def input_contract(config: SwinHfConfig, processor: SwinHfImageProcessorPil) -> InputContract:
    """What a device has to do to an image before the program: all that the processor does, less the normalisation.

    Raises:
        ExportError: the processor does something else, or resizes to another size than the model's.
    """
    height, width = config.image_height_width
    if config.num_channels != 3:
        raise ExportError(f"num_channels must be 3 for images, got {config.num_channels}")
    if processor.do_center_crop or not (processor.do_resize and processor.do_rescale and processor.do_normalize):
        raise ExportError("the image processor must resize, rescale and normalise, and not crop, to be repeated on a device")
    if (processor.size.height, processor.size.width) != (height, width):
        raise ExportError(f"the image processor must resize to the model's {height} x {width}, got {dict(processor.size)}")
    if not np.isclose(processor.rescale_factor, 1 / 255):
        raise ExportError(f"the image processor must rescale by 1/255, got {processor.rescale_factor}")
    return InputContract(height=height, width=width, resample=int(processor.resample))


def model_logits(
    model: SwinHfForImageClassification, processor: SwinHfImageProcessorPil, inputs: list[np.ndarray]
) -> np.ndarray:
    """Logits (n, K) of the model for inputs of the program, each (1, 3, H, W) in [0, 1]."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (processor.image_mean, processor.image_std))
    with torch.no_grad():
        return np.concatenate([model((torch.from_numpy(x) - mean) / std).logits.numpy() for x in inputs])


def _load_inputs(checkpoint_dir: Path, images: Path | None, contract: InputContract, recipe: Recipe) -> list[np.ndarray]:
    if images is None:
        images = checkpoint_dir.parent / "data" / "calibration"
        if not images.is_dir():
            raise ExportError("an export is calibrated and checked on real images; give a folder of them with --data")
    try:
        paths = find_images(images)[:MAX_IMAGES]
    except FileNotFoundError as error:
        raise ExportError(str(error)) from error
    if recipe.quantized_operators and len(paths) < MIN_CALIBRATION_IMAGES:
        raise ExportError(
            f"recipe {recipe.name} needs at least {MIN_CALIBRATION_IMAGES} images to calibrate on, "
            f"got {len(paths)} in {images}"
        )
    return [to_pixel_values(load_image(path), contract.height, contract.width, contract.resample) for path in paths]


def _lower(deployed: torch.nn.Module, recipe: Recipe, inputs: list[torch.Tensor]) -> tuple[bytes, dict[str, int]]:
    """The program as bytes, with the number of its delegates and of the nodes outside them."""
    example = (inputs[0],)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch and executorch
        exported = torch.export.export(deployed, example, strict=True)
        if recipe.quantized_operators:
            exported = torch.export.export(_quantize(exported.module(), recipe, inputs), example, strict=True)
        lowered = to_edge_transform_and_lower(
            exported,
            partitioner=[XnnpackPartitioner()],
            transform_passes=get_transform_passes(),
            compile_config=get_xnnpack_edge_compile_config(),
        )
        delegation = get_delegation_info(lowered.exported_program().graph_module)
        outside = {
            name: row.non_delegated
            for name, row in delegation.delegation_by_operator.items()
            if row.non_delegated and name != "getitem"  # taking an output from a delegate's tuple
        }
        program = lowered.to_executorch(get_xnnpack_executorch_backend_config()).buffer
    facts = {"num_delegates": delegation.num_delegated_subgraphs, "num_undelegated_operators": sum(outside.values())}
    return program, facts


def _quantize(graph: torch.nn.Module, recipe: Recipe, inputs: list[torch.Tensor]) -> torch.nn.Module:
    config = get_symmetric_quantization_config(is_per_channel=True)
    quantizer = XNNPACKQuantizer()
    for name in recipe.quantized_operators:
        operator: Callable = getattr(torch.ops.aten, name).default
        quantizer.set_operator_type(operator, config)
    prepared = prepare_pt2e(graph, quantizer)
    for pixel_values in inputs:
        prepared(pixel_values)
    return convert_pt2e(prepared)


def _require_parity(parity: Parity, recipe: Recipe) -> None:
    if not (parity.sqnr_db >= recipe.min_sqnr_db and parity.agreement >= recipe.min_agreement):
        raise ExportError(
            f"recipe {recipe.name} must keep {recipe.min_sqnr_db:.0f} dB and {recipe.min_agreement:.0%} agreement with the "
            f"model on {parity.num_images} images, got {parity.sqnr_db:.1f} dB and {parity.agreement:.1%}; nothing was "
            "written. Try recipe fp32, or more and more typical images"
        )
