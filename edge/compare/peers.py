"""The same model in other engines, each with the settings that its documentation advises, timed in turns with ours."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from edge.compare.engines import Contender, take_turns
from edge.compare.macs import count_macs
from edge.deploy.form import deploy
from edge.deploy.view import InputView
from edge.device.artefact import PROGRAM_FILE, read_manifest, recorded_checkpoint
from edge.device.bench import summarise
from edge.device.errors import ExplainedError
from edge.export.checkpoint import load_source
from edge.lower.lowering import lower, trace
from edge.lower.quantize import in_precision
from edge.lower.recipes import RECIPES, Rule, find_recipe
from swin_hf import SwinHfForImageClassification, SwinHfImageProcessorPil
from swin_hf.weight_export import to_transformers
from swin_hf.weight_files import ConversionError

ROUNDS = 10
SQUARE, PRODUCTS = 1024, 4  # side and number of the matrix products that measure the machine's limit
LIMIT = "its products alone,"


class PeerError(ExplainedError):
    """An artefact cannot be compared with other engines; the message says why."""


def checkpoint_to_compare(folder: Path, checkpoint_dir: Path | None = None) -> Path:
    """The checkpoint to compare an artefact with: the given one, or the one that the artefact names.

    Raises:
        ArtefactError: the artefact is missing, or its manifest is damaged.
        PeerError: the artefact is a backbone, or the checkpoint is not there.
        CheckpointError: the checkpoint holds another model than the artefact's.
    """
    manifest = read_manifest(folder)
    if not manifest.is_classifier:
        raise PeerError(f"the artefact must be a classifier to be compared with other engines, got one of {manifest.task}")
    checkpoint_dir = Path(checkpoint_dir) if checkpoint_dir else recorded_checkpoint(folder, manifest)
    if checkpoint_dir is None or not checkpoint_dir.is_dir():
        elsewhere = f"none, and {manifest.source.checkpoint} is not beside the artefact"
        got = f"{checkpoint_dir}, which is not there" if checkpoint_dir else elsewhere
        raise PeerError(f"checkpoint_dir must be the checkpoint to compare with, got {got}")
    load_source(checkpoint_dir, manifest)
    return checkpoint_dir


def compare_with_peers(folder: Path, checkpoint_dir: Path, repeats: int, threads: int) -> list[dict]:
    """Latency of an artefact and of other engines with a model of the same shape, the fastest first, as JSON values.

    Some rows are limits of the machine: the time that the model's matrix products alone would take.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    contract, recipe = manifest.input, find_recipe(manifest.recipe)
    ours = Contender(
        name=f"ours, {manifest.recipe}",
        engine="executorch",
        file=str(folder / PROGRAM_FILE),
        shape=contract.shape(),
        input_dtype=contract.dtype,
    )
    model, processor = load_source(checkpoint_dir, manifest)
    with tempfile.TemporaryDirectory() as work_dir:
        size = (contract.height, contract.width)
        peers, left_out = prepare_peers(model, processor, checkpoint_dir, Path(work_dir), size)
        limits = prepare_limits(["fp32", *(["int8"] if recipe.is_quantized else [])], Path(work_dir))
        rows = rows_of([ours, *peers, *limits], left_out, repeats, threads)
    return with_limits(rows, limits, count_macs(model, torch.zeros(1, contract.channels, *size)))


def prepare_limits(precisions: list[str], work_dir: Path) -> list[Contender]:
    """Programs of nothing but products of square matrices, which show the limit of the machine in each engine."""
    options, squares = {"products": str(PRODUCTS)}, (SQUARE, SQUARE)
    limits = [Contender(name=f"{LIMIT} PyTorch, fp32", engine="matmul", file="", shape=squares, options=options)]
    layers = nn.Sequential(*(nn.Linear(*squares, bias=False) for _ in range(PRODUCTS))).eval().requires_grad_(False)
    example = torch.rand(squares)
    for precision in precisions:
        file, recipe = work_dir / f"squares-{precision}.pte", RECIPES["fp32"]
        if precision == "int8":
            recipe = replace(RECIPES["int8-static"], rules=(Rule("*", "int8-static"),))
        form = in_precision(layers, recipe, [example])
        file.write_bytes(lower(trace({"forward": (form, example)}), recipe, {}).program)
        limits.append(Contender(name=f"{LIMIT} ExecuTorch, {precision}", engine="executorch", file=str(file), shape=squares))
    return limits


def with_limits(rows: list[dict], limits: list[Contender], macs: int) -> list[dict]:
    """Rows with the times of `limits` scaled to a model of `macs` multiply-accumulate operations."""
    names = {limit.name for limit in limits}
    share = macs / (PRODUCTS * SQUARE**3)
    times = ("p50_ms", "p90_ms", "p99_ms", "alone_ms", "ratio")
    scaled = [
        row | {name: row[name] * share for name in times if name in row} if row["name"] in names else row for row in rows
    ]
    return sorted(scaled, key=lambda row: row.get("p50_ms", float("inf")))


def rows_of(contenders: list[Contender], left_out: dict[str, str], repeats: int, threads: int) -> list[dict]:
    """Measured rows, the fastest first, then the contenders that could not be measured, with the reason.

    ratio: of the latency to that of the first contender; missing if that could not be measured.
    """
    measured = take_turns(contenders, ROUNDS, max(repeats // ROUNDS, 1), threads)
    left_out = left_out | {name: times["error"][0] for name, times in measured.items() if "error" in times}
    rows = {
        name: asdict(summarise(times["turns"], threads)) | {"alone_ms": float(np.median(times["alone"]))}
        for name, times in measured.items()
        if "turns" in times
    }
    ours = rows.get(contenders[0].name)
    found = [
        {"name": name, **row, **({"ratio": row["p50_ms"] / ours["p50_ms"]} if ours else {})} for name, row in rows.items()
    ]
    found.sort(key=lambda row: row["p50_ms"])
    return found + [{"name": name, "skipped": reason} for name, reason in left_out.items()]


def prepare_peers(
    model: SwinHfForImageClassification,
    processor: SwinHfImageProcessorPil,
    checkpoint_dir: Path,
    work_dir: Path,
    size: tuple[int, int],
) -> tuple[list[Contender], dict[str, str]]:
    """Programs of other engines for the classifier in `checkpoint_dir`, and the reasons why some are left out."""
    height, width = size
    view = InputView(height=height, width=width, image_mean=tuple(processor.image_mean), image_std=tuple(processor.image_std))
    shape = (1, model.config.num_channels, height, width)
    example = torch.rand(shape)
    contenders, left_out = [], {}

    def add(name: str, engine: str, make: Callable[[], Path], **options: str) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                file = make()
        except Exception as error:  # other projects raise anything; whatever it is, it is the reason
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            return
        contenders.append(Contender(name=name, engine=engine, file=str(file), shape=shape, options=options or None))

    stock: PreTrainedModel | None = None
    try:
        stock = to_transformers(model)
    except ConversionError as error:
        left_out["stock transformers"] = str(error)
    if stock is not None:
        stock.save_pretrained(work_dir / "stock")
        add("transformers ExecutorchExporter, fp32", "executorch", lambda: _executorch(stock, example, work_dir))
        add("ONNX Runtime, fp32", "onnxruntime", lambda: _onnx(stock, example, work_dir / "stock.onnx"))
        add("ONNX Runtime, int8 dynamic", "onnxruntime", lambda: _onnx_int8(work_dir / "stock.onnx"))
        add(
            "OpenVINO, fp32",
            "openvino",
            lambda: _openvino(stock, example, work_dir / "stock.xml"),
            INFERENCE_PRECISION_HINT="f32",
        )
        add("OpenVINO, bf16", "openvino", lambda: work_dir / "stock.xml", INFERENCE_PRECISION_HINT="bf16")
        add("PyTorch, stock model", "pytorch", lambda: work_dir / "stock")
        add("PyTorch compiled, stock model", "pytorch", lambda: work_dir / "stock", compile="yes")
    deployed = deploy(model, view)
    add("ONNX Runtime, fp32, our deploy form", "onnxruntime", lambda: _onnx(deployed, example, work_dir / "ours.onnx"))
    add("ONNX Runtime, int8 dynamic, our deploy form", "onnxruntime", lambda: _onnx_int8(work_dir / "ours.onnx"))
    add("ONNX Runtime, int8 static, our deploy form", "onnxruntime", lambda: _onnx_int8(work_dir / "ours.onnx", example))
    add("PyTorch, our model", "pytorch", lambda: checkpoint_dir)
    return contenders, left_out


def _executorch(model: PreTrainedModel, example: torch.Tensor, work_dir: Path) -> Path:
    from transformers.exporters.exporter_executorch import ExecutorchConfig, ExecutorchExporter

    exported = ExecutorchExporter().export(model, {"pixel_values": example}, config=ExecutorchConfig(backend="xnnpack"))
    exported.save_pretrained(work_dir / "executorch")
    return work_dir / "executorch" / "model.pte"


def _onnx(model: torch.nn.Module, example: torch.Tensor, file: Path) -> Path:
    """Exported by transformers, which knows the fusions of ONNX Runtime; models of other classes are exported by PyTorch."""
    if isinstance(model, PreTrainedModel):
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

        exported = OnnxExporter().export(model, {"pixel_values": example}, config=OnnxConfig())
        exported.save_pretrained(file.parent / "onnx")
        (file.parent / "onnx" / "model.onnx").rename(file)
        for data in (file.parent / "onnx").glob("model.onnx.*"):
            data.rename(file.parent / data.name)
        return file
    torch.onnx.export(model, (example,), str(file), dynamo=True, verbose=False, external_data=False)
    return file


def _onnx_int8(file: Path, example: torch.Tensor | None = None) -> Path:
    """int8 weights per channel; activations dynamic, as ONNX Runtime advises for transformers, or static with an example."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    class Images(CalibrationDataReader):
        """One image: the latency does not depend on the scales."""

        def __init__(self, name: str):
            self.feeds = iter([{name: example.numpy()}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    model = onnx.load(str(file))
    del model.graph.value_info[:]  # shapes from before the optimisation, on which shape inference fails
    bare, quantized = file.with_suffix(".bare.onnx"), file.with_suffix(".static.onnx" if example is not None else ".int8.onnx")
    onnx.save(model, str(bare))
    if example is None:
        quantize_dynamic(str(bare), str(quantized), per_channel=True, weight_type=QuantType.QInt8)
    else:
        kinds = ["MatMul", "Gemm", "Conv"]
        reader = Images(model.graph.input[0].name)
        quantize_static(str(bare), str(quantized), reader, per_channel=True, op_types_to_quantize=kinds)
    return quantized


def _openvino(model: PreTrainedModel, example: torch.Tensor, file: Path) -> Path:
    import openvino

    converted = openvino.convert_model(torch.export.export(model, (), {"pixel_values": example}))
    openvino.save_model(converted, str(file), compress_to_fp16=False)
    return file
