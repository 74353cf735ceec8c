"""Programs for the device compared with other engines; students compared with each other and with other projects' models."""

import argparse
import json
import re
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from executorch.runtime import Runtime
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from distill.data.finding import find_images
from distill.data.sources import FoundImages, ImageSource
from distill.data.targets import CLASSES
from edge.compare.engines import Contender
from edge.compare.macs import count_macs
from edge.compare.peers import prepare_limits, prepare_peers, rows_of, with_limits
from edge.deploy.form import deploy
from edge.device.environment import describe_machine, installed_versions
from edge.device.image import to_pixel_values
from edge.device.labelled import LabelledImage, evenly
from edge.device.parity import Parity, compare
from edge.device.runner import Runner
from edge.export.checkpoint import input_contract, input_view, load_checkpoint, model_outputs
from edge.export.export import ExportSettings, export
from edge.export.images import MAX_IMAGES, method_inputs
from edge.lower.lowering import lower, trace
from edge.lower.quantize import in_precision
from edge.lower.recipes import RECIPES, Recipe
from swin_hf import SwinHfConfig, SwinHfForImageClassification, SwinHfImageProcessorPil
from swin_hf.output_folders import write_json
from swin_hf.presets_swin_hf import PRESETS

NUM_CROPS = 16  # of scikit-learn's photographs
RUNS_OF_OURS = ("fp32", "fp16", "int8", "int8-static", "int8-dynamic")
STUDENTS = ("swin_edge_small", "swin_edge_medium", "swin_edge_large")
VARIANTS = {  # of swin_edge_medium, to measure the cost of its parts
    "relu": {"hidden_act": "relu"},
    "hardswish": {"hidden_act": "hardswish"},
    "RMSNorm": {"norm": "rms"},
    "BatchNorm": {"norm": "batch"},
    "BatchNorm, relu": {"norm": "batch", "hidden_act": "relu"},
    "a block more in stage 1": {"depths": [2, 1, 5, 1]},
    "a block more in stage 2": {"depths": [1, 2, 5, 1]},
    "a block more in stage 3": {"depths": [1, 1, 6, 1]},
    "a block more in stage 4": {"depths": [1, 1, 5, 2]},
}
PUBLISHED = {"swin_tiny": 81.3}  # top-1 of ImageNet-1k in percent by Liu et al. 2021, table 1; ours has the same layers
RIVALS = {  # timm's name: side of the image, and top-1 of ImageNet-1k in percent as published
    "mobilenetv4_conv_medium": (256, 79.9),  # Qin et al. 2024, arXiv:2404.10518, table 5
    "repvit_m1_1": (224, 81.2),  # Wang et al. 2024, arXiv:2307.09283: distilled for 450 epochs
    "tiny_vit_5m_224": (224, 80.7),  # Wu et al. 2022, arXiv:2207.10666: distilled on ImageNet-22k
    "efficientformerv2_s2": (224, 82.0),  # Li et al. 2023, arXiv:2212.08059: distilled for 450 epochs
}


@dataclass(frozen=True)
class Made:
    """A program of ours: its contender, its size, the size of its weights and its delegates."""

    contender: Contender
    size_bytes: int
    weight_bytes: int
    num_delegates: int


def benchmark_edge(arguments: argparse.Namespace) -> None:
    """Measure the chosen parts and add them to the report in `arguments.output_file`, which keeps its other parts."""
    measured = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "versions": installed_versions("torch", "executorch", "transformers", "torchao", "onnxruntime", "openvino", "timm"),
        "threads": arguments.threads,
    }
    report = json.loads(arguments.output_file.read_text()) if arguments.output_file.is_file() else {}
    for part in arguments.parts:
        with tempfile.TemporaryDirectory() as work_dir:
            report[part] = measured | EDGE_PARTS[part](arguments, Path(work_dir))
        write_json(arguments.output_file, report)
    print(f"-> {arguments.output_file}")


def measure_peers(arguments: argparse.Namespace, work_dir: Path) -> dict:
    """Measure a preset with random weights in our recipes and in every installed engine."""
    model = random_classifier(PRESETS[arguments.model](num_labels=1000))
    processor = _processor(model.config)
    model.save_pretrained(work_dir / "checkpoint")
    processor.save_pretrained(work_dir / "checkpoint")
    made = {recipe: make_program(model, RECIPES[recipe], work_dir / f"{recipe}.pte") for recipe in RUNS_OF_OURS}
    height, width = model.config.image_height_width
    peers, left_out = prepare_peers(model, processor, work_dir / "checkpoint", work_dir, (height, width))
    limits = prepare_limits(["fp32", "int8"], work_dir)
    contenders = [replace(one.contender, name=f"ours, {recipe}") for recipe, one in made.items()]
    macs = count_macs(model, torch.zeros(1, 3, height, width))
    rows = with_limits(rows_of([*contenders, *peers, *limits], left_out, arguments.repeats, arguments.threads), limits, macs)
    close = {recipe: closeness(model, one) for recipe, one in made.items()}
    stock = {row["name"]: row.get("p50_ms") for row in rows}.get("transformers ExecutorchExporter, fp32")
    print(f"\n{arguments.model}: {macs / 1e9:.2f} G multiply-accumulates, {arguments.threads} threads\n")
    print("| program | p50, ms | p90, ms | alone, ms | of stock's exporter |\n|---|---|---|---|---|")
    for row in rows:
        if "p50_ms" not in row:
            print(f"| {row['name']} | left out: {row['skipped']} | | | |")
        else:
            ratio = f"{row['p50_ms'] / stock:.2f}" if stock else "-"
            print(f"| {row['name']} | {row['p50_ms']:.1f} | {row['p90_ms']:.1f} | {row['alone_ms']:.1f} | {ratio} |")
    for recipe, one in made.items():
        print(
            f"{recipe}: {one.size_bytes / 1e6:.2f} MB, {one.size_bytes / one.weight_bytes:.3f} of its weights, "
            f"{one.num_delegates} delegate(s), {close[recipe].sqnr_db:.1f} dB on {NUM_CROPS} crops of photographs"
        )
    facts = {
        recipe: {key: value for key, value in vars(one).items() if key != "contender"} | {"parity": asdict(close[recipe])}
        for recipe, one in made.items()
    }
    return {"model": arguments.model, "macs": macs, "rows": rows, "ours": facts}


def measure_students(arguments: argparse.Namespace, work_dir: Path) -> dict:
    """Measure the students for phones, and the cost of each part of the medium one, in fp32 and int8."""
    configs = {name: PRESETS[name](num_labels=1000) for name in STUDENTS}
    configs |= {f"swin_edge_medium, {name}": PRESETS["swin_edge_medium"](num_labels=1000, **changes)
                for name, changes in VARIANTS.items()}  # fmt: skip
    contenders, sizes = [], {}
    for number, (name, config) in enumerate(configs.items()):
        model = random_classifier(config)
        for recipe in ("fp32", "int8"):
            made = make_program(model, RECIPES[recipe], work_dir / f"{number}-{recipe}.pte")
            contenders.append(replace(made.contender, name=f"{name}, {recipe}"))
            sizes[contenders[-1].name] = made.size_bytes
    middle = next(one for one in contenders if one.name == "swin_edge_medium, int8")
    contenders.sort(key=lambda contender: contender is not middle)
    rows = rows_of(contenders, {}, arguments.repeats, arguments.threads)
    print("\n| student | p50, ms | of swin_edge_medium in int8 | .pte, MB |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['name']} | {row['p50_ms']:.2f} | {row['ratio']:.2f} | {sizes[row['name']] / 1e6:.2f} |")
    return {"rows": rows, "size_bytes": sizes}


def measure_frontier(arguments: argparse.Namespace, work_dir: Path) -> dict:
    """Measure our presets and alternatives from timm, which are lowered as ExecuTorch's tutorials do."""
    contenders, left_out, sizes = [], {}, {}
    for name in ("swin_tiny", *STUDENTS):
        model = random_classifier(PRESETS[name](num_labels=1000))
        for recipe in ("fp32", "int8"):
            made = make_program(model, RECIPES[recipe], work_dir / f"{name}-{recipe}.pte")
            contenders.append(replace(made.contender, name=f"{name}, {recipe}"))
            sizes[contenders[-1].name] = made.size_bytes
    for name, (side, _) in RIVALS.items():
        for precision in ("fp32", "int8"):
            file = work_dir / f"{name}-{precision}.pte"
            try:
                sizes[f"{name}, {precision}"] = lower_rival(name, precision, side, file)
            except Exception as error:  # other projects raise anything; the error is the reason why it is left out
                left_out[f"{name}, {precision}"] = f"{type(error).__name__}: {error}"[:200]
                continue
            contenders.append(_program(f"{name}, {precision}", file, (1, 3, side, side)))
    published_top1 = PUBLISHED | {name: accuracy for name, (_, accuracy) in RIVALS.items()}
    rows = rows_of(contenders, left_out, arguments.repeats, arguments.threads)
    print("\n| model | p50, ms | .pte, MB | published top-1, % |\n|---|---|---|---|")
    for row in rows:
        published = published_top1.get(row["name"].split(",")[0], "-")
        if "p50_ms" in row:
            print(f"| {row['name']} | {row['p50_ms']:.1f} | {sizes[row['name']] / 1e6:.1f} | {published} |")
        else:
            print(f"| {row['name']} | left out: {row['skipped']} | | {published} |")
    return {"rows": rows, "size_bytes": sizes, "published_top1": published_top1}


def measure_accuracy(arguments: argparse.Namespace, work_dir: Path) -> dict:
    """Measure fine-tuned classifiers and their programs on the test images that scripts/finetune.py held out."""
    results = {}
    print("\n| checkpoint, recipe | model | program | difference in points | same class | n |\n|---|---|---|---|---|---|")
    for checkpoint in arguments.checkpoints:
        record = json.loads((checkpoint / "data.json").read_text())
        found = find_images(record["dataset"], CLASSES)
        train, test = (split_examples(found, record, split) for split in ("train", "test"))
        labels = np.array([label for _, label in test])
        model, processor = load_checkpoint(checkpoint)
        contract = input_contract(model.config, processor)
        inputs = method_inputs([LabelledImage(image.load(), None) for image, _ in test], contract, contract.one_image)
        names = [image.name for image, _ in test]
        expected = model_outputs(model, processor, inputs, names).argmax(axis=1)  # before the runtime starts its threads
        for recipe in arguments.recipes:
            out = work_dir / f"{checkpoint.name}-{recipe}"
            export(
                checkpoint, out, ExportSettings(recipe=recipe, dataset=[image.load() for image, _ in train], self_test=False)
            )
            runner = Runner(out)
            top = np.array([runner.logits(pixels).argmax() for pixels in inputs])
            figures = paired_difference(expected == labels, top == labels) | {"agreement": float((top == expected).mean())}
            results[f"{checkpoint.name}, {recipe}"] = figures
            print(
                f"| {checkpoint.name}, {recipe} | {figures['model']:.2%} | {figures['program']:.2%} | "
                f"{100 * figures['difference']:+.2f} [{100 * figures['low']:+.2f}, {100 * figures['high']:+.2f}] | "
                f"{figures['agreement']:.2%} | {len(labels)} |",
                flush=True,
            )
    return {"rows": results}


def split_examples(found: FoundImages, record: dict, split: str) -> list[tuple[ImageSource, int]]:
    """The images of a split that a fine-tuning recorded, with their class numbers; at most 128 training images."""
    source = split if split in found.images else found.whole
    numbers = record["split"][split]
    if split == "train":
        numbers = evenly(numbers, MAX_IMAGES)
    return [(found.images[source][number], found.labels[source][number]) for number in numbers]


def paired_difference(model_is_right: np.ndarray, program_is_right: np.ndarray) -> dict[str, float | int]:
    """Accuracies and their difference with its 95 % interval, for answers to the same images.

    The interval is that of Agresti and Min (2005, Statistics in Medicine 24:729), which adds half an image to each cell of the
    table, so that it has a width even if all answers are the same.
    """
    n = len(model_is_right)
    lost, won = int((model_is_right & ~program_is_right).sum()), int((~model_is_right & program_is_right).sum())
    centre = (won - lost) / (n + 2)
    spread = 1.96 * np.sqrt(won + lost + 1 - (won - lost) ** 2 / (n + 2)) / (n + 2)
    return {
        "num_images": n,
        "lost": lost,
        "won": won,
        "model": float(model_is_right.mean()),
        "program": float(program_is_right.mean()),
        "difference": (won - lost) / n,
        "low": float(centre - spread),
        "high": float(centre + spread),
    }


def random_classifier(config: SwinHfConfig) -> SwinHfForImageClassification:
    """A model with random weights and no tensor of zeros, since equal tensors would be stored only once."""
    torch.manual_seed(0)
    model = SwinHfForImageClassification(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_position_bias_table" in name:
                parameter.normal_()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                part.running_mean.uniform_(-0.1, 0.1)
                part.running_var.uniform_(0.5, 1.5)
    return model


def make_program(model: SwinHfForImageClassification, recipe: Recipe, file: Path) -> Made:
    """Lower a model by a recipe; its accuracy is not checked, since its weights are random."""
    processor = _processor(model.config)
    contract = input_contract(model.config, processor)
    images = [torch.from_numpy(array) for array in method_inputs(photograph_crops(), contract, contract.one_image)]
    deployed = deploy(model, input_view(processor, contract, **contract.one_image), compact=recipe.is_quantized)
    lowered = lower(trace({"forward": (in_precision(deployed, recipe, images), images[0])}), recipe, {})
    file.write_bytes(lowered.program)
    return Made(
        contender=_program(recipe.name, file, contract.shape()),
        size_bytes=len(lowered.program),
        weight_bytes=weight_bytes(model, recipe),
        num_delegates=lowered.num_delegates,
    )


def closeness(model: SwinHfForImageClassification, made: Made) -> Parity:
    """How closely a program follows its model on crops of photographs."""
    processor = _processor(model.config)
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


def lower_rival(name: str, precision: str, side: int, file: Path) -> int:
    """Lower a model of timm as ExecuTorch's tutorials do, in int8 with XNNPACK's quantizer for the whole model."""
    import timm
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    from executorch.exir import to_edge_transform_and_lower
    from timm.utils.model import reparameterize_model
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # not 0, since equal tensors would be stored only once
    model = reparameterize_model(model)
    pixels = [to_pixel_values(one.image, side, side, Image.Resampling.BICUBIC) for one in photograph_crops()]
    crops = [2 * torch.from_numpy(values) - 1 for values in pixels]  # roughly normalised
    exported = torch.export.export(model, (crops[0],), strict=True)
    if precision == "int8":
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        prepared = prepare_pt2e(exported.module(), quantizer)
        for crop in crops:
            prepared(crop)
        exported = torch.export.export(convert_pt2e(prepared), (crops[0],), strict=True)
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    file.write_bytes(program)
    return len(program)


def photograph_crops() -> list[LabelledImage]:
    """Crops of scikit-learn's two photographs."""
    rng, crops, photographs = np.random.default_rng(0), [], load_sample_images().images
    for number in range(NUM_CROPS):
        photograph = photographs[number % 2]
        side = int(rng.integers(200, 400))
        top, left = (int(rng.integers(0, length - side + 1)) for length in photograph.shape[:2])
        crops.append(LabelledImage(Image.fromarray(photograph[top : top + side, left : left + side]), None))
    return crops


def _program(name: str, file: Path, shape: tuple[int, ...]) -> Contender:
    return Contender(name=name, engine="executorch", file=str(file), shape=shape)


def _processor(config: SwinHfConfig) -> SwinHfImageProcessorPil:
    height, width = config.image_height_width
    return SwinHfImageProcessorPil(size={"height": height, "width": width})


EDGE_PARTS = {
    "peers": measure_peers,
    "students": measure_students,
    "frontier": measure_frontier,
    "accuracy": measure_accuracy,
}
