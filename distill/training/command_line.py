"""Command lines over frozen dataclasses: a YAML file gives values, the command line wins, and every mistake is explained."""

import difflib
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type or out of its range; the message names it and says what to do."""


def require(condition: bool, name: str, rule: str, value: Any, hint: str = "") -> None:
    """Raise the error that says which setting breaks which rule."""
    if not condition:
        raise SettingsError(f"--{name} must {rule}, got {value!r}{'; ' + hint if hint else ''}")


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A program's options: the fields of some dataclasses, and `option`, which names a YAML file of them.

    option: "recipe" or "config". folder: where files are looked for that are given by their bare name.
    """

    program: str
    description: str
    option: str
    folder: Path
    parts: list[type]

    @property
    def files(self) -> list[str]:
        """The bare names of the YAML files."""
        return sorted(path.stem for path in self.folder.glob("*.yaml"))

    @cached_property
    def parser(self) -> HfArgumentParser:
        parser = HfArgumentParser(self.parts, prog=self.program, description=self.description, allow_abbrev=False)
        parser.add_argument(f"--{self.option}", help=f"YAML file, or one of {', '.join(self.files)}.")
        parser.error = _raise_settings_error
        return parser

    def glance(self, argv: list[str], name: str) -> str | None:
        """The value of one option alone, without a check of the others."""
        known, _ = self.parser.parse_known_args([argument for argument in argv if argument not in ("-h", "--help")])
        return getattr(known, name)

    def parse(self, argv: list[str] | None = None, file: str | None = None) -> list[Any]:
        """One object for each of the parts.

        file: the YAML file that is used if the command line names none.

        Raises:
            SettingsError: unknown key, wrong type, value out of range, or a file that cannot be read.
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        known = list(self.parser._option_string_actions)
        file = self.glance(argv, self.option) or file
        arguments = self._arguments_of(file, known) if file else []
        *values, _, unknown = self.parser.parse_args_into_dataclasses(args=arguments + argv, return_remaining_strings=True)
        if unknown:
            raise SettingsError(_unknown_key("the command line", unknown[0], known))
        return values

    def _arguments_of(self, file: str, known: list[str]) -> list[str]:
        """The keys of a file as command-line arguments, so that both are checked and typed by the same parser."""
        path = Path(file)
        if path.suffix not in (".yaml", ".yml"):
            path = self.folder / f"{file}.yaml"
        if not path.is_file():
            raise SettingsError(f"--{self.option} must be a YAML file or a name in {self.folder}, got {file!r}")
        try:
            content = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            raise SettingsError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise SettingsError(f"{path} must hold `key: value` lines, got {type(content).__name__}")
        arguments = []
        for key, value in content.items():
            if f"--{key}" not in known or key in (self.option, "help"):
                raise SettingsError(_unknown_key(str(path), f"--{key}", known))
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{key}", *(json.dumps(own) if isinstance(own, dict) else str(own) for own in values)]
        return arguments


def _raise_settings_error(message: str):
    raise SettingsError(message)


def _unknown_key(where: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "see --help for the list"
    return f"unknown setting {key} in {where}; {hint}"
