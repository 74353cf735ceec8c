"""Errors of settings, explained in one sentence; trainings that were stopped."""

from typing import Any

from edge.device.errors import ExplainedError


class SettingsError(ExplainedError):
    """A setting is unknown, of the wrong type or out of its range; the message names it and says what to do."""


def require(condition: bool, name: str, rule: str, value: Any, hint: str = "") -> None:
    """Raise an error that names the setting and the rule that it breaks, unless `condition` holds."""
    if not condition:
        raise SettingsError(f"--{name} must {rule}, got {value!r}{'; ' + hint if hint else ''}")


class TrainingStopped(Exception):
    """SIGTERM ended a training before its last step; a checkpoint was written."""
