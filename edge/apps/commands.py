"""The command app."""

import argparse
from pathlib import Path

from edge.apps.writer import PLATFORMS, write_app
from edge.device.commands import add_command


def add_app(commands) -> argparse.ArgumentParser:
    command = add_command(commands, "app", run_app, "write the source of a phone app around a program")
    command.add_argument("platform", choices=tuple(PLATFORMS))
    command.add_argument("artefact", type=Path, metavar="DIR")
    command.add_argument("--output_dir", type=Path, metavar="APP_DIR", help="default: DIR-PLATFORM")
    command.add_argument("--name", help="under the app's icon, of Android and iOS (default: Swin Edge)")
    command.add_argument("--package", help="its identifier in a store: com.example.birds (default: org.swinhf.edge)")
    return command


def run_app(arguments: argparse.Namespace) -> int:
    artefact = arguments.artefact.resolve()
    beside = artefact
    if not Path(arguments.named).exists():  # a name on the Hub, whose cache is no place for an app
        beside = Path.cwd() / arguments.named.split("@")[0].split("/")[-1]
    output_dir = arguments.output_dir or beside.with_name(f"{beside.name}-{arguments.platform}")
    for path in write_app(arguments.platform, arguments.artefact, output_dir, arguments.name, arguments.package):
        print(path)
    return 0
