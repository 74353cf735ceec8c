"""Publish a device artefact on the Hub with a card of measured figures.

`python -m edge publish DIR org/name` shows what would be uploaded; `--upload` uploads it.

swin_hf, and with it transformers, is imported where something is published: the command line has other commands, which do
without.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge.device.artefact import (
    CLASSIFICATION,
    FEATURES,
    MANIFEST_FILE,
    PROGRAM_FILE,
    SEGMENTATION,
    ArtefactError,
    Manifest,
    check_constants,
    read_file,
    read_manifest,
)
from edge.device.commands import add_command

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from swin_hf.model_card import Card
    from swin_hf.uploading import Publication

# Of the Hub, by the tasks of artefacts.
_PIPELINES = {CLASSIFICATION: CLASSIFICATION, SEGMENTATION: "image-segmentation", FEATURES: "image-feature-extraction"}
_USE = """```bash
pip install "swin-hf[edge]"
python -m edge predict {repo_id} photo.jpg
python -m edge app android {repo_id} --output_dir my_app   # or ios, or react-native: the source of an app around it
```

```python
from edge.device.runner import Runner
from huggingface_hub import snapshot_download

runner = Runner(snapshot_download("{repo_id}"))
print(runner.{call}("photo.jpg"))
```

On a board without Python, swin-hf's `edge/cpp` runs classifiers.
"""
_CALLS = {CLASSIFICATION: "classify", SEGMENTATION: "segment", FEATURES: "pixel_values"}
_LIMITS = (
    "The figures hold for images like those that it was tested on. Run programs only from people you trust: their checksums "
    "guard against damage, not against forgery."
)


def prepare(
    source: str | Path, repo_id: str, folder: Path, license_name: str | None = None, examples: Path | None = None
) -> "Publication":
    """Write what belongs on the Hub of a device artefact into a new folder.

    These are the files that its manifest lists, each checked against its sha256, the manifest itself and `metrics.json`. A
    README.md of its own becomes the card; otherwise one is written. examples: folder of images to try.

    Raises:
        PublishError: it is no device artefact, or a file is not the exported one, or `repo_id` is not the name of a
            repository.
    """
    from swin_hf.publish import PublishError, check_links, check_repo_id, complete

    source = Path(source)
    check_repo_id(repo_id)
    check_links(source)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        manifest = read_manifest(source)
        for name in manifest.sha256:
            if Path(name).name != name:
                raise PublishError(f"{source / MANIFEST_FILE} must name files beside it, got {name!r}")
            (folder / name).write_bytes(read_file(source, manifest, name))
        check_constants(source, manifest, (folder / PROGRAM_FILE).read_bytes())
        card = _card(manifest)
    except ArtefactError as error:
        raise PublishError(str(error)) from error
    except (KeyError, TypeError) as error:  # the manifest does not check what its program and its accuracy consist of
        raise PublishError(f"{source / MANIFEST_FILE} must have the figures of an export: {error!r}") from error
    shutil.copyfile(source / MANIFEST_FILE, folder / MANIFEST_FILE)
    return complete(source, repo_id, folder, card, license_name, examples)


def publish(
    source: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    license_name: str | None = None,
    message: str | None = None,
    examples: Path | None = None,
) -> "CommitInfo":
    """Upload a device artefact to the Hub, in one commit.

    license_name: identifier for the card, like apache-2.0. examples: folder of images to try. The other arguments are
    those of `swin_hf.uploading.upload`.

    Raises:
        PublishError: as for `prepare`.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    from swin_hf.uploading import upload

    with tempfile.TemporaryDirectory() as folder:
        return upload(prepare(source, repo_id, Path(folder), license_name, examples), private, revision, message)


def _card(manifest: Manifest) -> "Card":
    from swin_hf.publish import Card

    contract, accuracy = manifest.input, manifest.accuracy
    figures = {"size of the program": f"{manifest.program['size_bytes']:,} bytes"}
    if accuracy:
        figures[f"{manifest.metric}, {accuracy['num_images']:.0f} held-out images"] = f"{100 * accuracy['program']:.1f} %"
        figures[f"{manifest.metric} of the model that it was made of"] = f"{100 * accuracy['model']:.1f} %"
    return Card(
        pipeline=_PIPELINES[manifest.task],
        library="executorch",
        about=(
            f"A program for ExecuTorch, recipe `{manifest.recipe}`, for images of {contract.height} x {contract.width} "
            f"pixels, {len(manifest.labels)} classes, exported with swin-hf."
        ),
        use=_USE.replace("{call}", _CALLS[manifest.task]),
        limits=_LIMITS,
        figures=figures,
    )


def add_publish_command(commands: "argparse._SubParsersAction") -> None:
    """Add `publish` to the commands of a command line, with the options of `python -m swin_hf.publish`."""
    command = add_command(
        commands, "publish", run_publish, "publish a program on the Hugging Face Hub, or show what would be uploaded"
    )
    command.add_argument("source", type=Path, metavar="DIR", help="folder of an export")
    command.add_argument("repo_id", metavar="ORG/NAME", help="repository")
    command.add_argument("--upload", action="store_true", help="upload; without it, what would be uploaded is shown")
    command.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    command.add_argument("--revision", help="branch to upload to (default: main)")
    command.add_argument("--license", dest="license_name", help="identifier for the card, like apache-2.0")
    command.add_argument("--message", help="of the commit")
    command.add_argument("--space", action="store_true", help="also a Space of this name: a page that shows the model at work")
    command.add_argument("--examples", type=Path, metavar="FOLDER", help="images to try, on the model's page and the Space's")


def run_publish(arguments: argparse.Namespace) -> int:
    from swin_hf.publish import run

    return run(arguments, prepare)
