"""YAML that people wrote."""

from typing import Any

import yaml


def parse_yaml(text: str | bytes) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: it is not YAML, not UTF-8, nested too deeply, or has an impossible date.
    """
    try:
        return yaml.safe_load(text)
    except (RecursionError, ValueError) as error:
        raise yaml.YAMLError(str(error)) from error
