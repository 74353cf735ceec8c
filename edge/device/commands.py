"""Commands that work where only ExecuTorch, NumPy and Pillow are installed: bench, verify, self-test; predict has its file."""

import argparse
import difflib
import sys
from pathlib import Path

from .child import INTERRUPTED
from .errors import ExplainedError
from .json_text import json_text
from .printable import escape_in_streams, printable

# What commands of `python -m edge` import and a device need not have, by the extra that installs it.
EXTRAS = {
    **dict.fromkeys(("transformers", "swin_hf", "safetensors", "huggingface_hub", "torchao", "executorch", "torch"), "edge"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript", "openvino"), "bench"),
    "gradio": "demo",
    **dict.fromkeys(("accelerate", "datasets", "kornia", "sklearn"), "train"),
}

# PyTorch and the runtime take seconds to import, so that each command imports what it needs when it runs.


def run_command(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> int:
    """Parse a command line and run its command; 1 after an error, which was explained on stderr, 130 after Ctrl-C."""
    escape_in_streams()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}{_hint(arguments.parser, unknown)}")
    try:
        return arguments.run(arguments)
    except (ExplainedError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        print(f'error: {error}, which this command needs; pip install "swin-hf[{extra}]"', file=sys.stderr)
        return 1


def _hint(parser: argparse.ArgumentParser, unknown: list[str]) -> str:
    flags = [flag for action in parser._actions for flag in action.option_strings]
    near = [difflib.get_close_matches(flag.split("=")[0], flags, n=1) for flag in unknown if flag.startswith("-")]
    names = [match[0] for match in near if match]
    return f" (did you mean {', '.join(names)}?)" if names else ""


def add_command(commands, name: str, run, help_text: str, **options) -> argparse.ArgumentParser:
    """A command whose flags must be written out in full; `run` is called with the parsed arguments."""
    command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False, **options)
    command.set_defaults(run=run, parser=command)
    return command


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def add_bench(commands) -> argparse.ArgumentParser:
    command = add_command(commands, "bench", run_bench, "measure load time, latency and memory on this machine")
    command.add_argument(
        "artefacts", type=Path, nargs="+", metavar="DIR", help="of several, the latency alone is measured, in turns"
    )
    command.add_argument("--threads", type=numbers, help="numbers of threads: 1,2,4 (default: 1 to all cores)")
    command.add_argument("--repeats", type=positive, default=100, help="timed runs (default: 100)")
    command.add_argument("--profile", action="store_true", help="of one DIR, also the time that each kind of operation takes")
    add_json(command)
    return command


def run_bench(arguments: argparse.Namespace) -> int:
    from .bench import bench, bench_in_turns, describe, describe_all

    if len(arguments.artefacts) > 1:
        if arguments.profile:
            arguments.parser.error(f"--profile takes one DIR, got {len(arguments.artefacts)}")
        figures, show = bench_in_turns(arguments.artefacts, arguments.repeats, arguments.threads), describe_all
    else:
        figures = bench(arguments.artefacts[0], arguments.repeats, arguments.threads, arguments.profile)
        show = describe
    if arguments.json:
        print_json(figures)
    else:
        print(show(figures))
    return 0


def add_verify(
    commands,
    help_text: str = "measure the accuracy of the program on labelled images",
    dataset_help: str = "images in class folders, or named <label>_<n>",
    has_default: bool = False,
) -> argparse.ArgumentParser:
    command = add_command(commands, "verify", run_verify, help_text)
    command.add_argument("artefact", type=Path, metavar="DIR")
    command.add_argument("--dataset", type=Path, required=not has_default, metavar="FOLDER", help=dataset_help)
    add_json(command)
    return command


def run_verify(arguments: argparse.Namespace) -> int:
    from .verify import verify

    print_figures(verify(arguments.artefact, arguments.dataset), arguments.json)
    return 0


def print_figures(figures: dict[str, float | int | str], as_json: bool) -> None:
    """Print one figure a line, or all as JSON."""
    if as_json:
        print_json(figures)
        return
    for name, value in figures.items():
        print(f"{name:>16}: {value:.4g}" if isinstance(value, float) else f"{name:>16}: {printable(str(value))}")


def print_json(value) -> None:
    """Print a value as JSON that every reader accepts."""
    print(json_text(value, encoding=sys.stdout.encoding or "utf-8"))


def add_self_test(commands) -> argparse.ArgumentParser:
    command = add_command(commands, "self-test", run_self_test, "run the program on the images bundled with it")
    command.add_argument("artefact", type=Path, metavar="DIR")
    add_json(command)
    return command


def run_self_test(arguments: argparse.Namespace) -> int:
    from .verify import self_test

    num_images, tolerance = self_test(arguments.artefact)
    if arguments.json:
        print_json({"num_images": num_images, "tolerance": tolerance})
    else:
        print(f"{num_images} bundled images: the outputs are those of the exporting machine, to within {tolerance:.2g}")
    return 0


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value


def numbers(text: str) -> tuple[int, ...]:
    """1,4"""
    return tuple(positive(part) for part in text.split(","))
