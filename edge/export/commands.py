"""The commands export, verify and sensitivity."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edge.device.commands import add_command, add_json, add_verify, numbers, positive, print_figures, print_json
from edge.device.errors import ExplainedError
from edge.device.printable import printable
from edge.lower.recipes import RECIPES, find_recipe

if TYPE_CHECKING:
    from edge.device.artefact import Manifest


def add_export(commands) -> argparse.ArgumentParser:
    command = add_command(
        commands,
        "export",
        run_export,
        "turn a checkpoint folder into a .pte that was checked on real images",
        epilog="recipes: " + "; ".join(f"{recipe.name}: {recipe.summary}" for recipe in RECIPES.values()),
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT_DIR")
    command.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="a new folder or an earlier export")
    command.add_argument("--recipe", type=recipe, default="int8", help=f"{', '.join(RECIPES)} (default: int8)")
    command.add_argument(
        "--dataset",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="real images to calibrate and check on, a folder or a saved data set",
    )
    command.add_argument(
        "--validation",
        type=Path,
        metavar="FOLDER",
        help="held-out images in class folders or a saved data set, for accuracy and temperature; of a segmenter, a folder "
        "with images and masks (default: none)",
    )
    command.add_argument(
        "--explain",
        action="store_true",
        help="of a classifier: put out class maps too, which say what each place adds to the logits",
    )
    command.add_argument(
        "--enlarge",
        action="store_true",
        help="of a segmenter: put out logits at the size of the image, instead of smaller ones",
    )
    command.add_argument(
        "--class_map",
        action="store_true",
        help="of a segmenter: put out the class of every pixel, at the size of the image, instead of logits",
    )
    command.add_argument(
        "--input_dtype", choices=("float32", "uint8"), default="float32", help="of the program's input (default: float32)"
    )
    command.add_argument(
        "--sizes", type=sizes, default=(), help="of the images, a method each: 224,192x256 (default: the model's)"
    )
    command.add_argument("--batch_sizes", type=numbers, default=(1,), help="of the images, a method each: 1,4 (default: 1)")
    command.add_argument(
        "--no_self_test", action="store_true", help="leave out self_test.bpte, which is as large as the program"
    )
    add_json(command)
    return command


def run_export(arguments: argparse.Namespace) -> int:
    from edge.export.export import ExportSettings, export

    settings = ExportSettings(
        recipe=arguments.recipe,
        dataset=arguments.dataset,
        validation=arguments.validation,
        input_dtype=arguments.input_dtype,
        sizes=arguments.sizes,
        batch_sizes=arguments.batch_sizes,
        enlarge=arguments.enlarge,
        class_map=arguments.class_map,
        explain=arguments.explain,
        self_test=not arguments.no_self_test,
    )
    manifest = export(checkpoint_of(arguments.checkpoint), arguments.output_dir, settings)
    if arguments.json:
        print_json(asdict(manifest))
    else:
        print(describe(manifest, arguments.output_dir))
    return 0


def checkpoint_of(folder: Path) -> Path:
    """The folder itself, or, of an export, the checkpoint beside it that it was made of.

    Raises:
        ArtefactError: it is an export whose checkpoint is not there.
    """
    from edge.device.artefact import MANIFEST_FILE, ArtefactError, read_manifest, recorded_checkpoint

    if not (folder / MANIFEST_FILE).is_file():
        return folder
    manifest = read_manifest(folder)
    checkpoint = recorded_checkpoint(folder, manifest)
    if checkpoint is None or not checkpoint.is_dir():
        raise ArtefactError(
            f"{folder} is an export of {manifest.source.checkpoint}, which is not beside it; give the checkpoint"
        )
    return checkpoint


def describe(manifest: "Manifest", output_dir: Path) -> str:
    """An export as text."""
    program = manifest.program
    outside = ", ".join(f"{count} x {name}" for name, count in program["outside"].items()) or "none"
    lines = [
        f"{output_dir}/model.pte: {program['size_bytes'] / 1e3:.0f} kB, recipe {manifest.recipe}",
        f"delegates: {program['num_delegates']}, operators left outside: {outside}",
        "against the model, on real images:",
    ]
    for stage, parity in manifest.parity.items():
        figures = {
            "max difference {:.1e}": parity["max_difference"],
            "SQNR {:.1f} dB": parity["sqnr_db"],
            "top class agrees on {:.1%}": parity["agreement"],
            "KL {:.1e}": parity["kl"],
        }
        told = ", ".join(text.format(value) for text, value in figures.items() if value is not None)
        lines.append(f"  {stage:>12}: {told} (n = {parity['num_images']})")
    if manifest.accuracy:
        accuracy = manifest.accuracy
        lines.append(
            f"{manifest.metric} on {accuracy['num_images']} held-out images: model {accuracy['model']:.1%}, program "
            f"{accuracy['program']:.1%}" + (f"; temperature {manifest.temperature:.2f}" if manifest.is_classifier else "")
        )
    if manifest.kept_in_float:
        lines.append(f"kept in float to stay close to the model: {', '.join(manifest.kept_in_float)}")
    if not RECIPES[manifest.recipe].executable:
        lines.append(f"not run: a {manifest.backend} program needs its device; only the graph before lowering was checked")
    return "\n".join(lines)


def add_verify_with_checkpoint(commands) -> argparse.ArgumentParser:
    """The device's command `verify`, which also takes saved data sets and compares with the checkpoint."""
    command = add_verify(
        commands,
        "check the accuracy of the program, and its agreement with the checkpoint",
        "images, best in class folders, or a saved data set (default: the test images of the run that it lies in)",
        has_default=True,
    )
    help_text = "default: the one it was exported from, if it lies beside the artefact"
    command.add_argument("--checkpoint", type=Path, metavar="CHECKPOINT_DIR", help=help_text)
    command.set_defaults(run=run_verify)
    return command


def run_verify(arguments: argparse.Namespace) -> int:
    from edge.export.own_images import images_to_judge_on, warning_of_training_images
    from edge.export.verify import verify

    dataset = images_to_judge_on(arguments.artefact, arguments.dataset)
    figures = verify(arguments.artefact, dataset, arguments.checkpoint)
    if warning := warning_of_training_images(arguments.artefact, dataset, figures["num_images"]):
        print(printable(warning), file=sys.stderr)
    print_figures(figures, arguments.json)
    return 0


def add_sensitivity(commands) -> argparse.ArgumentParser:
    command = add_command(
        commands, "sensitivity", run_sensitivity, "rank layers by what their quantization alone does to the outputs"
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT_DIR")
    command.add_argument("--recipe", type=recipe, default="int8-static", help="one that quantizes (default: int8-static)")
    command.add_argument(
        "--dataset", type=Path, required=True, metavar="FOLDER", help="real images, a folder or a saved data set"
    )
    add_json(command)
    return command


def run_sensitivity(arguments: argparse.Namespace) -> int:
    from edge.export.export import ExportSettings, sensitivity

    rows = sensitivity(arguments.checkpoint, ExportSettings(recipe=arguments.recipe, dataset=arguments.dataset))
    if arguments.json:
        print_json([asdict(row) for row in rows])
    else:
        for row in rows:
            print(f"{row.sqnr_db:7.1f} dB  {row.precision:<12}  {row.layer}")
    return 0


def recipe(name: str) -> str:
    """The name of a recipe."""
    try:
        return find_recipe(name).name
    except ExplainedError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """224,192x256: (height, width) of each"""
    pairs = [part.split("x") for part in text.split(",")]
    if any(len(pair) > 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"must be sizes like 224 or 192x256, got {text!r}")
    return tuple((positive(pair[0]), positive(pair[-1])) for pair in pairs)
