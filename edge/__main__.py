"""Command line of the device side.

python -m edge export runs/demo/recovered --out my_model --recipe int8
python -m edge run runs/demo/edge runs/demo/samples/7_0.png
python -m edge bench runs/demo/edge --compare
python -m edge verify runs/demo/edge --data runs/demo/samples
python -m edge self-test runs/demo/edge
python -m edge app android runs/demo/edge --out my_app
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from edge.lower.recipes import RECIPES
from edge.quiet import quieten

PLATFORMS = ("android", "ios", "react-native")


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 if it did all it was asked, 1 after an error that was explained on stderr."""
    arguments = make_parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a checkpoint folder is read in no time
    quieten()
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edge", description="Swin models on the device.")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser(
        "export",
        help="turn a checkpoint folder into a .pte that was checked on real images",
        epilog="recipes: " + "; ".join(f"{recipe.name}: {recipe.summary}" for recipe in RECIPES.values()),
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT_DIR")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--recipe", default="int8", help=f"{', '.join(RECIPES)} (default: int8)")
    command.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="real images to calibrate and check on, a folder or a saved data set (default: those of the run)",
    )
    command.add_argument(
        "--validation",
        type=Path,
        metavar="FOLDER",
        help="held-out images in class folders, for accuracy and temperature (default: those of the run)",
    )
    command.add_argument("--input", default="float32", help="what the program takes: float32 (default) or uint8")
    command.add_argument(
        "--sizes", type=sizes, default=(), help="of the images, a method each: 224,192x256 (default: the model's)"
    )
    command.add_argument("--batch-sizes", type=numbers, default=(1,), help="of the images, a method each: 1,4 (default: 1)")
    command.add_argument(
        "--no-self-test", action="store_true", help="leave out self_test.bpte, which is as large as the program"
    )
    command.set_defaults(run=run_export)

    command = commands.add_parser("run", help="classify images; needs no transformers")
    command.add_argument("artefact", type=Path, metavar="DIR")
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    command.add_argument("--top-k", type=positive, default=5)
    command.set_defaults(run=run_images)

    command = commands.add_parser("bench", help="measure load time, latency and memory on this machine")
    command.add_argument("artefact", type=Path, metavar="DIR")
    command.add_argument("--threads", type=numbers, help="numbers of threads: 1,2,4 (default: 1 to all cores)")
    command.add_argument("--repeats", type=positive, default=100)
    command.add_argument("--compare", action="store_true", help="also time other engines with the same model, in turns")
    command.add_argument(
        "--checkpoint", type=Path, metavar="CHECKPOINT_DIR", help="of --compare; default: the one it came from"
    )
    command.set_defaults(run=run_bench)

    command = commands.add_parser("verify", help="check accuracy and agreement with the checkpoint")
    command.add_argument("artefact", type=Path, metavar="DIR")
    command.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="images, best in class folders")
    command.add_argument("--checkpoint", type=Path, metavar="CHECKPOINT_DIR", help="default: the one it was exported from")
    command.set_defaults(run=run_verify)

    command = commands.add_parser("self-test", help="run the program on the images bundled with it; needs no transformers")
    command.add_argument("artefact", type=Path, metavar="DIR")
    command.set_defaults(run=run_self_test)

    command = commands.add_parser("sensitivity", help="which layers a recipe hurts most, one rounded at a time")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT_DIR")
    command.add_argument("--recipe", default="int8-static")
    command.add_argument("--data", type=Path, metavar="FOLDER", help="real images (default: those of the run)")
    command.set_defaults(run=run_sensitivity)

    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser("app", help="write the source of a phone app around a program")
    command.add_argument("platform", choices=PLATFORMS)
    command.add_argument("artefact", type=Path, metavar="DIR")
    command.add_argument("--out", type=Path, metavar="APP_DIR", help="default: DIR-PLATFORM")
    command.set_defaults(run=run_app)
    return parser


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value


def numbers(text: str) -> tuple[int, ...]:
    """1,4"""
    return tuple(positive(part) for part in text.split(","))


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """224,192x256: (height, width) of each"""
    pairs = [part.split("x") for part in text.split(",")]
    if any(len(pair) > 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"must be sizes like 224 or 192x256, got {text!r}")
    return tuple((positive(pair[0]), positive(pair[-1])) for pair in pairs)


# Each command imports what it needs: `run`, `bench`, `self-test`, `app` and `verify` against labels work where only ExecuTorch
# is installed.


def run_export(arguments: argparse.Namespace) -> int:
    from edge.export.export import ExportSettings, export

    settings = ExportSettings(
        recipe=arguments.recipe,
        data=arguments.data,
        validation=arguments.validation,
        input_dtype=arguments.input,
        sizes=arguments.sizes,
        batch_sizes=arguments.batch_sizes,
        self_test=not arguments.no_self_test,
    )
    manifest = export(arguments.checkpoint, arguments.out, settings)
    if arguments.json:
        print(json.dumps(asdict(manifest), indent=2, ensure_ascii=False))
        return 0
    program = manifest.program
    outside = ", ".join(f"{count} x {name}" for name, count in program["outside"].items()) or "none"
    print(f"{arguments.out}/model.pte: {program['size_bytes'] / 1e3:.0f} kB, recipe {manifest.recipe}")
    print(f"delegates: {program['num_delegates']}, operators left outside: {outside}")
    print("against the model, on real images:")
    for stage, parity in manifest.parity.items():
        top = "" if parity["agreement"] is None else f", top class agrees on {parity['agreement']:.1%}, KL {parity['kl']:.1e}"
        print(
            f"  {stage:>12}: max difference {parity['max_difference']:.1e}, SQNR {parity['sqnr_db']:.1f} dB{top} "
            f"(n = {parity['num_images']})"
        )
    if manifest.accuracy:
        accuracy = manifest.accuracy
        print(
            f"accuracy on {accuracy['num_images']} held-out images: model {accuracy['model']:.1%}, program "
            f"{accuracy['program']:.1%}; temperature {manifest.temperature:.2f}"
        )
    if manifest.kept_in_float:
        print(f"kept in float to follow the model: {', '.join(manifest.kept_in_float)}")
    if not RECIPES[manifest.recipe].executable:
        print(f"not run: a {manifest.backend} program needs its device; what was lowered was checked, not what it computes")
    return 0


def run_images(arguments: argparse.Namespace) -> int:
    from edge.device.image import UnreadableImageError
    from edge.device.runner import Runner

    runner = Runner(arguments.artefact)
    results, failed = [], False
    for image in arguments.images:
        try:
            results.append((image, runner.classify(image, arguments.top_k)))
        except UnreadableImageError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    if arguments.json:
        rows = [{"image": str(image), "predictions": [vars(p) for p in predictions]} for image, predictions in results]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for image, predictions in results:
            print(image)
            for prediction in predictions:
                print(f"  {prediction.probability:7.2%}  {prediction.label}")
    return int(failed)


def run_bench(arguments: argparse.Namespace) -> int:
    from edge.device.bench import bench, describe

    checkpoint, most_threads = None, max(arguments.threads or [os.cpu_count() or 1])
    if arguments.compare:
        from edge.compare.peers import checkpoint_to_compare, compare_with_peers

        checkpoint = checkpoint_to_compare(arguments.artefact, arguments.checkpoint)
    figures = bench(arguments.artefact, arguments.repeats, arguments.threads)
    if checkpoint is not None:
        figures["compared"] = compare_with_peers(arguments.artefact, checkpoint, arguments.repeats, most_threads)
    print(json.dumps(figures, indent=2) if arguments.json else describe(figures))
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    from edge.device.verify import verify

    figures = verify(arguments.artefact, arguments.data, arguments.checkpoint)
    if arguments.json:
        print(json.dumps(figures, indent=2, ensure_ascii=False))
    else:
        for name, value in figures.items():
            print(f"{name:>16}: {value:.4g}" if isinstance(value, float) else f"{name:>16}: {value}")
    return 0


def run_self_test(arguments: argparse.Namespace) -> int:
    from edge.device.verify import self_test

    num_images, tolerance = self_test(arguments.artefact)
    if arguments.json:
        print(json.dumps({"num_images": num_images, "tolerance": tolerance}))
    else:
        print(f"{num_images} bundled images: the outputs are those of where it was exported, to within {tolerance:.2g}")
    return 0


def run_sensitivity(arguments: argparse.Namespace) -> int:
    from edge.export.export import ExportSettings, sensitivity

    rows = sensitivity(arguments.checkpoint, ExportSettings(recipe=arguments.recipe, data=arguments.data))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        for row in rows:
            print(f"{row.sqnr_db:7.1f} dB  {row.precision:<12}  {row.layer}")
    return 0


def run_app(arguments: argparse.Namespace) -> int:
    from edge.apps.writer import write_app

    artefact = arguments.artefact.resolve()
    out = arguments.out or artefact.with_name(f"{artefact.name}-{arguments.platform}")
    for path in write_app(arguments.platform, arguments.artefact, out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
