"""Run exported programs on an emulated AArch64 processor and compare their results with this machine's (`make test-arm64`).

python tests/arm64/arm64.py  # small programs of V1, V2 and a hybrid in every recipe, on digits
python tests/arm64/arm64.py runs/demo/edge  # your own program in addition
python tests/arm64/arm64.py my_program --images FOLDER --processors cortex-a76

The emulator computes what the processor would, but not at its speed: nothing here is a latency.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # works without installing the package

from edge.quiet import quieten

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
quieten()  # before the imports that print warnings

import arm64_guest
import numpy as np
from arm64_machine import PROCESSORS, Machine, NoMachineError, prepare_machine

from edge.device.artefact import ArtefactError, read_artefact
from edge.device.environment import describe_machine
from edge.device.listing import image_files
from edge.device.parity import compare
from edge.lower.recipes import find_recipe
from swin_hf.output_folders import check_file_replaceable, check_free, read_record, write_json

RECORD = "made.json"  # in the folder of machine and programs
NUM_IMAGES = 50
SIZES = {"image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 32, "depths": [1, 2], "num_heads": [2, 4]}
CONVOLUTIONS = {"stem": "conv", "stage_blocks": ["conv", "window"], "downsample": "conv", "local_conv": 3}
SMALL = {  # what is exported
    "v1": {"version": 1},
    "v2": {"version": 2},
    # Its windows of 10 x 10 are large enough for the program to lay out their position biases itself.
    "hybrid": CONVOLUTIONS | {"image_size": 40, "window_size": 10, "padding": "tiny_vit", "norm_after_pooling": True},
}
MAX_FLOAT_DIFFERENCE = 1e-4  # of logits of an fp32 program, relative to the largest
MIN_SQNR_DB = 20.0  # of other programs, in which some values round differently
MIN_AGREEMENT = 0.95


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One program on one emulated processor compared with the same program on this machine.

    same_inputs: whether both prepared the images bit for bit alike.
    same_logits: share of images whose logits are bit for bit equal.
    relative_difference: largest difference of logits, relative to the largest logit.
    agreement: share of images with the same top class.
    error: why there is nothing to compare: the runtime refused the program, or logits are NaN or infinite.
    may_refuse: whether the runtime may refuse the program, since it computes in float16 and the processor cannot.
    """

    artefact: str
    recipe: str
    processor: str
    same_inputs: bool | None = None
    same_logits: float | None = None
    max_difference: float | None = None
    relative_difference: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    error: str | None = None
    may_refuse: bool = False

    @property
    def within_bounds(self) -> bool:
        if self.error:
            return self.may_refuse
        if self.recipe == "fp32":
            return self.relative_difference <= MAX_FLOAT_DIFFERENCE
        return self.sqnr_db >= MIN_SQNR_DB and self.agreement >= MIN_AGREEMENT


def main(argv: list[str] | None = None) -> int:
    """Compare and write the record; returns 1 if a program misses its bounds, else 0, also if there is no emulator."""
    parser = argparse.ArgumentParser(prog="tests/arm64/arm64.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("artefacts", type=Path, nargs="*", metavar="ARTEFACT_DIR", help="programs besides the small ones")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help=f"its first {NUM_IMAGES} are used (default: digits)")
    parser.add_argument("--processors", nargs="+", default=list(PROCESSORS), choices=list(PROCESSORS))
    parser.add_argument("--work_dir", type=Path, default=Path("build/arm64"), metavar="DIR", help="for machine and programs")
    parser.add_argument("--output_file", type=Path, default=Path("build/arm64/arm64.json"), metavar="FILE")
    arguments = parser.parse_args(argv)
    try:
        for artefact in arguments.artefacts:
            require_classifier(artefact)
        if arguments.images:
            image_files(arguments.images)
        check_file_replaceable(arguments.output_file)
        claim(arguments.work_dir)
        arguments.output_file.parent.mkdir(parents=True, exist_ok=True)
        machine = prepare_machine(arguments.work_dir / "machine")
        comparisons = compare_all(machine, arguments)
    except NoMachineError as error:
        print(f"skipped: {error}")
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join([describe(row) for row in comparisons]))
    missed = sum(not row.within_bounds for row in comparisons)
    print(f"{len(comparisons) - missed} of {len(comparisons)} within bounds; {arguments.output_file} has the figures")
    return int(missed > 0)


def claim(work_dir: Path) -> None:
    """Make the folder for machine and programs; one that exists must be empty or have been made here.

    Raises:
        OutputError: it holds other files.
    """
    if read_record(work_dir, RECORD) is None:
        check_free(work_dir, "--work_dir")
        work_dir.mkdir(parents=True, exist_ok=True)
        write_json(work_dir / RECORD, {"files": {}})


def require_classifier(artefact: Path) -> None:
    """Raise an `ArtefactError` unless the folder holds the program of a classifier."""
    if read_artefact(artefact)[0].task != "image-classification":
        raise ArtefactError(f"{artefact} must be a classifier, whose logits can be compared, got a backbone")


def compare_all(machine: Machine, arguments: argparse.Namespace) -> list[Comparison]:
    """Compare every program on every processor, and write the record."""
    digits = write_digits(arguments.work_dir / "digits")
    images = image_files(arguments.images or digits)[:NUM_IMAGES]
    print("== Exporting a small Swin, Swin V2 and hybrid in every recipe")
    artefacts = [*export_small_programs(arguments.work_dir, digits), *arguments.artefacts]
    print(f"== Running {len(artefacts)} programs on {len(images)} images, here and on {', '.join(arguments.processors)}")
    paths = {"artefacts": [str(path) for path in artefacts], "images": [str(path) for path in images]}
    request = arguments.work_dir / "request.json"
    request.write_text(json.dumps(paths))
    here = arm64_guest.answer(**paths)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        there = list(pool.map(lambda name: ask(machine, name, request), arguments.processors))
    comparisons = [
        compare_programs(artefact, processor, *programs)
        for processor, answer in zip(arguments.processors, there)
        for artefact, *programs in zip(artefacts, answer["programs"], here["programs"])
    ]
    record = {
        "command": " ".join(["python tests/arm64/arm64.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "emulator": machine.version,
        "emulated": {"machine": there[0]["machine"], "versions": there[0]["versions"]},
        "here": {"machine": describe_machine(), "versions": here["versions"]},
        "processors": {name: PROCESSORS[name].model for name in arguments.processors},
        "images": f"{len(images)} {'images' if arguments.images else 'handwritten digits of scikit-learn'}",
        "comparisons": [asdict(row) | {"within_bounds": row.within_bounds} for row in comparisons],
    }
    write_json(arguments.output_file, record)
    return comparisons


def write_digits(folder: Path) -> Path:
    """Write the first handwritten digits of scikit-learn as image files of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    from distill.data.digit_scenes import digit_image

    folder.mkdir(parents=True, exist_ok=True)
    for number, levels in enumerate(load_digits().images[:NUM_IMAGES]):
        digit_image(levels).save(folder / f"{number:03}.png")
    return folder


def export_small_programs(work_dir: Path, images: Path) -> list[Path]:
    """Export seeded, untrained models of each of `SMALL` in every recipe that runs here and needs no training."""
    import torch

    from edge.export.export import ExportSettings, export
    from edge.lower.recipes import RECIPES
    from swin_hf import SwinHfConfig, SwinHfForImageClassification, SwinHfImageProcessorPil

    torch.set_num_threads(1)  # a second thread pool would only wait for the runtime's
    folders = []
    for seed, (kind, choices) in enumerate(SMALL.items()):
        torch.manual_seed(seed)
        config = SwinHfConfig(**{"num_labels": 10, "weight_init": "fan_in"} | SIZES | choices)
        model = SwinHfForImageClassification(config)
        for name, parameter in model.named_parameters():
            if "bias" in name or "position" in name:
                torch.nn.init.normal_(parameter, std=0.3)  # at their initial zeros, errors in them would not show
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(part.weight, 0.5, 1.5)
                part.running_mean.normal_(std=0.2)
                part.running_var.uniform_(0.5, 1.5)
        checkpoint = work_dir / kind
        model.save_pretrained(checkpoint)
        size = dict(zip(("height", "width"), config.image_height_width))
        SwinHfImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(checkpoint)
        for recipe in RECIPES.values():
            if recipe.executable and not recipe.train_epochs:
                folders.append(work_dir / "programs" / f"{kind}-{recipe.name}")
                export(checkpoint, folders[-1], ExportSettings(recipe=recipe.name, dataset=images, self_test=False))
    return folders


def ask(machine: Machine, processor: str, request: Path) -> dict:
    """The answer of an emulated processor."""
    answer = request.with_name(f"answer-{processor}.json")
    machine.run(PROCESSORS[processor], Path(arm64_guest.__file__), request, answer)
    return json.loads(answer.read_text())


def compare_programs(artefact: Path, processor: str, there: dict, here: dict) -> Comparison:
    """Compare a program's answer on a processor with its answer here, both as in `arm64_guest.answer`."""
    recipe = find_recipe(read_artefact(artefact)[0].recipe)
    about = {"artefact": artefact.as_posix(), "recipe": recipe.name, "processor": processor}
    if "error" in there or "error" in here:
        may_refuse = recipe.float_dtype == "float16" and not PROCESSORS[processor].has_float16
        return Comparison(**about, error=there.get("error") or here["error"], may_refuse=may_refuse and "error" not in here)
    logits, reference = np.array(there["logits"]), np.array(here["logits"])
    num_undefined = int((~np.isfinite(logits)).any(axis=1).sum())
    if num_undefined:
        return Comparison(**about, error=f"logits of {num_undefined} of {len(logits)} images are NaN or infinite")
    parity = compare(logits, reference)
    return Comparison(
        **about,
        same_inputs=there["inputs_sha256"] == here["inputs_sha256"],
        same_logits=float((logits == reference).all(axis=1).mean()),
        max_difference=parity.max_difference,
        relative_difference=parity.max_difference / float(np.abs(reference).max()),
        sqnr_db=parity.sqnr_db,
        agreement=parity.agreement,
    )


def describe(row: Comparison) -> str:
    """A comparison as one line of text."""
    verdict = "MISSED" if not row.within_bounds else "refuses" if row.error else "ok"
    found = row.error or (
        f"largest difference {row.max_difference:.1e} ({row.relative_difference:.1e} of the largest logit), "
        f"SQNR {row.sqnr_db:.1f} dB, same top class {row.agreement:.0%}, same logits {row.same_logits:.0%}"
    )
    return f"{verdict:<7} {row.processor:<10} {row.artefact} ({row.recipe}): {found}"


if __name__ == "__main__":
    sys.exit(main())
