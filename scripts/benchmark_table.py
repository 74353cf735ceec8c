"""How far is a latency table off? A model pruned by a table of this machine, against the programs of what was left."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distill.pruning.budgets import plan_pruning
from distill.pruning.costs import Costs
from distill.pruning.importance import Importance, measure_importance
from distill.pruning.latency_table import LatencyTable
from distill.pruning.table_files import TablePrograms, make_table, write_programs
from distill.pruning.targets import BOTTLENECK, ROUND_TO, parse_targets
from edge.compare.candidates import ProgramCosts
from edge.device.environment import environment_of_child
from edge.device.errors import ExplainedError
from edge.lower.recipes import RECIPES
from swin_hf import SwinHfForImageClassification
from swin_hf.presets_swin_hf import PRESETS

MODEL, RECIPE = "swin_edge_small", "int8"  # of 224 pixels
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)  # of its latency


def measure_table(arguments: argparse.Namespace) -> dict:
    """The error of a table, of programs that it was not made of and of shapes that were pruned by it.

    Of these, shares of the latency before: the table's milliseconds are medians of all runs, those of a measured target are
    medians of the quietest turn.

    Raises:
        ExplainedError: the programs cannot be timed.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        table = table_of_this_machine(Path(folder), arguments)
    report = {"model": MODEL, "recipe": RECIPE, "seconds": time.perf_counter() - started, "num_programs": table.num_programs}
    report |= {"median_error": table.median_error, "largest_error": table.largest_error, "prices": table.prices}
    config = PRESETS[MODEL]()  # of as many classes as the table's
    importance = Importance(channels=measure_importance(SwinHfForImageClassification(config).eval(), criterion="magnitude"))
    costs = Costs(SwinHfForImageClassification, config, config.image_height_width, table=table)
    rows = report["pruned"] = []
    with ProgramCosts(config, RECIPES[RECIPE], arguments.threads, arguments.repeats) as measure:
        for share in SHARES:
            pruned = plan_pruning(config, importance, parse_targets(f"latency={share}x"), costs).config
            program = measure(pruned)
            rows.append({"target": share, "by_table": costs.of(pruned, "latency"), "measured": program.ratio})
    return report


def table_of_this_machine(folder: Path, arguments: argparse.Namespace) -> LatencyTable:
    """Made with the commands that make the table of a device."""
    programs, times = folder / "programs", folder / "times.json"
    settings = TablePrograms(
        model=MODEL,
        output_dir=programs,
        image_size=None,
        scopes=BOTTLENECK,
        round_to=ROUND_TO,
        recipe=RECIPE,
        num_programs=None,
        seed=0,
        processes=arguments.processes,
    )
    write_programs(settings)
    artefacts = [str(path) for path in sorted(programs.glob("program*"))]
    command = [sys.executable, "-m", "edge", "bench", *artefacts, "--threads", str(arguments.threads), "--json"]
    done = subprocess.run(
        [*command, "--repeats", str(arguments.repeats)], capture_output=True, text=True, env=environment_of_child()
    )
    if done.returncode:
        raise ExplainedError(f"the programs of the table cannot be timed: {done.stderr.strip()[-500:]}")
    times.write_text(done.stdout)
    return make_table(programs, [times], folder / "table.json")


def described_table(report: dict) -> str:
    """The error of the table, and a row for each share of the latency."""
    lines = [
        "",
        f"{report['model']}, {report['recipe']}: a table of {report['num_programs']} programs, off by "
        f"{report['median_error']:.1%} in the median and {report['largest_error']:.1%} at worst; {report['seconds']:.0f} s",
        "",
        "| target | by the table | measured |",
        "|---" * 3 + "|",
    ]
    for row in report["pruned"]:
        lines.append(f"| {row['target']:.1f}x | {row['by_table']:.3f} | {row['measured']:.3f} |")
    return "\n".join(lines)
