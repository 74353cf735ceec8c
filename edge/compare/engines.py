"""Inference engines behind one function, each in a process of its own, timed in turns.

Engines keep threads spinning for their next run, which slows down other processes. So only one process runs at a time, and the
others are stopped (SIGSTOP).
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edge.device.environment import environment_of_child
from edge.device.image import random_pixel_values
from edge.device.json_text import json_text

SETTLE_RUNS = 3  # untimed runs at the start of a turn, which warm up caches and clocks


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A program and the engine that runs it.

    engine: a key of `ENGINES`. file: the program that the engine opens. input_dtype, shape: of its input.
    """

    name: str
    engine: str
    file: str
    shape: tuple[int, ...]
    input_dtype: str = "float32"
    options: dict[str, str] | None = None


class EngineError(RuntimeError):
    """The process of an engine ended; never reaches the user: the comparison reports the engine as left out."""


def open_executorch(file: str, threads: int, options: dict[str, str]) -> Callable[[np.ndarray], object]:
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(Path(file).read_bytes())
    method = program.load_method("forward")

    def run(pixel_values: np.ndarray, program=program) -> object:  # the program must live as long as its method
        return method.execute([torch.from_numpy(pixel_values)])

    return run


def open_onnxruntime(file: str, threads: int, options: dict[str, str]) -> Callable[[np.ndarray], object]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixel_values: session.run(None, {name: pixel_values})


def open_openvino(file: str, threads: int, options: dict[str, str]) -> Callable[[np.ndarray], object]:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"} | options
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda pixel_values: compiled([pixel_values])


def open_pytorch(file: str, threads: int, options: dict[str, str]) -> Callable[[np.ndarray], object]:
    import torch
    from transformers import AutoModelForImageClassification

    import swin_hf  # noqa: F401  registers the models with transformers

    torch.set_num_threads(threads)
    model = AutoModelForImageClassification.from_pretrained(file, local_files_only=True).eval()
    if options.get("compile") == "yes":
        model.compile()

    def run(pixel_values: np.ndarray) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(pixel_values))

    return run


def open_matmul(file: str, threads: int, options: dict[str, str]) -> Callable[[np.ndarray], object]:
    """PyTorch's products of square matrices, `options["products"]` of them: the speed of fp32 products on this machine."""
    import torch

    torch.set_num_threads(threads)

    def run(matrix: np.ndarray) -> object:
        left = torch.from_numpy(matrix)
        for _ in range(int(options["products"])):
            product = left @ left
        return product

    return run


ENGINES = {
    "matmul": open_matmul,
    "executorch": open_executorch,
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "pytorch": open_pytorch,
}


def take_turns(contenders: list[Contender], rounds: int, runs: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """Times in milliseconds of single runs of each contender: "alone", with no other engine open, and in "turns".

    A contender that cannot be run has an "error" instead, a list with the last line of its stderr.
    """
    results: dict[str, dict[str, list]] = {}
    working: dict[str, Engine] = {}

    def turn(contender: Contender, kind: str | None = None) -> None:
        """A turn of a contender, whose times are kept under `kind`; without a kind it is a warm-up."""
        try:
            times = working[contender.name].turn(runs)
            results.setdefault(contender.name, {"alone": [], "turns": []})
            if kind:
                results[contender.name][kind] += times
        except EngineError as error:
            results[contender.name] = {"error": [str(error)]}

    def runs_well(contender: Contender) -> bool:
        return "error" not in results.get(contender.name, {})

    try:
        for is_alone in (True, False):
            for contender in filter(runs_well, contenders):
                working[contender.name] = Engine(contender, threads)
                turn(contender)
                if is_alone and runs_well(contender):
                    turn(contender, "alone")
                if is_alone or not runs_well(contender):
                    working.pop(contender.name).close()
        for number in range(rounds):
            first = number % len(contenders)
            for contender in filter(runs_well, contenders[first:] + contenders[:first]):
                turn(contender, "turns")
    finally:
        for engine in working.values():
            engine.close()
    return results


class Engine:
    """The process of a contender, stopped between turns."""

    def __init__(self, contender: Contender, threads: int):
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process lives
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edge.compare.engines", json_text(asdict(contender) | {"threads": threads}, indent=None)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment_of_child() | {"OMP_NUM_THREADS": str(threads)},
        )

    def turn(self, runs: int) -> list[float]:
        """Times of `runs` runs in milliseconds.

        Raises:
            EngineError: the process ended; the message is the last line of its stderr.
        """
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(f"{runs}\n")
            self._process.stdin.flush()
            while line := self._process.stdout.readline():
                if line.startswith("["):
                    self._process.send_signal(signal.SIGSTOP)
                    return json.loads(line)
        except BrokenPipeError:
            pass
        code = self._process.wait()
        self._stderr.seek(0)
        lines = [line for line in self._stderr.read().splitlines() if line.strip()]
        raise EngineError(lines[-1] if lines else f"ended with exit code {code}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stderr.close()


def _serve(request: dict) -> None:
    """Open an engine, and for each line of standard input run it so many times and print the times."""
    run = ENGINES[request["engine"]](request["file"], request["threads"], request["options"] or {})
    pixels = random_pixel_values(tuple(request["shape"]), request["input_dtype"])
    for line in sys.stdin:
        times = []
        for _ in range(SETTLE_RUNS + int(line)):
            start = time.perf_counter()
            run(pixels)
            times.append((time.perf_counter() - start) * 1e3)
        print(json_text(times[SETTLE_RUNS:], indent=None), flush=True)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
