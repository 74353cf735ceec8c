"""Programs that benchmarks compare: ours, by a recipe, and models of others, lowered as ExecuTorch's tutorials do."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edge.compare.candidates import lower_unchecked, processor_of, program_contender
from edge.compare.engines import Contender
from edge.compare.macs import count_macs
from edge.device.labelled import LabelledImage
from edge.device.parity import Parity, compare
from edge.export.checkpoint import input_contract, model_outputs
from edge.export.images import method_inputs
from edge.lower.recipes import Recipe
from swin_hf import SwinHfForImageClassification

NUM_CROPS = 16  # of scikit-learn's photographs


@dataclass(frozen=True)
class Made:
    """A program of ours: its contender, its size, the size of its weights and its delegates."""

    contender: Contender
    size_bytes: int
    weight_bytes: int
    num_delegates: int


def make_program(
    model: SwinHfForImageClassification, recipe: Recipe, file: Path, calibration: list[LabelledImage] | None = None
) -> Made:
    """Lower a model by a recipe, with scales found on some images, by default crops of photographs; nothing is checked."""
    contract = input_contract(model.config, processor_of(model.config))
    arrays = method_inputs(calibration or photograph_crops(), contract, contract.one_image)
    lowered = lower_unchecked(model, recipe, [torch.from_numpy(array) for array in arrays])
    file.write_bytes(lowered.program)
    return Made(
        contender=program_contender(recipe.name, file, contract.shape()),
        size_bytes=len(lowered.program),
        weight_bytes=weight_bytes(model, recipe),
        num_delegates=lowered.num_delegates,
    )


def closeness(model: SwinHfForImageClassification, made: Made) -> Parity:
    """How closely a program follows its model on crops of photographs."""
    processor = processor_of(model.config)
    contract = input_contract(model.config, processor)
    inputs = method_inputs(photograph_crops(), contract, contract.one_image)
    reference = model_outputs(model, processor, inputs, [f"crop {number}" for number in range(len(inputs))])
    method = Runtime.get().load_program(made.contender.file).load_method("forward")
    outputs = [method.execute([torch.from_numpy(x)])[0].numpy().copy() for x in inputs]
    return compare(np.concatenate(outputs), reference)


def weight_bytes(model: nn.Module, recipe: Recipe) -> int:
    """Bytes of the parameters: for int8, matrices and kernels in int8 with a scale per row; all else in the recipe's floats.

    Batch normalisation is part of the convolution before it, to which it gives a bias.
    """
    size = 2 if recipe.float_dtype == "float16" else 4
    total = 0
    for name, parameter in model.named_parameters():
        is_patches = "patch_embeddings.projection" in name  # in float
        dims = (2, 4) if recipe.is_calibrated else (2,)  # kernels are quantized with scales from calibration alone
        is_matrix = parameter.ndim in dims and not is_patches and "table" not in name and "position_bias_mlp" not in name
        if recipe.is_quantized and is_matrix:
            total += parameter.numel() + size * parameter.shape[0]
        elif re.search(r"\.(expand|depthwise|project|convs\.\d+)\.norm\.weight$", name):
            continue
        else:
            total += size * parameter.numel()
    return total


def lower_ordinarily(model: nn.Module, inputs: Sequence[torch.Tensor], file: Path) -> int:
    """Lower a model of others to int8 as ExecuTorch's tutorials do; returns the bytes of the program.

    XNNPACK's quantizer takes the whole model, with scales found on `inputs`.
    """
    exported = torch.export.export(model, (inputs[0],), strict=True)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(exported.module(), quantizer)
    with torch.no_grad():
        for pixel_values in inputs:
            prepared(pixel_values)
    quantized = torch.export.export(convert_pt2e(prepared), (inputs[0],), strict=True)
    program = to_edge_transform_and_lower(quantized, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    file.write_bytes(program)
    return len(program)


def size_of(model: nn.Module, side: int) -> dict[str, int]:
    """Parameters and multiply-accumulates of a model."""
    macs = count_macs(model, torch.zeros(1, 3, side, side))
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), "macs": macs}


def photograph_crops() -> list[LabelledImage]:
    """Crops of scikit-learn's two photographs."""
    rng, crops, photographs = np.random.default_rng(0), [], load_sample_images().images
    for number in range(NUM_CROPS):
        photograph = photographs[number % 2]
        side = int(rng.integers(200, 400))
        top, left = (int(rng.integers(0, length - side + 1)) for length in photograph.shape[:2])
        crops.append(LabelledImage(Image.fromarray(photograph[top : top + side, left : left + side]), None))
    return crops
