"""The frontier of phones: published accuracy against the latency of int8 programs, ours and those of timm's models."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from benchmark_outputs import picture_beside
from benchmark_programs import lower_ordinarily, make_program, photograph_crops, size_of
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from PIL import Image
from torch import nn

from distill.pipeline.other_runs import on_the_frontier
from edge.compare.candidates import program_contender, random_classifier
from edge.compare.peers import rows_of
from edge.device.image import to_pixel_values
from edge.lower.recipes import RECIPES
from swin_hf.presets_swin_hf import PRESETS

REFERENCE = "swin_tiny"
PICTURE = "_frontier"  # ending of the name


@dataclass(frozen=True, kw_only=True)
class Known:
    """What others published of a model.

    side: of the image in pixels. top1: accuracy on ImageNet-1k in percent, or None if there are no published weights.
    source: of the accuracy, and what the weights were trained with beyond ImageNet-1k.
    """

    top1: float | None = None
    source: str = ""
    side: int = 224


OURS = {
    REFERENCE: Known(top1=81.3, source="arXiv:2103.14030"),
    "swin_edge_small": Known(),
    "swin_edge_medium": Known(),
    "swin_edge_large": Known(),
    "tiny_vit_5m": Known(top1=80.7, source="arXiv:2207.10666, distilled on ImageNet-22k"),
    "tiny_vit_11m": Known(top1=83.2, source="arXiv:2207.10666, distilled on ImageNet-22k"),
    "tiny_vit_21m": Known(top1=84.8, source="arXiv:2207.10666, distilled on ImageNet-22k"),
}
RIVALS = {  # by timm's name
    "mobilenetv4_conv_medium": Known(top1=79.9, source="arXiv:2404.10518", side=256),
    "mobilenetv4_hybrid_medium": Known(top1=82.4, source="timm's weights, trained on ImageNet-12k first", side=256),
    "repvit_m1_1": Known(top1=81.2, source="arXiv:2307.09283, distilled for 450 epochs"),
    "repvit_m1_5": Known(top1=82.5, source="arXiv:2307.09283, distilled for 450 epochs"),
    "repvit_m2_3": Known(top1=83.7, source="arXiv:2307.09283, distilled for 450 epochs"),
    "efficientformerv2_s2": Known(top1=82.0, source="arXiv:2212.08059, distilled for 450 epochs"),
    "efficientvit_b1": Known(top1=79.4, source="arXiv:2205.14756"),
    "efficientvit_b2": Known(top1=82.1, source="arXiv:2205.14756"),
    "edgenext_small": Known(top1=79.4, source="arXiv:2206.10589", side=256),
    "tiny_vit_5m_224": Known(top1=80.7, source="the same weights as tiny_vit_5m, lowered the ordinary way"),
}


def measure_frontier(arguments: argparse.Namespace, work_dir: Path) -> dict:
    """Measure our presets, and timm's models lowered as ExecuTorch's tutorials do; writes a picture beside the report."""
    picture = picture_beside(arguments.output_file, PICTURE)
    contenders, left_out, facts = [], {}, {}
    for name, known in OURS.items():
        model = random_classifier(PRESETS[name](num_labels=1000))
        made = make_program(model, RECIPES["int8"], work_dir / f"{name}.pte")
        contenders.append(replace(made.contender, name=name))
        facts[name] = vars(known) | {"size_bytes": made.size_bytes} | size_of(model, known.side)
    for name, known in RIVALS.items():
        file = work_dir / f"{name}.pte"
        try:
            model = timm_model(name)
            facts[name] = vars(known) | size_of(model, known.side)
            facts[name]["size_bytes"] = lower_ordinarily(model, normalised_crops(known.side), file)
        except Exception as error:  # other projects raise anything; the error is the reason why it is left out
            left_out[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        contenders.append(program_contender(name, file, (1, 3, known.side, known.side)))
    rows = rows_of(contenders, left_out, arguments.repeats, arguments.threads)
    print(f"\n| model, int8 | p50, ms | of {REFERENCE} | M parameters | .pte, MB | published top-1, % | of |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        if "p50_ms" not in row:
            print(f"| {row['name']} | left out: {row['skipped']} | | | | | |")
            continue
        fact = facts[row["name"]]
        row |= fact
        print(
            f"| {row['name']} | {row['p50_ms']:.1f} | {row['ratio']:.2f} | {fact['parameters'] / 1e6:.1f} | "
            f"{fact['size_bytes'] / 1e6:.1f} | {fact['top1'] or '-'} | {fact['source']} |"
        )
    plot_frontier(rows, picture)
    return {"rows": rows}


def timm_model(name: str) -> nn.Module:
    """A model of timm in its form for inference, with random weights; equal tensors would be stored only once."""
    import timm
    from timm.utils.model import reparameterize_model

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=1000).eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return reparameterize_model(model)


def normalised_crops(side: int) -> list[torch.Tensor]:
    """Crops of photographs as inputs (1, 3, side, side), roughly in [-1, 1]."""
    crops = (to_pixel_values(one.image, side, side, Image.Resampling.BICUBIC) for one in photograph_crops())
    return [2 * torch.from_numpy(values) - 1 for values in crops]


def plot_frontier(rows: list[dict], path: Path) -> None:
    """Published accuracy against latency; models without published weights are marks on the axis of latencies."""
    measured = [row for row in rows if "p50_ms" in row]
    known = [row for row in measured if row["top1"]]
    lowest = min((row["top1"] for row in known), default=80.0) - 0.6
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    line = np.array(on_the_frontier([(row["p50_ms"], row["top1"]) for row in known])).reshape(-1, 2)
    axes.plot(*line.T, color="0.75", zorder=0, label="the frontier: nothing is faster and more accurate")
    for kind, colour, marker, chosen in (
        ("models of others", "C7", "o", [row for row in known if row["name"] not in OURS]),
        ("ours", "C0", "s", [row for row in known if row["name"] in OURS]),
    ):
        axes.scatter([row["p50_ms"] for row in chosen], [row["top1"] for row in chosen], c=colour, marker=marker, label=kind)
    unknown = [row["p50_ms"] for row in measured if not row["top1"]]
    axes.scatter(unknown, [lowest] * len(unknown), marker="|", s=90, c="C0", label="ours, no weights trained on ImageNet")
    axes.set(xscale="log", xlabel="latency of the int8 program, ms (median)", ylabel="published top-1 of ImageNet-1k, %")
    ticks = (2, 3, 5, 10, 20, 50)
    axes.set_ylim(lowest - 0.4, None)
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=9)
    label_points(axes, {row["name"]: (row["p50_ms"], row["top1"] or lowest) for row in measured})
    figure.savefig(path, dpi=120)
    plt.close(figure)


def label_points(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write a name beside each point: at the first place inside the axes that covers nothing, else at the first."""
    axes.figure.draw_without_rendering()  # the transformation from data to pixels is settled
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in map(axes.transData.transform, points.values())]
    for name, point in points.items():
        label = axes.annotate(name, point, xytext=(0, 0), textcoords="offset points", fontsize=8)
        boxes = {}
        for side, shift in (("right", -5), ("left", 5)):
            for rise in (4, -10):
                label.set(horizontalalignment=side, position=(shift, rise))
                boxes[side, shift, rise] = label.get_window_extent()
        inside = [place for place, box in boxes.items() if axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1]
        free = [place for place in inside if not any(boxes[place].overlaps(other) for other in taken)]
        side, shift, rise = free[0] if free else next(iter(boxes))
        label.set(horizontalalignment=side, position=(shift, rise))
        taken.append(boxes[side, shift, rise])
