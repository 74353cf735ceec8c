"""Command lines from frozen dataclasses: a YAML file gives values, the command line overrides them, mistakes are explained."""

import copy
import dataclasses
import json
import sys
import textwrap
import typing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from distill.errors import SettingsError
from distill.training.yaml_text import parse_yaml
from edge.device.names import did_you_mean
from swin_hf.presets_swin_hf import PRESETS

OPTION = "config"  # names the YAML file
HELP, HELP_ALL = ("-h", "--help"), ("--help_all", "--help-all")
WIDTH = 100  # of the help, in letters


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A program's options: the fields of some dataclasses, and `--config`, which names a YAML file of them.

    Every option has one spelling, that of its field, with underscores.

    folder: where files are looked for that are given by their bare name.
    parts: dataclasses; `heading` of each, if it has one, is its heading in the help.
    left_out: fields of parts that are not options, since the program sets them itself.
    companions: options of a file that describe another of its options, a preset. They are ignored where the command line
        replaces the preset: `teacher_args` in a file belong to the file's own teacher.
    brief: parts that `--help` lists; it leaves the others, but for `brief_options`, to `--help_all`.
    """

    program: str
    description: str
    folder: Path
    parts: list[type]
    left_out: dict[type, frozenset[str]] = dataclasses.field(default_factory=dict)
    companions: dict[str, str] = dataclasses.field(default_factory=dict)
    brief: tuple[type, ...] = ()
    brief_options: tuple[str, ...] = ()

    @property
    def files(self) -> list[str]:
        """The bare names of the YAML files."""
        return sorted(path.stem for path in self.folder.glob("*.yaml"))

    @cached_property
    def parser(self) -> HfArgumentParser:
        usage = f"{self.program} [--{OPTION} NAME_OR_FILE] [--setting VALUE ...]"
        parser = HfArgumentParser([], prog=self.program, usage=usage, description=self.description, allow_abbrev=False)
        parser.add_argument(f"--{OPTION}", help=f"YAML file, or one of {', '.join(self.files)}.")
        for part in self.parts:
            parser._add_dataclass_arguments(self._options_of(part))
        parser.error = _raise_settings_error
        for action in list(parser._actions):  # HfArgumentParser gives each option a second spelling, with hyphens
            for option in [option for option in action.option_strings if "-" in option.removeprefix("--")]:
                if option not in ("-h", "--help"):
                    parser._handle_conflict_resolve(None, [(option, action)])
            if action.type is string_to_bool and action.nargs is None:  # "bool | None": alone, it means true as others do
                action.nargs, action.const = "?", True
        return parser

    def _options_of(self, part: type) -> type:
        """A dataclass of the fields of a part that are options, for HfArgumentParser to read, under the part's own heading."""
        types = typing.get_type_hints(part)
        names = self._fields(part)
        fields = [
            (field.name, types[field.name], copy.copy(field)) for field in dataclasses.fields(part) if field.name in names
        ]
        namespace = {"_argument_group_name": _heading(part)}
        return dataclasses.make_dataclass(part.__name__, fields, kw_only=True, namespace=namespace)

    def _fields(self, part: type) -> set[str]:
        """The names of the fields of a part that are options."""
        return {field.name for field in dataclasses.fields(part) if field.init} - self.left_out.get(part, frozenset())

    def glance(self, argv: list[str], name: str) -> str | None:
        """The value of one option, without checking the others."""
        known, _ = self.parser.parse_known_args([argument for argument in argv if argument not in (*HELP, *HELP_ALL)])
        return getattr(known, name)

    def parse(self, argv: list[str] | None = None, file: str | None = None) -> list[Any]:
        """One object for each of the parts.

        file: the YAML file that is used if the command line names none.

        Raises:
            SettingsError: unknown key, wrong type, value out of range, or a file that cannot be read.
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        file = self.glance(argv, OPTION) or file
        if {*HELP, *HELP_ALL} & set(argv):
            others = [argument for argument in argv if argument not in (*HELP, *HELP_ALL)]
            print(self.help_text(others, file, everything=bool(set(HELP_ALL) & set(argv))))
            sys.exit(0)
        arguments = self._arguments_of(file, argv) if file else []
        values, unknown = self.parser.parse_known_args(arguments + argv)
        if unknown:
            raise SettingsError(_unknown_key("the command line", unknown[0], self._options))
        try:
            return [part(**{name: getattr(values, name) for name in self._fields(part)}) for part in self.parts]
        except (ValueError, ImportError) as error:  # TrainingArguments checks combinations, and the device
            raise error if isinstance(error, SettingsError) else SettingsError(str(error)) from error

    def help_text(self, argv: list[str], file: str | None, everything: bool) -> str:
        """What the program does, and its options with the values that they have now: by a file and a command line."""
        values = vars(self.parser.parse_known_args((self._arguments_of(file, argv) if file else []) + argv)[0])
        lines = [self.parser.format_usage(), *textwrap.wrap(self.description, WIDTH), ""]
        whence = (
            f"those of {Path(file).name}, changed by this command line" if file else "defaults, changed by this command line"
        )
        lines.append(f"Values in brackets are {whence}.")
        lines += ["", f"  --{OPTION} NAME_OR_FILE", f"        A YAML file of options, or one of {', '.join(self.files)}."]
        if self.brief:
            lines += [f"  {HELP_ALL[0]}", "        All options, those of the trainings and of transformers.Trainer too."]
        for part in self.parts:
            whole, known = everything or not self.brief or part in self.brief, self._fields(part)
            shown = [
                own for own in dataclasses.fields(part) if own.name in known and (whole or own.name in self.brief_options)
            ]
            lines += ["", f"{_heading(part)}:"] if shown else []
            for own in shown:
                lines.append(f"  --{own.name} VALUE")
                text = f"{own.metadata.get('help', '')} [{_as_text(values[own.name])}]".strip()
                lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
        return "\n".join(lines)

    @property
    def _options(self) -> list[str]:
        return list(self.parser._option_string_actions)

    def _arguments_of(self, file: str, argv: list[str]) -> list[str]:
        """The keys of a file as command-line arguments, so that the same parser checks and converts both."""
        path = Path(file)
        if path.suffix not in (".yaml", ".yml"):
            path = self.folder / f"{file}.yaml"
        if not path.is_file():
            hint = did_you_mean(file, self.files)
            raise SettingsError(f"--{OPTION} must be a YAML file or one of {', '.join(self.files)}, got {file!r}{hint}")
        try:
            content = parse_yaml(path.read_bytes()) or {}
        except yaml.YAMLError as error:
            raise SettingsError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise SettingsError(f"{path} must hold `key: value` lines, got {type(content).__name__}")
        given = {argument.removeprefix("--").split("=")[0] for argument in argv if argument.startswith("--")}
        arguments = []
        for key, value in content.items():
            owner = self.companions.get(key)
            if owner in given and content.get(owner) in PRESETS:
                continue
            if f"--{key}" not in self._options or key in (OPTION, "help"):
                raise SettingsError(_unknown_key(str(path), f"--{key}", self._options))
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{key}", *(json.dumps(own) if isinstance(own, dict) else str(own) for own in values)]
        return arguments


def _heading(part: type) -> str:
    return getattr(part, "heading", "arguments of transformers.Trainer")


def _as_text(value: Any) -> str:
    """A value as it is written in a file."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value in (None, "") else str(value)


def _raise_settings_error(message: str):
    raise SettingsError(message)


def _unknown_key(where: str, key: str, known: list[str]) -> str:
    return f"unknown setting {key} in {where}{did_you_mean(key, known) or '; see --help for the list'}"
