"""The command bench, which can also time other engines."""

import argparse
import os
from pathlib import Path

from edge.device import commands as commands_of_a_device

SLOWED_DOWN = 1.1  # times its latency alone: beyond it, the latency alone is printed too


def add_bench_with_peers(commands) -> argparse.ArgumentParser:
    command = commands_of_a_device.add_bench(commands)
    command.add_argument("--compare", action="store_true", help="also time other engines with the same model, in turns")
    command.add_argument(
        "--checkpoint", type=Path, metavar="CHECKPOINT_DIR", help="of --compare; default: the one it was exported from"
    )
    command.set_defaults(run=run_bench)
    return command


def run_bench(arguments: argparse.Namespace) -> int:
    checkpoints = [folder for folder in arguments.artefacts if (folder / "config.json").is_file()]
    if checkpoints:
        return run_bench_of_checkpoint(checkpoints[0], arguments)
    if not arguments.compare:
        return commands_of_a_device.run_bench(arguments)
    if len(arguments.artefacts) > 1:
        arguments.parser.error(f"--compare takes one DIR, got {len(arguments.artefacts)}")
    from edge.compare.peers import checkpoint_to_compare, compare_with_peers
    from edge.device.bench import bench, describe

    artefact, most_threads = arguments.artefacts[0], max(arguments.threads or [os.cpu_count() or 1])
    checkpoint = checkpoint_to_compare(artefact, arguments.checkpoint)
    figures = bench(artefact, arguments.repeats, arguments.threads, arguments.profile)
    figures["compared"] = compare_with_peers(artefact, checkpoint, arguments.repeats, most_threads)
    if arguments.json:
        commands_of_a_device.print_json(figures)
    else:
        print(describe(figures, [described(row) for row in figures["compared"]]))
    return 0


def run_bench_of_checkpoint(checkpoint: Path, arguments: argparse.Namespace) -> int:
    for flag, given in (
        ("DIR", len(arguments.artefacts) > 1),
        ("--compare", arguments.compare),
        ("--profile", arguments.profile),
    ):
        if given:
            what = "is timed alone" if flag == "DIR" else f"takes no {flag}"
            arguments.parser.error(f"{checkpoint} is a checkpoint, which {what}; export it first")
    from edge.compare.checkpoint_bench import bench_checkpoint, describe

    figures = bench_checkpoint(checkpoint, arguments.repeats, arguments.threads)
    if arguments.json:
        commands_of_a_device.print_json(figures)
    else:
        print(describe(figures))
    return 0


def described(row: dict) -> str:
    latency = f"left out: {row.get('skipped')}"
    if "p50_ms" in row:
        latency = f"{row['p50_ms']:8.2f} ms" + (f"  {row['ratio']:5.2f} of ours" if "ratio" in row else "")
        if row["p50_ms"] > SLOWED_DOWN * row["alone_ms"]:
            latency += f" (alone {row['alone_ms']:.2f} ms)"
    return f"  {row['name']:<42} {latency}"
