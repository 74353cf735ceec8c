"""Checkpoints and programs by the folder that they lie in, or by their name on the Hub."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge.device.artefact import MANIFEST_FILE
from edge.device.errors import ExplainedError
from edge.device.predict import Predictor

if TYPE_CHECKING:
    from edge.verbs.checkpoint_model import CheckpointModel

HUB_NAME = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
FILES = ("*.json", "*.safetensors", "*.pte", "*.bpte", "README.md")  # of a checkpoint, and of an export


class OpeningError(ExplainedError):
    """Neither a folder here nor a repository of the Hub holds the model; the message says what was looked for."""


def local_folder(name: str) -> Path:
    """The folder of a model; one of the Hub is fetched into the Hub's cache, and told by its commit on stderr.

    name: a folder, `org/name`, or `org/name@revision`, whose revision is a branch, a tag or a commit.

    Raises:
        OpeningError: the Hub does not have it, or cannot be reached.
    """
    found = HUB_NAME.fullmatch(name)
    if Path(name).exists() or not found:
        return Path(name)
    from huggingface_hub import snapshot_download

    from swin_hf.weight_files import why_unreadable

    try:
        folder = Path(snapshot_download(found["repo_id"], revision=found["revision"], allow_patterns=FILES))
    except Exception as error:  # of the Hub, of the connection, or of a name that cannot be one
        raise OpeningError(f"{name} is no folder here, and the Hub does not give it: {why_unreadable(error)}") from error
    print(f"{found['repo_id']}@{folder.name}", file=sys.stderr)  # snapshots are named after their commits
    return folder


def is_program(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).exists()


def open_model(name: str) -> "Predictor | CheckpointModel":
    """The program or the checkpoint of this name, ready to run.

    Raises:
        OpeningError: there is neither.
        ArtefactError, CheckpointError: it is damaged.
    """
    folder = local_folder(name)
    if is_program(folder):
        from edge.device.runner import Runner

        return Runner(folder)
    if not (folder / "config.json").is_file():
        raise OpeningError(
            f"{name} must be a folder with a program ({MANIFEST_FILE}) or a checkpoint (config.json), or the name of a "
            f"repository of the Hub with one, like org/name; got {'a folder without them' if folder.is_dir() else 'neither'}"
        )
    from edge.verbs.checkpoint_model import CheckpointModel

    return CheckpointModel(folder)


def with_names_of_the_hub(command: argparse.ArgumentParser, argument: str) -> argparse.ArgumentParser:
    """Let an argument of a command, a folder or several, also be a name on the Hub."""
    run: Callable[[argparse.Namespace], int] = command.get_default("run")

    def run_with_folders(arguments: argparse.Namespace) -> int:
        given = getattr(arguments, argument)
        arguments.named = str(given)
        folders = [local_folder(str(name)) for name in given] if isinstance(given, list) else local_folder(str(given))
        setattr(arguments, argument, folders)
        return run(arguments)

    command.set_defaults(run=run_with_folders)
    return command
