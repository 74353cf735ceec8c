"""Command line of the device side.

python -m edge export runs/demo/recovered --out my_model --recipe int8
python -m edge run runs/demo/edge runs/demo/samples/7_0.png
python -m edge bench runs/demo/edge
python -m edge verify runs/demo/edge --data runs/demo/samples
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from edge.quiet import quieten


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 if it did all it was asked, 1 after an error that was explained on stderr."""
    parser = argparse.ArgumentParser(prog="python -m edge", description="Swin models on the device.")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("export", help="turn a checkpoint folder into a .pte that was checked on real images")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT_DIR")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--recipe", default="int8", help="int8 (default) or fp32")
    command.add_argument(
        "--data", type=Path, metavar="FOLDER", help="real images to calibrate and check on (default: those of the run)"
    )
    command.set_defaults(run=run_export)

    command = commands.add_parser("run", help="classify images; needs no transformers")
    command.add_argument("artefact", type=Path, metavar="DIR")
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    command.add_argument("--top-k", type=positive, default=5)
    command.set_defaults(run=run_images)

    command = commands.add_parser("bench", help="measure load time and latency on this machine")
    command.add_argument("artefact", type=Path, metavar="DIR")
    command.set_defaults(run=run_bench)

    command = commands.add_parser("verify", help="check accuracy and agreement with the checkpoint")
    command.add_argument("artefact", type=Path, metavar="DIR")
    command.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="images, best in class folders")
    command.add_argument("--checkpoint", type=Path, metavar="CHECKPOINT_DIR", help="default: the one it was exported from")
    command.set_defaults(run=run_verify)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print JSON")

    arguments = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a checkpoint folder is read in no time
    quieten()
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value


# Each command imports what it needs: `run`, `bench` and `verify` against labels work where only ExecuTorch is installed.


def run_export(arguments: argparse.Namespace) -> int:
    from edge.export import export

    manifest = export(arguments.checkpoint, arguments.out, arguments.recipe, arguments.data)
    if arguments.json:
        print(json.dumps(asdict(manifest), indent=2, ensure_ascii=False))
        return 0
    parity, program = manifest.parity, manifest.program
    print(f"{arguments.out}/model.pte: {program['size_bytes'] / 1e3:.0f} kB, recipe {manifest.recipe}")
    print(f"delegates: {program['num_delegates']}, operators left outside: {program['num_undelegated_operators']}")
    print(
        f"against the model on {parity['num_images']} images: top class agrees on {parity['program_agreement']:.1%}, "
        f"SQNR {parity['program_sqnr_db']:.1f} dB"
    )
    return 0


def run_images(arguments: argparse.Namespace) -> int:
    from edge.image import UnreadableImageError
    from edge.runner import Runner

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
    from edge.bench import bench

    figures = bench(arguments.artefact)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return 0
    print(
        f"{arguments.artefact}: recipe {figures['recipe']}, {figures['size_bytes'] / 1e3:.0f} kB, loaded and run once in "
        f"{figures['load_ms']:.0f} ms"
    )
    for latency in figures["latency"]:
        print(
            f"  {latency['threads']} threads: p50 {latency['p50_ms']:.3f} ms, p90 {latency['p90_ms']:.3f} ms "
            f"({latency['repeats']} runs)"
        )
    print(f"  on {figures['machine']}")
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    from edge.verify import verify

    figures = verify(arguments.artefact, arguments.data, arguments.checkpoint)
    if arguments.json:
        print(json.dumps(figures, indent=2, ensure_ascii=False))
    else:
        for name, value in figures.items():
            print(f"{name:>16}: {value:.4g}" if isinstance(value, float) else f"{name:>16}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
