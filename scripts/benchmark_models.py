"""The models compared with stock transformers and timm: time and memory of a forward pass, and of forward and backward."""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from benchmark_outputs import measured_here
from torch import nn
from transformers import PreTrainedModel, SwinForImageClassification, Swinv2ForImageClassification

from edge.device.environment import memory_of_this_process
from swin_hf import SwinHfConfig, SwinHfForImageClassification
from swin_hf.output_folders import write_json
from swin_hf.presets_swin_hf import PRESETS
from swin_hf.weight_export import stock_swin_config

BENCHMARK = Path(__file__).with_name("benchmark.py")
SIDES = ("ours", "stock", "timm")
TIMM_NAMES = {"swin_tiny": "swin_tiny_patch4_window7_224", "swinv2_tiny": "swinv2_tiny_window8_256"}
PRODUCTS = re.compile("addmm|::mm|bmm|mkldnn|convolution|gemm|_mm_")  # names of operations in the profiler
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case to measure: a pass of a model over a batch.

    mode: "eager" or "compiled". work: "forward" or "training", which is a forward and a backward pass.
    """

    model: str
    batch_size: int
    dtype: str
    mode: str
    work: str

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch_size}, {self.dtype}, {self.mode}, {self.work}"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The result of one contender in a case: median milliseconds of a pass, and megabytes in addition to the loaded model.

    product_share: the part of a pass, from 0 to 1, that a CPU spends in matrix products and convolutions, which PyTorch's
    libraries compute for every contender alike; None on other devices.
    """

    side: str
    attention: str
    milliseconds: float
    peak_megabytes: float
    product_share: float | None
    repeats: int


def benchmark_models(arguments: argparse.Namespace) -> None:
    cases = [
        Case(model=model, batch_size=batch_size, dtype=dtype, mode=mode, work=work)
        for model in arguments.models
        for mode in arguments.modes
        for dtype in arguments.dtypes
        for batch_size in arguments.batch_sizes
        for work in arguments.works
    ]
    device = torch.device(arguments.device)
    packages = ("torch", "transformers", *(["timm"] if _timm() else []))
    report = measured_here(*packages, device=device) | {
        "threads": arguments.threads,
        "cases": [],
    }
    print(HEADER)
    for case in cases:
        measurements = measure_case(case, device, arguments.threads, arguments.seconds)
        report["cases"].append(asdict(case) | {"measurements": [asdict(measurement) for measurement in measurements]})
        write_json(arguments.output_file, report)  # after each case, in case a run is interrupted
        print(table_row(case, measurements), flush=True)
    print(
        f"\n{report['machine']}, {report['threads']} threads, {report['versions']}, {report['date']}\n"
        f"-> {arguments.output_file}"
    )


def measure_case(case: Case, device: torch.device, threads: int, seconds: float) -> list[Measurement]:
    """Time all contenders in turn, each in its own process, so that memory left by one does not affect another."""
    contenders = [(side, attention) for side in SIDES for attention in attentions_of(side, case)]
    workers = {}
    for contender in contenders:
        command = [sys.executable, str(BENCHMARK), "worker", json.dumps(asdict(case)), *contender, str(device), str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        workers[contender] = subprocess.Popen(command, text=True, **pipes)

    def answer(worker: subprocess.Popen, quantity: str) -> float:
        worker.stdin.write(quantity + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender crashed in {case}; run its command alone to see why: {worker.args}")
        return float(line)

    peaks = {contender: answer(worker, "peak_megabytes") for contender, worker in workers.items()}
    for worker in workers.values():
        answer(worker, "milliseconds")  # a second pass to warm up
    times: dict[tuple, list[float]] = {contender: [] for contender in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[contenders[0]]) < 5:
        for contender, worker in workers.items():
            times[contender].append(answer(worker, "milliseconds"))
    on_cpu = device.type == "cpu"
    shares = {contender: answer(worker, "product_share") if on_cpu else None for contender, worker in workers.items()}
    for worker in workers.values():
        worker.communicate("")
    return [
        Measurement(
            side=side,
            attention=attention,
            milliseconds=round(median(times[side, attention]), 3),
            peak_megabytes=round(peaks[side, attention], 1),
            product_share=shares[side, attention],
            repeats=len(times[side, attention]),
        )
        for side, attention in contenders
    ]


def work(arguments: argparse.Namespace) -> None:
    """Run a pass for every line read, which names a quantity, and print that quantity; memory must be the first one."""
    case, device = Case(**arguments.case), arguments.device
    torch.set_num_threads(arguments.threads)
    run = make_pass(build(arguments.side, case.model, arguments.attention).to(device), case, device)
    quantities = {"peak_megabytes": peak_megabytes, "milliseconds": milliseconds, "product_share": product_share}
    for line in sys.stdin:
        print(quantities[line.strip()](run, device), flush=True)


def attentions_of(side: str, case: Case) -> list[str]:
    """Attention backends of a contender, of which the faster one counts; stock V2 and timm have only one."""
    if side == "timm":
        return ["timm"] if _timm() else []
    if side == "ours" or (side == "stock" and PRESETS[case.model]().version == 1):
        return ["sdpa", "eager"]
    return ["eager"]


def build(side: str, name: str, attention: str) -> nn.Module:
    """The model of one contender with 1,000 classes and no stochastic depth."""
    torch.manual_seed(0)
    config = PRESETS[name](num_labels=1000, drop_path_rate=0.0)
    if side == "timm":
        return _timm().create_model(TIMM_NAMES[name], num_classes=1000)
    model = SwinHfForImageClassification(config) if side == "ours" else stock_model(config)
    model.set_attn_implementation(attention)
    return model


def stock_model(config: SwinHfConfig) -> PreTrainedModel:
    """The stock model of the same architecture."""
    stock_class = SwinForImageClassification if config.version == 1 else Swinv2ForImageClassification
    return stock_class(stock_swin_config(config))


def make_pass(model: nn.Module, case: Case, device: torch.device) -> Callable[[], None]:
    """A function that runs one pass of the case, and on a GPU waits for its end."""
    size = PRESETS[case.model]().image_size
    pixel_values = torch.randn(case.batch_size, 3, size, size, device=device)
    labels = torch.randint(0, 1000, (case.batch_size,), device=device)
    model.train(case.work == "training")
    called = torch.compile(model) if case.mode == "compiled" else model

    def run() -> None:
        lowered = torch.autocast(device.type, dtype=torch.bfloat16, enabled=case.dtype == "bf16")
        if case.work == "forward":
            with torch.no_grad(), lowered:
                called(pixel_values)
        else:
            model.zero_grad()
            with lowered:
                output = called(pixel_values)
                loss = nn.functional.cross_entropy(getattr(output, "logits", output).float(), labels)
            loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def milliseconds(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def product_share(run: Callable[[], None], device: torch.device) -> float:
    """The part of a pass on a CPU that matrix products and convolutions take."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    products = sum(time for name, time in times.items() if PRODUCTS.search(name))
    return round(products / sum(times.values()), 3)


def peak_megabytes(run: Callable[[], None], device: torch.device) -> float:
    """Peak memory of a pass, in addition to the model itself; for a compiled model, including the compiler's peak."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = memory_of_this_process("VmRSS")
    run()
    return (memory_of_this_process("VmHWM") - before) / 1e6


HEADER = "| case | ours, ms | stock, ms | timm, ms | stock / ours | at most | timm / ours | ours, MB | stock, MB |"
HEADER += "\n" + "|---" * 9 + "|"


def table_row(case: Case, measurements: list[Measurement]) -> str:
    """A case as a row of Markdown, each side with its faster attention backend.

    "at most": stock / ours if everything but the matrix products of stock took no time.
    """
    best = {}
    for measurement in sorted(measurements, key=lambda entry: -entry.milliseconds):
        best[measurement.side] = measurement

    def ratio(side: str) -> str:
        return f"{best[side].milliseconds / best['ours'].milliseconds:.2f}" if side in best else "-"

    cells = [str(case), *(f"{best[side].milliseconds:.1f}" if side in best else "-" for side in SIDES)]
    share = best["stock"].product_share
    cells += [ratio("stock"), f"{1 / share:.2f}" if share else "-", ratio("timm")]
    cells += [*(f"{best[side].peak_megabytes:.0f}" for side in ("ours", "stock"))]
    return "| " + " | ".join(cells) + " |"


def _timm():
    """The module timm, or None if it cannot be imported; it needs torchvision."""
    try:
        import timm
    except (ImportError, RuntimeError):
        return None
    return timm
