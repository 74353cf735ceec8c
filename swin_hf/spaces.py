"""A Space of the Hub that shows a published model at work: the page of `python -m edge demo`.

The code of this version lies beside its app, so that it runs what was tried here, whether or not this version was released.
"""

import importlib.metadata
import shutil
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import RepoCard, SpaceCardData

from .model_card import CARD, PublishError
from .uploading import EXAMPLES, Publication
from .weight_files import read_json_object

DISTRIBUTION, PAGE = "swin-hf", "gradio"
PACKAGES = ("swin_hf", "edge")  # what the page runs
PROGRAM = "edge.json"  # the manifest of a program, which needs ExecuTorch
PYTHON = "3.11"
SHOWN = ("image-classification", "image-segmentation")
LICENSE = "LICENSE"  # of the code
APP = """\"\"\"Shows {repo_id} at work, with the code of swin-hf {version}, which lies beside this file.\"\"\"

from edge.verbs.demo import serve

serve(["{repo_id}{commit}"], {examples}, is_public=True)
"""
TEXT = """
# {name} at work

[{repo_id}](https://huggingface.co/{repo_id}) on a photograph of yours: its classes, and where it can say so, what speaks for
them. `python -m edge demo {repo_id}` opens the same page on your own computer. The code here is swin-hf's, under the Apache
License 2.0; the model has its own licence.
"""


def check_space() -> None:
    """Find out before any work whether a Space can be written.

    Raises:
        PublishError: Gradio or this package is not installed.
    """
    for name, extra in ((DISTRIBUTION, ""), (PAGE, "[demo]")):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            how = f'pip install "{DISTRIBUTION}{extra}", or in a clone of it: pip install -e ".{extra}"'
            raise PublishError(f"--space needs {name} to be installed, whose version it names; {how}") from error


def make_space(model: Publication, folder: Path) -> Publication:
    """Write a Space for what is to be published, with its examples, into a new folder; `pin` it before its upload.

    Raises:
        PublishError: the page could not show the model.
    """
    is_program = (model.folder / PROGRAM).is_file()
    if model.pipeline not in SHOWN or not (is_program or is_ours(model.folder)):
        raise PublishError(f"--space shows classifiers and segmenters of swin_hf, and programs of them, got {model.source}")
    folder.mkdir(parents=True)
    for package in PACKAGES:
        source = Path(find_spec(package).submodule_search_locations[0])
        for file in sorted(source.rglob("*.py")):
            copy = folder / package / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    if (model.folder / EXAMPLES).is_dir():
        shutil.copytree(model.folder / EXAMPLES, folder / EXAMPLES)
    extras = ("edge",) if is_program else ()
    lines = ["--extra-index-url https://download.pytorch.org/whl/cpu", *requirements_of(extras)]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    name = model.repo_id.split("/")[1]
    data = SpaceCardData(
        title=f"{name} at work",
        sdk=PAGE,
        sdk_version=importlib.metadata.version(PAGE),
        python_version=PYTHON,
        app_file="app.py",
        models=[model.repo_id],
    )
    text = TEXT.format(name=name, repo_id=model.repo_id)
    RepoCard(f"---\n{data.to_yaml()}\n---\n{text}").save(folder / CARD)
    if text := license_of_code():
        (folder / LICENSE).write_text(text, encoding="utf-8")
    space = Publication(repo_id=model.repo_id, source=model.source, folder=folder, repo_type="space")
    pin(space, "")
    return space


def pin(space: Publication, commit: str) -> None:
    """Let the page of a Space load this commit of its model."""
    text = APP.format(
        repo_id=space.repo_id,
        version=importlib.metadata.version(DISTRIBUTION),
        commit=f"@{commit}" if commit else "",
        examples=f'"{EXAMPLES}"' if (space.folder / EXAMPLES).is_dir() else None,
    )
    (space.folder / "app.py").write_text(text, encoding="utf-8")


def license_of_code() -> str:
    """The text of this package's licence, as it was installed or, in a clone of it, beside the package; else empty."""
    beside = Path(__file__).parents[1] / LICENSE
    installed = importlib.metadata.distribution(DISTRIBUTION).read_text(f"licenses/{LICENSE}")
    return installed or (beside.read_text(encoding="utf-8") if beside.is_file() else "")


def is_ours(folder: Path) -> bool:
    """Whether a checkpoint is one of swin_hf's models, which the page loads, and not one of transformers'."""
    return str(read_json_object(folder / "config.json").get("model_type", "")).startswith("swin_hf")


def requirements_of(extras: tuple[str, ...]) -> list[str]:
    """What this package needs, with some of its extras, but for itself."""
    wanted = {"", *(f'extra == "{extra}"' for extra in extras)}
    lines = [[part.strip() for part in line.partition(";")] for line in importlib.metadata.requires(DISTRIBUTION)]
    return [needed for needed, _, marker in lines if marker in wanted and not needed.startswith(DISTRIBUTION)]
