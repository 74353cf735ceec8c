"""What every client of the Hub begins with: what its test gives it, and how it says what became of a scenario.

A client runs in a process of its own, with the environment that `run_client` of test_hub.py makes for it, and prints a JSON
object for each scenario.
"""

import json
import sys
from collections.abc import Callable

import torch

torch.set_grad_enabled(False)
GIVEN = json.loads(sys.argv[1])  # by the test


def say(scenario: str, result: object) -> None:
    """Print the result of a scenario, as text if JSON does not have its type."""
    print(json.dumps({scenario: result if isinstance(result, (bool, int, list)) else str(result)}), flush=True)


def attempt(scenario: str, work: Callable[[], object]) -> None:
    """Say what `work` returns, or with which error and which cause of it that fails."""
    try:
        say(scenario, work())
    except Exception as error:
        cause = error
        while cause.__cause__ is not None and not hasattr(cause, "response"):
            cause = cause.__cause__
        say(scenario, f"{type(error).__name__} < {type(cause).__name__}: {error}")


class NotInstalled:
    """Put first in `sys.meta_path`, it makes this project's packages look as if they were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("swin_hf", "edge", "distill"):
            raise ModuleNotFoundError(f"No module named {name!r}")
