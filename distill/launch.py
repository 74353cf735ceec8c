"""How the programs start and end: quietly, and with every error that a user can put right on one line."""

import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from distill import interruption
from distill.errors import SettingsError, TrainingStopped
from distill.memory import keep_freed_memory
from edge.device.errors import ExplainedError
from edge.quiet import quieten

USAGE = 2  # exit code, as argparse has it
# What the extra "train" installs, by the names that are imported.
OF_TRAINING = (
    *("accelerate", "datasets", "executorch", "jinja2", "kornia", "matplotlib", "pycocotools", "pytorch_optimizer"),
    *("sklearn", "torch_pruning", "torchao", "tqdm", "yaml"),
)


def launch(work: Callable[[], None], how_to_resume: str) -> int:
    """Run a program; the exit code is 0 when all is done, and otherwise explained on stderr.

    2 is a mistake in a flag or a configuration, as in all commands, 1 another error, 130 Ctrl-C, 143 SIGTERM.

    work: imports what it needs itself, after the messages of PyTorch's packages were silenced.
    """
    interruption.watch()
    try:
        quieten()
        from distill.quiet import quieten_libraries

        quieten_libraries()
        keep_freed_memory()
        work()
        interruption.check()
        _leave_processes()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or interruption.came():  # which some libraries turn into errors of their own
            print(f"\ninterrupted; {how_to_resume}", file=sys.stderr)
            return 128 + signal.SIGINT
        if isinstance(error, TrainingStopped):
            _leave_processes()
            print(f"\n{error}; {how_to_resume}", file=sys.stderr)
            return 128 + signal.SIGTERM
        if not (message := _explained(error)):
            raise
        print(f"\nerror: {message}", file=sys.stderr)  # below a progress bar that was cut off
        if _is_launched_by_accelerate():
            print("(accelerate adds a traceback of its own below; `accelerate launch --quiet` does not)", file=sys.stderr)
        return USAGE if isinstance(error, SettingsError) else 1
    return 0


def _leave_processes() -> None:
    """End the communication of a training on several processes, all of which are here, while Python still runs.

    Gloo's threads may hold tensors: freed after Python has ended, they abort the process (SIGABRT). These threads end with the
    last model that communicates through them, and models of a training are in reference cycles. After an error all is left as
    it is: other processes may wait for this one, and ending could wait for them.
    """
    distributed = sys.modules.get("torch.distributed")  # not loaded here: some commands do without torch
    if distributed and distributed.is_available() and distributed.is_initialized():
        gc.collect()  # not after: what the models hold last is freed with Python's lock, for which Gloo's threads may wait
        with suppress(RuntimeError):  # what was to be done is done
            distributed.destroy_process_group()


def _explained(error: BaseException) -> str:
    """What an error that a user can put right says; empty for others."""
    from filelock import Timeout

    if isinstance(error, ModuleNotFoundError):
        return f'{error}; pip install "swin-hf[train]"' if (error.name or "").split(".")[0] in OF_TRAINING else ""
    if isinstance(error, Timeout):
        folder = Path(error.lock_file).parent
        return f"another run is at work in {folder}; wait for it or give another --output_dir"
    return str(error) if isinstance(error, ExplainedError | OSError) else ""


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
