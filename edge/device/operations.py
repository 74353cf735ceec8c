"""Where the time of a program goes: the operations that it runs, as ExecuTorch's event tracer sees them."""

import re
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from executorch.extension.pybindings import portable_lib

from .artefact import read_artefact
from .errors import ExplainedError
from .image import random_pixel_values

WARM_UP_RUNS = 3
OF_THE_RUNTIME = "native_call_"  # how operations outside of delegates are marked
WHOLE = "Method::execute"


class ProfileError(ExplainedError):
    """The runtime here traces no operations."""


def profile(folder: Path, repeats: int, threads: int) -> dict:
    """The operations of a program, those of a kind together, slowest kind first, as JSON values.

    `ms`: of a run, the mean over the middle half of the runs. The backend counts whole microseconds and drops the rest, so
    that little can be said of programs of less than a millisecond. `total_ms` is that of whole runs; it includes the
    tracing itself, about 2 microseconds an operation.

    Raises:
        ArtefactError: the artefact is missing or damaged.
        ProfileError: the runtime was built without its event tracer, or lacks the tools that read what it writes.
    """
    manifest, program = read_artefact(folder)
    pixels = torch.from_numpy(random_pixel_values(manifest.input.shape(), manifest.input.dtype))
    events = _events(program, pixels, repeats, threads)
    kinds: dict[str, list[float]] = defaultdict(list)
    for name, times_ms, delegated in events:
        if delegated or name.startswith(OF_THE_RUNTIME):
            kinds[re.sub(r" #\d+$", "", name)].append(_middle(times_ms))
    spent = sum(sum(times) for times in kinds.values())
    return {
        "threads": threads,
        "repeats": repeats,
        "total_ms": next(_middle(times_ms) for name, times_ms, _ in events if name == WHOLE),
        "operations": [
            {"kind": kind, "count": len(times), "ms": sum(times), "share": sum(times) / spent if spent else 0.0}
            for kind, times in sorted(kinds.items(), key=lambda item: -sum(item[1]))
        ],
    }


def _middle(times_ms: list[float]) -> float:
    """Mean of the middle half of some times."""
    quarter = len(times_ms) // 4
    return float(np.mean(sorted(times_ms)[quarter : len(times_ms) - quarter]))


def describe(figures: dict) -> list[str]:
    """The figures of `profile` as lines of text."""
    head = f"  operations of a run on {figures['threads']} thread(s); traced, it takes {figures['total_ms']:.2f} ms:"
    rows = [f"  {row['ms']:9.3f} ms {row['share']:6.1%} {row['count']:5d} x {row['kind']}" for row in figures["operations"]]
    return [head, *rows]


def _events(program: bytes, pixels: torch.Tensor, repeats: int, threads: int) -> list[tuple[str, list[float], bool]]:
    """Name, times in milliseconds, and whether a delegate ran it, of all that the runtime traced in runs of a program."""
    try:
        from executorch.devtools.inspector import Inspector
    except ImportError as error:
        raise ProfileError(f"operations are read with executorch.devtools, which is not whole here: {error}") from error
    portable_lib._unsafe_reset_threadpool(threads)
    module = portable_lib._load_for_executorch_from_buffer(program, enable_etdump=True)
    for _ in range(WARM_UP_RUNS + repeats):
        module.forward([pixels])
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that outputs were not recorded
        file = Path(temporary) / "run.etdp"
        try:
            module.write_etdump_result_to_file(str(file))
        except RuntimeError as error:
            raise ProfileError(
                f"the ExecuTorch runtime here traces no operations ({error}); its Python package does"
            ) from error
        blocks = Inspector(etdump_path=str(file)).event_blocks
    runs = next(block for block in blocks if block.name == "Execute")
    timed = [event for event in runs.events if event.perf_data]
    return [(event.name, event.perf_data.raw[WARM_UP_RUNS:], bool(event.is_delegated_op)) for event in timed]
