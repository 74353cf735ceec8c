"""The charts of a report, each as a picture for Markdown and as SVG that takes the colour of text from its page."""

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.ticker
import numpy as np

from distill.public_names import picture_text

if TYPE_CHECKING:
    from distill.pipeline.report import Report

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

EXECUTORCH = "ExecuTorch"
INK = "#010203"  # in SVG it becomes the colour of the page's text
LINES = {"text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
# Latencies with a label: up to what ratio of the largest to the smallest, which numbers in each power of ten.
LABELLED = ((10.0, (1, 2, 3, 4, 5, 6, 7, 8, 9)), (300.0, (1, 2, 5)), (math.inf, (1,)))
MOST_COUNTS = 30  # classes up to which a confusion matrix shows its counts


def as_png(draw: Callable[["Report"], Figure], report: "Report", path: Path) -> None:
    figure = draw(report)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def as_svg(draw: Callable[["Report"], Figure], report: "Report") -> str:
    """A chart as an element of an HTML page: no background, letters as letters, its ink the colour of the text around it."""
    with plt.rc_context(LINES | {"svg.fonttype": "none", "svg.hashsalt": draw.__name__, "font.family": "sans-serif"}):
        figure, text = draw(report), io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return svg.replace(INK, "currentColor")


def accuracy_latency(report: "Report") -> Figure:
    """Each step as a point: median latency on a logarithmic x axis, accuracy with its interval on the y axis.

    Beside them the programs of other runs, and the frontier of all programs.
    """
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for index, row in enumerate(report.rows):
        interval = [[100 * (row.accuracy - row.low)], [100 * (row.high - row.accuracy)]]
        marker = "s" if row.engine == EXECUTORCH else "o"
        label, colour = f"{row.step} ({row.engine})", f"C{index}"
        axes.errorbar(row.latency.p50_ms, 100 * row.accuracy, yerr=interval, fmt=marker, capsize=4, label=label, color=colour)
    for own in report.others:
        axes.plot(own.p50_ms, 100 * own.accuracy, "D", color="grey", markersize=4)
        axes.annotate(picture_text(own.name), (own.p50_ms, 100 * own.accuracy), xytext=(5, -10), textcoords="offset points")
    if report.others:
        latencies, accuracies = zip(*report.frontier)
        label = "frontier of the programs of these runs"
        axes.plot(latencies, [100 * own for own in accuracies], color="grey", linestyle="--", linewidth=1, label=label)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    labelled = next(subs for most, subs in LABELLED if right <= most * left)
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=labelled))
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=range(1, 10)))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.set_xlabel(f"median latency of one image, ms ({report.rows[0].latency.threads} thread(s))")
    axes.set_ylabel(f"{report.figure}, % (test images, n = {report.rows[0].n}, 95 % interval)")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside upper center", ncols=2, framealpha=0)  # inside, it would lie on intervals
    return figure


def confusion(report: "Report") -> Figure:
    """Confusion matrix of the program, true classes in rows, with counts in the cells for up to 30 classes."""
    counts, names = np.array(report.confusion), [picture_text(name) for name in report.class_names]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.35 * len(names), 16)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("the teacher's" if report.labelled_by_teacher else "true")
    axes.set_title(f"{report.rows[-1].step}, n = {counts.sum()}")
    if len(names) <= MOST_COUNTS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, count, ha="center", va="center", color=colour)
    return figure


def training(report: "Report") -> Figure:
    """The loss of every training by epoch, and the figure on the validation images."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for index, (step, rows) in enumerate(report.history.items()):
        for axes, name, factor in ((left, "loss", 1), (right, "validation", 100)):
            points = [(row["epoch"], factor * row[name]) for row in rows if row.get(name) is not None]
            axes.plot(*zip(*points) if points else ([], []), label=step, color=f"C{index}", marker="." * (len(points) < 3))
    left.set_ylabel("loss on the training images")
    right.set_ylabel(f"{report.figure} on the validation images, %")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    right.legend(framealpha=0)
    return figure


def reliability(report: "Report") -> Figure:
    """How often the program is right when it is so sure (reliability diagram; DeGroot and Fienberg 1983)."""
    figure, axes = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
    bins = [own for own in report.reliability if own.n]
    axes.plot([0, 100], [0, 100], color="grey", linestyle="--", label="as sure as it is right")
    axes.plot(
        [100 * own.confidence for own in bins], [100 * own.accuracy for own in bins], marker="o", label=report.rows[-1].step
    )
    axes.set_xlabel("probability of the first class, mean of a bin, %")
    axes.set_ylabel(f"{report.figure} in the bin, %")
    axes.grid(alpha=0.3)
    axes.legend(framealpha=0)
    return figure


def charts(report: "Report") -> dict[str, Callable[["Report"], Figure]]:
    """The charts that a report has numbers for, by name."""
    drawn = {"accuracy_latency": accuracy_latency, "confusion": confusion}
    if any(report.history.values()):
        drawn["training"] = training
    if report.reliability:
        drawn["reliability"] = reliability
    return drawn
