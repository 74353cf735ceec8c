"""Which widths do matrix kernels like? Int8 programs of one block after another, with one width changed in all blocks."""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from edge.compare.candidates import lower_unchecked, program_contender, random_classifier
from edge.compare.peers import rows_of
from edge.device.errors import ExplainedError
from edge.lower.recipes import RECIPES
from swin_hf import SwinHfConfig

SIDE, DIM, HEADS, DEPTH = 56, 128, 4, 4  # a map of 14 x 14 positions
MULTIPLES = (16, 8, 4, 2)
WIDTHS = {  # field of a config, and the widths that are timed
    "block_mlp_dim": (256, 320),
    "block_head_dim": (16, 48),
    "block_value_head_dim": (16, 48),
}
NAMES = {
    "block_mlp_dim": "hidden channels",
    "block_head_dim": "queries and keys of a head",
    "block_value_head_dim": "values of a head",
}


def measure_widths(arguments: argparse.Namespace) -> list[dict]:
    """The latency of each width, and its excess over the line through the multiples of 16.

    Raises:
        ExplainedError: a program cannot be timed.
    """
    rows = []
    for field, (low, high) in WIDTHS.items():
        widths = list(range(low, high + 1, MULTIPLES[-1]))
        with tempfile.TemporaryDirectory() as folder:
            contenders = []
            for width in widths:
                file = Path(folder) / f"{width}.pte"
                file.write_bytes(lower_unchecked(random_classifier(shape(field, width)), RECIPES["int8"]).program)
                contenders.append(program_contender(str(width), file, (1, 3, SIDE, SIDE)))
            found = rows_of(contenders, {}, arguments.repeats, arguments.threads)
        if failed := [row for row in found if "p50_ms" not in row]:
            raise ExplainedError(f"the program of width {failed[0]['name']} cannot be timed: {failed[0]['skipped']}")
        times = {int(row["name"]): row["p50_ms"] for row in found}
        excess = excess_over_line(times)
        rows += [{"field": field, "width": width, "p50_ms": times[width], "excess": excess[width]} for width in widths]
    return rows


def shape(field: str, width: int) -> SwinHfConfig:
    """A model of one stage, all of whose blocks have this width."""
    widths = {"block_head_dim": DIM // HEADS, "block_value_head_dim": DIM // HEADS, "block_mlp_dim": 2 * DIM} | {field: width}
    sizes = {"image_size": SIDE, "patch_size": 4, "embed_dim": DIM, "depths": [DEPTH], "num_heads": [HEADS], "window_size": 7}
    return SwinHfConfig(**sizes, **{name: [[value] * DEPTH] for name, value in widths.items()}, num_labels=10)


def excess_over_line(times: dict[int, float]) -> dict[int, float]:
    """Of each width, its time over that of the line through the multiples of 16, less 1."""
    on_line = [width for width in times if width % MULTIPLES[0] == 0]
    line = np.polyfit(on_line, [times[width] for width in on_line], 1)
    return {width: float(time / np.polyval(line, width) - 1) for width, time in times.items()}


def described_widths(rows: list[dict]) -> str:
    """The mean excess of the widths that are multiples of a number and of no larger one."""
    lines = ["", f"| widths of | {' | '.join(f'multiples of {multiple}' for multiple in MULTIPLES)} |"]
    lines.append("|---" * (1 + len(MULTIPLES)) + "|")
    for field, name in NAMES.items():
        cells = []
        for multiple in MULTIPLES:
            own = [
                row["excess"]
                for row in rows
                if row["field"] == field and next(number for number in MULTIPLES if row["width"] % number == 0) == multiple
            ]
            cells.append(f"{100 * np.mean(own):+.1f} %")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
