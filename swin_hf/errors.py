"""Errors that explain themselves: a command line prints their message and needs no traceback."""

from huggingface_hub.errors import StrictDataclassError

LONGEST = 600  # characters of what another library says


class ExplainedError(ValueError):
    """What was given cannot be used as it is; the message says why, and what to do."""


def in_one_line(error: Exception) -> str:
    """What an error of another library says, in one line; with its type, unless it is one that explains itself."""
    if isinstance(error, StrictDataclassError):
        return str(error).strip().splitlines()[-1].strip()  # the other lines name a validator
    text = " ".join(str(error).split())[:LONGEST]
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}".rstrip(": ")
