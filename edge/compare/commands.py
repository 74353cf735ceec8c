"""The command bench, which can also time other engines."""

import argparse
import os
from pathlib import Path

from edge.device.commands import add_bench, print_json

SLOWED_DOWN = 1.1  # times its latency alone: beyond it, the latency alone is printed too


def add_bench_with_peers(commands) -> argparse.ArgumentParser:
    command = add_bench(commands)
    command.add_argument("--compare", action="store_true", help="also time other engines with the same model, in turns")
    command.add_argument(
        "--checkpoint", type=Path, metavar="CHECKPOINT_DIR", help="of --compare; default: the one it was exported from"
    )
    command.set_defaults(run=run_bench)
    return command


def run_bench(arguments: argparse.Namespace) -> int:
    from edge.device.bench import bench, describe

    checkpoint, most_threads = None, max(arguments.threads or [os.cpu_count() or 1])
    if arguments.compare:
        from edge.compare.peers import checkpoint_to_compare, compare_with_peers

        checkpoint = checkpoint_to_compare(arguments.artefact, arguments.checkpoint)
    figures = bench(arguments.artefact, arguments.repeats, arguments.threads)
    if checkpoint is not None:
        figures["compared"] = compare_with_peers(arguments.artefact, checkpoint, arguments.repeats, most_threads)
    lines = [described(row) for row in figures.get("compared", [])]
    if arguments.json:
        print_json(figures)
    else:
        print(describe(figures, lines))
    return 0


def described(row: dict) -> str:
    latency = f"left out: {row.get('skipped')}"
    if "p50_ms" in row:
        latency = f"{row['p50_ms']:8.2f} ms" + (f"  {row['ratio']:5.2f} of ours" if "ratio" in row else "")
        if row["p50_ms"] > SLOWED_DOWN * row["alone_ms"]:
            latency += f" (alone {row['alone_ms']:.2f} ms)"
    return f"  {row['name']:<42} {latency}"
