"""JSON that every reader accepts: no NaN or infinity, and no text that cannot be written."""

import json
import math

from .errors import ExplainedError


def json_text(value, indent: int | None = 2, encoding: str = "utf-8") -> str:
    """A value as JSON; characters that the encoding lacks, such as those of file names that are no text, are escaped.

    Raises:
        ExplainedError: a number in it is NaN or infinite; the message says which.
    """
    if (where := _not_finite(value)) is not None:
        raise ExplainedError(f"{where} must be a finite number, got NaN or infinity; what it was computed from is damaged")
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, allow_nan=False)
    return text


def _not_finite(value, name: str = "") -> str | None:
    """Where a value holds a number that is not finite, like `latency[0].p50_ms`; None if nowhere."""
    if isinstance(value, float):
        return None if math.isfinite(value) else name or "the value"
    if isinstance(value, dict):
        parts = ((f"{name}.{key}" if name else str(key), item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"{name}[{index}]", item) for index, item in enumerate(value))
    else:
        return None
    return next((where for part, item in parts if (where := _not_finite(item, part)) is not None), None)
