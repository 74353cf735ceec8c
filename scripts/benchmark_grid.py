"""What choices of a student cost on a device: a grid of hybrids, in int8, against Swin-T in the same run."""

import argparse
from dataclasses import replace
from pathlib import Path

from benchmark_frontier import REFERENCE
from benchmark_programs import make_program, size_of

from edge.compare.candidates import random_classifier
from edge.compare.peers import rows_of
from edge.lower.recipes import RECIPES
from swin_hf import SwinHfConfig
from swin_hf.presets_swin_hf import PRESETS

PURE = {"stem": "patch", "stage_blocks": None, "downsample": "merge", "local_conv": 0, "shift_windows": True}
BLOCKS = {"c": "conv", "w": "window"}


def blocks(kinds: str) -> dict:
    """The kinds of the blocks of each stage: "ccww" is two stages of convolutions and two of windows."""
    return {"stage_blocks": [BLOCKS[kind] for kind in kinds]}


GRID = {  # preset: changes of it by name; each preset itself is measured too
    "swin_edge_small": {
        "ReLU": {"hidden_act": "relu"},
        "hardswish": {"hidden_act": "hardswish"},
        "expansion 4 in stage 1": {"mbconv_ratio": 4.0},
        "RMSNorm": {"norm": "rms"},
        "BatchNorm": {"norm": "batch"},
        "no convolutions in window blocks": {"local_conv": 0},
        "shifted windows": {"shift_windows": True},
        "stages ccww": blocks("ccww"),
        "stages cccw": blocks("cccw"),
        "merging for downsampling": {"downsample": "merge"},
        "pure Swin": PURE,
        "windows of the whole map in stage 3": {"stage_windows": [7, 7, 14, 7]},
    },
    "swin_edge_medium": {
        "stages ccww": blocks("ccww"),
        "pure Swin": PURE,
        "a block more in stage 1": {"depths": [2, 1, 6, 2]},
        "a block more in stage 2": {"depths": [1, 2, 6, 2]},
        "a block more in stage 3": {"depths": [1, 1, 7, 2]},
        "a block more in stage 4": {"depths": [1, 1, 6, 3]},
    },
    "swin_edge_large": {"stages ccww": blocks("ccww"), "pure Swin": PURE},
}


def configs() -> dict[str, SwinHfConfig]:
    """The reference, the presets and their changes, by name."""
    made = {REFERENCE: PRESETS[REFERENCE](num_labels=1000)}
    for preset, changes in GRID.items():
        made[preset] = PRESETS[preset](num_labels=1000)
        made |= {f"{preset}, {name}": PRESETS[preset](num_labels=1000, **change) for name, change in changes.items()}
    return made


def measure_grid(arguments: argparse.Namespace, work_dir: Path) -> dict:
    """Measure the students for phones and what their parts cost."""
    contenders, facts = [], {}
    for number, (name, config) in enumerate(configs().items()):
        model = random_classifier(config)
        made = make_program(model, RECIPES["int8"], work_dir / f"{number}.pte")
        contenders.append(replace(made.contender, name=name))
        facts[name] = {"size_bytes": made.size_bytes} | size_of(model, config.image_size)
    rows = [row | facts[row["name"]] for row in rows_of(contenders, {}, arguments.repeats, arguments.threads)]
    print(f"\n| model, int8 | p50, ms | of {REFERENCE} | M parameters | G MACs | .pte, MB |\n|---|---|---|---|---|---|")
    for row in rows:
        if "p50_ms" not in row:
            print(f"| {row['name']} | left out: {row['skipped']} | | | | |")
            continue
        print(
            f"| {row['name']} | {row['p50_ms']:.2f} | {row['ratio']:.3f} | {row['parameters'] / 1e6:.2f} | "
            f"{row['macs'] / 1e9:.2f} | {row['size_bytes'] / 1e6:.2f} |"
        )
    return {"rows": rows}
