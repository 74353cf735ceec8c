"""Publish a checkpoint on the Hub with its image processor, its code and a card of measured figures.

`python -m swin_hf.publish DIR org/name` shows what would be uploaded; `--upload` uploads it.

What is published here are checkpoints. `Card`, `complete`, `upload`, `add_options` and `run` serve whatever else is
published with a card of the same form.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import transformers
from huggingface_hub import CommitInfo, ModelCard
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from transformers import (
    AutoBackbone,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageToImage,
    AutoModelForMaskedImageModeling,
    AutoModelForSemanticSegmentation,
    BaseImageProcessor,
    PreTrainedModel,
)

from .configuration_swin_hf import height_width
from .errors import ExplainedError, in_one_line
from .image_processing_swin_hf import SwinHfImageProcessorPil
from .model_card import CARD, METRICS, Card, PublishError, loading_code, write_card
from .output_folders import shown
from .quiet import hide_progress
from .spaces import check_space, make_space, pin
from .stock_swin_hf import DROPPED_BUFFERS, STOCK_VERSIONS, is_stock
from .uploading import EXAMPLES, Publication, copy_examples, is_private, upload
from .weight_files import WeightFiles, not_finite, read_weight_files, why_unreadable
from .weight_import import HEADS, OURS, architecture_of, import_model
from .working_processor import require_working_processor

PIPELINES = {  # by the end of a class name; others give features
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "image-segmentation",
    "ForImageSuperResolution": "image-to-image",
}
NAMED_CLASSES = ("ForImageClassification", "ForSemanticSegmentation")
# The Swins of transformers, in every class that an Auto class loads.
PUBLISHED_TYPES = ("swin", "swinv2", "swin2sr", "maskformer-swin", "donut-swin")
AUTO_CLASSES = (
    *(AutoModelForImageClassification, AutoModelForMaskedImageModeling, AutoModelForSemanticSegmentation),
    *(AutoModelForImageToImage, AutoBackbone, AutoModel),
)
FEATURES = "image-feature-extraction"
NO_LICENCE = "The card names no licence: add what others may do with it, like --license apache-2.0."


Prepare = Callable[[Path, str, Path, str | None, Path | None], Publication]


def prepare(
    source: str | Path, repo_id: str, folder: Path, license_name: str | None = None, examples: Path | None = None
) -> Publication:
    """Write what belongs on the Hub of a checkpoint into a new folder.

    The checkpoint is loaded and saved again: it is then known to be complete, and the code of this version lies beside it.
    A README.md of its own becomes the card; otherwise one is written. examples: folder of images to try.

    Raises:
        PublishError: it is no checkpoint, or not a complete one, or has links out of it, or `repo_id` is not the name of a
            repository.
    """
    source = Path(source)
    check_repo_id(repo_id)
    check_links(source)
    if not (source / "config.json").is_file():
        raise PublishError(
            f"{source} must be a checkpoint folder with config.json, got {'one without' if source.is_dir() else 'no folder'}; "
            "programs are published with `python -m edge publish`"
        )
    card = _save_checkpoint(source, folder)
    return complete(source, repo_id, folder, card, license_name, examples)


def publish(
    source: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    license_name: str | None = None,
    message: str | None = None,
    examples: Path | None = None,
) -> CommitInfo:
    """Upload a checkpoint folder to the Hub, in one commit.

    license_name: identifier for the card, like apache-2.0. examples: folder of images to try. The other arguments are
    those of `upload`.

    Raises:
        PublishError: as for `prepare`.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        return upload(prepare(source, repo_id, Path(folder), license_name, examples), private, revision, message)


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot name a repository.

    Raises:
        PublishError: it is not like org/name.
    """
    try:
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            raise HFValidationError("it has no organisation or user")
    except HFValidationError as error:
        raise PublishError(f"the repository must be named like org/name, got {repo_id!r}: {error}") from error


def check_links(source: Path) -> None:
    """Refuse a folder with links out of it: what lies behind them was not meant to be published with it.

    Raises:
        PublishError: it has some.
    """
    folder = source.resolve()
    entries = [Path(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)]
    outside = [path.relative_to(folder).as_posix() for path in entries if not path.resolve().is_relative_to(folder)]
    if outside:
        raise PublishError(
            f"{source} must hold what is published, got links to elsewhere: {shown(outside)}; copy the folder with `cp -rL` "
            "and publish the copy"
        )


def complete(
    source: Path, repo_id: str, folder: Path, card: Card, license_name: str | None = None, examples: Path | None = None
) -> Publication:
    """Add the `metrics.json` of the source, a card and examples to a folder of prepared files, which can then be uploaded.

    Raises:
        PublishError: `metrics.json` is not what it should be, or an example cannot be read.
    """
    if (source / METRICS).is_file():
        shutil.copyfile(source / METRICS, folder / METRICS)
    if (source / CARD).is_file():
        # A card that a training wrote loads the model by the name of its folder.
        content, own = (source / CARD).read_bytes(), f'from_pretrained("{source.resolve().name}"'.encode()
        (folder / CARD).write_bytes(content.replace(own, f'from_pretrained("{repo_id}"'.encode()))
    else:
        write_card(card, repo_id, source, folder)
    added: dict[str, object] = {}
    if license_name is not None:
        added |= {"license": license_name, "license_name": None, "license_link": None}
    if examples is not None:
        check_links(examples)
        names = copy_examples(examples, folder / EXAMPLES)
        added["widget"] = [
            {"src": f"{EXAMPLES}/{name}", "example_title": f"example {number}"} for number, name in enumerate(names, 1)
        ]
    if added:
        add_to_card(folder / CARD, source, added)
    return Publication(repo_id=repo_id, source=source, folder=folder, pipeline=card.pipeline)


def add_to_card(file: Path, source: Path, values: dict[str, object]) -> None:
    """Set fields of the header of a card, which was made of one in the folder `source`.

    Raises:
        PublishError: its header cannot be read.
    """
    try:
        card = read_card(file)
    except Exception as error:  # of YAML, of what the Hub expects in it, of letters
        how = f"{source / CARD} must have a header that the Hub reads, to be given a licence or examples"
        raise PublishError(f"{how}: {in_one_line(error)}") from error
    for name, value in values.items():
        setattr(card.data, name, value)
    card.save(file)


def read_card(file: Path) -> ModelCard:
    """A card, which need not have a header; raises anything where that cannot be read."""
    logger = logging.getLogger("huggingface_hub.repocard")
    was_disabled, logger.disabled = logger.disabled, True  # it warns of a card without a header
    try:
        return ModelCard(file.read_text(encoding="utf-8"))
    finally:
        logger.disabled = was_disabled


def names_licence(card: Path) -> bool:
    """Whether a card names a licence, or has a header that only the Hub can judge."""
    try:
        return read_card(card).data.license is not None
    except Exception:  # as in `add_to_card`
        return True


def _save_checkpoint(source: Path, folder: Path) -> Card:
    """Load a checkpoint's model and processor and save them to a folder; what a card says of them."""
    try:
        files = read_weight_files(source)
        architecture = architecture_of(files)
        stock = is_stock(files.config, PUBLISHED_TYPES)
        kind = getattr(transformers, architecture, None) if stock else OURS.get(architecture)
        if kind is None or not files.processor:
            raise PublishError(
                f"{source} must hold a Swin of swin_hf or of transformers with its preprocessor_config.json, got "
                f"{architecture or 'none'}; others are converted by python -m swin_hf.convert {source} FOLDER"
            )
        model = _whole_stock_model(kind, source, files) if stock else import_model(files)[0]
        processor = _working_processor(source, stock, model)
    except PublishError:
        raise
    except ExplainedError as error:
        raise PublishError(str(error)) from error
    except Exception as error:  # on values of a wrong type and damaged weights transformers and PyTorch raise anything
        raise PublishError(f"{source} cannot be loaded: {why_unreadable(error)}") from error
    try:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    except (StrictDataclassError, TypeError) as error:  # of values that transformers checks only here
        raise PublishError(f"{source} cannot be saved: {in_one_line(error)}; correct its JSON files") from error
    end = next((end for end in (*HEADS, *PIPELINES) if architecture.endswith(end)), "")
    return Card(
        pipeline=PIPELINES.get(end, FEATURES),
        library="transformers",
        about=_about(model, architecture, end in NAMED_CLASSES),
        use=loading_code(_auto_class_of(model), stock),
        figures={"parameters": f"{model.num_parameters():,}"},
    )


def _whole_stock_model(kind: type[PreTrainedModel], source: Path, files: WeightFiles) -> PreTrainedModel:
    """A stock model with all of its weights, and without any that it does not know.

    Raises:
        PublishError: some are missing, unknown or not finite.
    """
    if bad := not_finite(files.weights):
        raise PublishError(f"{source} must hold finite weights, got {bad}; take an earlier checkpoint of this model")
    model, report = kind.from_pretrained(source, local_files_only=True, output_loading_info=True)
    missing, unknown = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    unknown = [name for name in unknown if name.rsplit(".", 1)[-1] not in DROPPED_BUFFERS]
    for what, names in (("lacks weights of", missing), ("has weights that are unknown to", unknown)):
        if names:
            raise PublishError(
                f"{source} {what} {kind.__name__}: {', '.join(map(str, names[:5]))}; other names are read by "
                f"python -m swin_hf.convert {source} FOLDER"
            )
    return model


def _working_processor(source: Path, stock: bool, model: PreTrainedModel) -> BaseImageProcessor:
    """The image processor of a checkpoint, tried on an image."""
    processor_class = AutoImageProcessor if stock else SwinHfImageProcessorPil
    processor = processor_class.from_pretrained(source, local_files_only=True)
    config = getattr(model.config, "backbone_config", None) or model.config
    require_working_processor(processor, config.num_channels, source, PublishError)
    return processor


def _auto_class_of(model: PreTrainedModel) -> str:
    """The Auto class that loads a model as what it is.

    Raises:
        PublishError: there is none.
    """
    for auto_class in AUTO_CLASSES:
        if auto_class._model_mapping.get(type(model.config), None) is type(model):
            return auto_class.__name__
    raise PublishError(f"{type(model).__name__} must be a model that one of transformers' Auto classes loads; there is none")


def _about(model: PreTrainedModel, architecture: str, has_classes: bool) -> str:
    config = getattr(model.config, "backbone_config", None) or model.config
    height, width = height_width(config.image_size)
    is_second = getattr(config, "version", STOCK_VERSIONS.get(config.model_type)) == 2
    classes = f", {model.config.num_labels} classes" if has_classes else ""
    return f"A Swin Transformer{' V2' * is_second} (`{architecture}`) for images of {height} x {width} pixels{classes}."


def add_options(parser: argparse.ArgumentParser, source: str = "checkpoint folder") -> None:
    """Give a command line the arguments that `run` reads; `source` is the help of the first."""
    parser.add_argument("source", type=Path, metavar="DIR", help=source)
    parser.add_argument("repo_id", metavar="ORG/NAME", help="repository")
    parser.add_argument("--upload", action="store_true", help="upload; without it, what would be uploaded is shown")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to upload to (default: main)")
    parser.add_argument("--license", dest="license_name", help="identifier for the card, like apache-2.0")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--space", action="store_true", help="also a Space of this name: a page that shows the model at work")
    parser.add_argument("--examples", type=Path, metavar="FOLDER", help="images to try, on the model's page and the Space's")


def run(options: argparse.Namespace, prepare: Prepare) -> int:
    """Show what would be uploaded, or upload it: 0 if that worked, 1 after an error that was explained on stderr."""
    try:
        if options.space:
            check_space()
        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare(options.source, options.repo_id, Path(folder, "model"), options.license_name, options.examples)
            space = make_space(prepared, Path(folder, "space")) if options.space else None
            no_licence = not names_licence(prepared.folder / CARD)
            if options.upload:
                commit = upload(prepared, options.private, options.revision, options.message)
                print(f"{options.source} -> {commit.repo_url}, commit {commit.oid}")
                if space:
                    hidden = is_private(options.repo_id)  # as the model is, whoever made that so
                    pin(space, commit.oid)
                    print(f"page -> {upload(space, hidden, message=options.message).repo_url}")
                    if hidden:
                        print("give the page, in its settings, a secret HF_TOKEN that may read the model")
                if no_licence:
                    print(NO_LICENCE)
                return 0
            kind = "private" if options.private else "public, unless it exists already or its organisation has another default"
            print(f"{options.repo_id} ({kind}), branch {options.revision or 'main'}:\n{prepared}\n")
            print((prepared.folder / CARD).read_text(encoding="utf-8"))
            if space:
                print(f"Space {options.repo_id} (private if the model is):\n{space}\n")
            print("Nothing was uploaded; add --upload.")
            if no_licence:
                print(NO_LICENCE)
    except (ExplainedError, OSError) as error:  # with OSError, whatever the Hub refuses
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m swin_hf.publish", description="Publish a checkpoint on the Hugging Face Hub.", allow_abbrev=False
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    hide_progress()
    return run(options, prepare)


if __name__ == "__main__":
    sys.exit(main())
