"""How the programs start and end: quietly, and with every error that a user can put right on one line."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from distill.errors import TrainingStopped
from edge.device.errors import ExplainedError
from edge.quiet import quieten

# What the extra "train" installs, by the names that are imported.
OF_TRAINING = (
    *("accelerate", "datasets", "executorch", "filelock", "jinja2", "kornia", "matplotlib", "pytorch_optimizer"),
    *("sklearn", "torch_pruning", "torchao", "tqdm", "yaml"),
)


def launch(work: Callable[[], None], how_to_resume: str) -> int:
    """Run a program; 0 when all is done, 1 after an error that was explained on stderr, 143 after SIGTERM.

    work: imports what it needs itself, after the messages of PyTorch's packages were silenced.
    """
    quieten()
    try:
        from filelock import Timeout

        from distill.quiet import quieten_libraries

        quieten_libraries()
        work()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OF_TRAINING:
            raise
        print(f'error: {error}; pip install "swin-hf[train]"', file=sys.stderr)
        return 1
    except Timeout as error:
        folder = Path(error.lock_file).parent
        print(f"error: another run is at work in {folder}; wait for it or give another --output_dir", file=sys.stderr)
        return 1
    except TrainingStopped as stop:
        print(f"\n{stop}; {how_to_resume}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except (ExplainedError, OSError) as error:
        print(f"\nerror: {error}", file=sys.stderr)  # below a progress bar that was cut off
        if _is_launched_by_accelerate():
            print(
                "(below, accelerate adds a traceback of its own; `accelerate launch --quiet` leaves it out)", file=sys.stderr
            )
        return 1
    return 0


def _is_launched_by_accelerate() -> bool:
    """Whether `accelerate launch` started this process, and will report its failure with a traceback."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # which it sets
        return False
    import psutil  # which accelerate brings

    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return False
    return "launch" in command and "--quiet" not in command
