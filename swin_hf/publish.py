"""Publish a model on the Hub with its image processor, its code and a card of measured figures.

`python -m swin_hf.publish DIR org/name` shows what would be uploaded; `--upload` uploads it.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import CommitInfo, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoImageProcessor, PreTrainedModel

from .configuration_swin_hf import height_width
from .image_processing_swin_hf import SwinHfImageProcessorPil
from .stock_swin_hf import STOCK_VERSIONS, is_stock
from .weight_files import ConversionError, read_json_object, read_weight_files
from .weight_import import HEADS, OURS, import_model

PIPELINES = {  # by the end of a class name; others give features
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "image-segmentation",
}
FEATURES = "image-feature-extraction"
MANIFEST, CARD, METRICS = "edge.json", "README.md", "metrics.json"
PROGRAM_FILES = ("edge.json", "export.json", "preprocessor_config.json")  # of a device artefact, beside those it has sums of


class PublishError(ValueError):
    """A folder cannot be published as it is; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is to be uploaded: the files of a prepared folder, and the names of those that stay behind."""

    repo_id: str
    folder: Path
    left_out: list[str]

    @property
    def files(self) -> dict[str, int]:
        """Size in bytes of every file, by its path in the repository."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}

    def __str__(self) -> str:
        lines = [f"{size:>12,}  {name}" for name, size in self.files.items()]
        left_out = [f"left out: {', '.join(self.left_out)}"] if self.left_out else []
        return "\n".join([*lines, f"{sum(self.files.values()):>12,}  bytes in all", *left_out])


def prepare(source: str | Path, repo_id: str, folder: Path, license_name: str | None = None) -> Publication:
    """Write what belongs on the Hub of a checkpoint or a device artefact into a new folder.

    A checkpoint is loaded and saved again, so that it is known to be whole and has the code of this version beside it. A
    README.md of its own becomes the card; otherwise one is written.

    Raises:
        PublishError: it is neither, is not whole, or `repo_id` is no name of a repository.
    """
    source = Path(source)
    try:
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            raise HFValidationError("it has no organisation or user")
    except HFValidationError as error:
        raise PublishError(f"the repository must be named like org/name, got {repo_id!r}: {error}") from error
    if (source / MANIFEST).is_file():
        details = _copy_program(source, folder)
    elif (source / "config.json").is_file():
        details = _save_checkpoint(source, folder)
    else:
        raise PublishError(f"{source} must be a folder with config.json, or with {MANIFEST} of an export; it has neither")
    if (source / METRICS).is_file():
        shutil.copyfile(source / METRICS, folder / METRICS)
    if (source / CARD).is_file():
        shutil.copyfile(source / CARD, folder / CARD)
    else:
        _write_card(source, repo_id, details, folder, license_name)
    written = {path.name for path in folder.iterdir()}
    return Publication(
        repo_id=repo_id, folder=folder, left_out=sorted(path.name for path in source.iterdir() if path.name not in written)
    )


def publish(
    source: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    license_name: str | None = None,
    message: str | None = None,
) -> CommitInfo:
    """Upload a checkpoint folder or a device artefact to the Hub, in one commit.

    Access is huggingface_hub's: `hf auth login` or `HF_TOKEN`. Without changes there is no new commit.

    private: whether a new repository is; an existing one stays as it is. None: as the organisation has it.
    revision: branch to upload to, made from main if it is new.

    Raises:
        PublishError: as for `prepare`.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        publication = prepare(source, repo_id, Path(folder), license_name)
        hub = HfApi(library_name="swin-hf")
        hub.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        return hub.upload_folder(
            repo_id=repo_id,
            folder_path=publication.folder,
            revision=revision,
            commit_message=message or f"Upload {Path(source).resolve().name} with swin-hf",
        )


def _save_checkpoint(source: Path, folder: Path) -> dict[str, Any]:
    """A checkpoint's model and processor saved anew, and what a card says of them."""
    try:
        files = read_weight_files(source)
        architecture = (files.config.get("architectures") or [""])[0]
        stock = is_stock(files.config)
        kind = getattr(transformers, architecture, None) if stock else OURS.get(architecture)
        if kind is None or not files.processor:
            raise PublishError(
                f"{source} must hold a Swin of swin_hf or of transformers with its preprocessor_config.json, got "
                f"{architecture or 'none'}; others are converted by python -m swin_hf.convert {source} FOLDER"
            )
        model, _ = import_model(files)  # which is strict: nothing is missing, nothing is lost
        if stock:
            model = kind.from_pretrained(source, local_files_only=True)
        processor_class = AutoImageProcessor if stock else SwinHfImageProcessorPil
        processor = processor_class.from_pretrained(source, local_files_only=True)
    except (ConversionError, OSError, ValueError) as error:
        raise error if isinstance(error, PublishError) else PublishError(str(error)) from error
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    end = next((end for end in HEADS if architecture.endswith(end)), "")
    auto_class = "AutoBackbone" if end == "Backbone" else f"Auto{'Model' * (end != 'Model')}{end}"
    return {
        "pipeline": PIPELINES.get(end, FEATURES),
        "library": "transformers",
        "about": _about(model, architecture, end in PIPELINES),
        "use": (_USE_STOCK if stock else _USE).format(auto_class=auto_class, repo_id="{repo_id}"),
        "figures": {"parameters": f"{model.num_parameters():,}"},
        "step": source.resolve().name,
    }


def _about(model: PreTrainedModel, architecture: str, has_classes: bool) -> str:
    config = getattr(model.config, "backbone_config", None) or model.config
    height, width = height_width(config.image_size)
    is_second = getattr(config, "version", STOCK_VERSIONS.get(config.model_type)) == 2
    classes = f", {model.config.num_labels} classes" if has_classes else ""
    return f"A Swin Transformer{' V2' * is_second} (`{architecture}`) for images of {height} x {width} pixels{classes}."


def _copy_program(source: Path, folder: Path) -> dict[str, Any]:
    """A device artefact whose files are the ones it was exported with, and what a card says of it."""
    try:
        manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        sums, recipe, contract = manifest["sha256"], manifest["recipe"], manifest["input"]
        for name, expected in sums.items():
            if Path(name).name != name:
                raise PublishError(f"{source / MANIFEST} must name files beside it, got {name!r}")
            if hashlib.sha256((source / name).read_bytes()).hexdigest() != expected:
                raise PublishError(f"{source / name} is not the file that {MANIFEST} describes; export it again")
        for name in {*sums, *PROGRAM_FILES}:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        about = (
            f"A program for ExecuTorch, recipe `{recipe}`, for images of {contract['height']} x {contract['width']} pixels, "
            f"{len(manifest['labels'])} classes, exported with swin-hf."
        )
        figures = {"size of the program": f"{manifest['program']['size_bytes']:,} bytes"}
        if accuracy := manifest.get("accuracy"):
            figures[f"accuracy, {accuracy['num_images']} held-out images"] = f"{100 * accuracy['program']:.1f} %"
            figures["accuracy of the model that it was made of"] = f"{100 * accuracy['model']:.1f} %"
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, PublishError):
            raise
        raise PublishError(f"{source} must hold a whole export with its {MANIFEST}: {error!r}") from error
    return {
        "pipeline": manifest["task"] if manifest["task"] in PIPELINES.values() else FEATURES,
        "library": "executorch",
        "about": about,
        "use": _USE_PROGRAM,
        "figures": figures,
        "step": f"{recipe} .pte",
    }


def _write_card(source: Path, repo_id: str, details: dict[str, Any], folder: Path, license_name: str | None) -> None:
    """A model card of what is known and what was measured, nothing else."""
    figures, results = dict(details["figures"]), None
    measured = _row_of_report(source, details["step"])
    if measured:
        low, high, n = (measured.get(name) for name in ("low", "high", "n"))
        figures[f"accuracy, {n} test images"] = f"{100 * measured['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        results = [
            EvalResult(
                task_type=details["pipeline"],
                dataset_type=measured["dataset"],
                dataset_name=measured["dataset"],
                metric_type="accuracy",
                metric_value=measured["accuracy"],
            )
        ]
    metrics = _read_if_there(source / METRICS).items()
    numbers = {name: value for name, value in metrics if type(value) in (int, float) and math.isfinite(value)}
    figures |= {name.replace("_", " "): f"{value:.4g}" for name, value in numbers.items()}
    data = ModelCardData(
        library_name=details["library"],
        pipeline_tag=details["pipeline"],
        license=license_name,
        tags=["swin", "swin_hf"],
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results,
    )
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {repo_id.split('/')[-1]}\n\n{details['about']}\n\n"
        f"## Use\n\n{details['use'].format(repo_id=repo_id)}\n"
        f"## Measured\n\n| figure | value |\n|---|---|\n{rows}\n"
    )
    ModelCard(text).save(folder / CARD)


def _row_of_report(source: Path, step: str) -> dict[str, Any] | None:
    """What the pipeline's report, beside the folder, measured of this step."""
    report = _read_if_there(source.resolve().parent / "report.json")
    needed = {"step", "accuracy", "low", "high", "n"}
    rows = [row for row in report.get("rows", []) if needed <= row.keys() and row["step"] == step]
    return rows[0] | {"dataset": str(report.get("dataset"))} if rows else None


def _read_if_there(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    try:
        return read_json_object(path) if path.is_file() else {}
    except ConversionError as error:
        raise PublishError(str(error)) from error


_USE = """```python
from transformers import AutoImageProcessor, {auto_class}

model = {auto_class}.from_pretrained("{repo_id}", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("{repo_id}", trust_remote_code=True)
```

With `pip install swin-hf` and `import swin_hf`, no code of this repository is run and `trust_remote_code` is not needed.
"""
_USE_STOCK = """```python
from transformers import AutoImageProcessor, {auto_class}

model = {auto_class}.from_pretrained("{repo_id}")
processor = AutoImageProcessor.from_pretrained("{repo_id}")
```
"""
_USE_PROGRAM = """```bash
pip install "swin-hf[edge]"
hf download {repo_id} --local-dir program
python -m edge run program photo.jpg
```
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m swin_hf.publish", description="Publish a model on the Hugging Face Hub.")
    parser.add_argument("source", type=Path, help="checkpoint folder, or the folder of an export")
    parser.add_argument("repo_id", help="repository, like org/name")
    parser.add_argument("--upload", action="store_true", help="upload; without it, what would be uploaded is shown")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to upload to (default: main)")
    parser.add_argument("--license", dest="license_name", help="identifier for the card, like apache-2.0")
    parser.add_argument("--message", help="of the commit")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = vars(make_parser().parse_args(arguments))
    upload, source, repo_id = options.pop("upload"), options["source"], options["repo_id"]
    try:
        if upload:
            commit = publish(**options)
            print(f"{source} -> {commit.repo_url}, commit {commit.oid}")
            return 0
        with tempfile.TemporaryDirectory() as folder:
            publication = prepare(source, repo_id, Path(folder), options["license_name"])
            kind = "private" if options["private"] else "public, unless it is there or the organisation has it otherwise"
            print(f"{repo_id} ({kind}), branch {options['revision'] or 'main'}:\n{publication}\n")
            print((publication.folder / CARD).read_text(encoding="utf-8"))
            print("Nothing was uploaded; add --upload.")
    except (PublishError, HfHubHTTPError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
