"""The pages of a report: one HTML file that needs nothing else, and Markdown with pictures beside it."""

import json
from dataclasses import asdict
from pathlib import Path

import jinja2
from markupsafe import Markup

from distill.pipeline.honesty import table_of_changes, table_of_probabilities, table_of_robustness
from distill.pipeline.other_runs import REPORT
from distill.pipeline.pruning_table import table_of_pruning
from distill.pipeline.report import Report
from distill.pipeline.report_pictures import Pictures
from distill.pipeline.report_plots import as_png, as_svg, charts
from swin_hf.model_card import as_markdown

MOST_ROWS = 20  # of a table of classes or confusions
MARKDOWN_CHARTS = ("accuracy_latency", "confusion")


def write_report(report: Report, folder: Path, pictures: Pictures | None = None) -> None:
    """Write `report.json`, `report.html`, and `report.md` with the pictures of its two plots."""
    content = json.dumps(asdict(report), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / REPORT).write_text(f"{content}\n", encoding="utf-8")
    drawn = charts(report)
    for name in MARKDOWN_CHARTS:
        as_png(drawn[name], report, folder / f"report_{name}.png")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = as_markdown
    values = {
        "report": report,
        "tables": tables(report),
        "charts": {name: Markup(as_svg(draw, report)) for name, draw in drawn.items()},
        "pictures": pictures or Pictures(),
        "zipped": zip,
    }
    for name in ("report.md", "report.html"):
        (folder / name).write_text(environment.get_template(name).render(values), encoding="utf-8")


def tables(report: Report) -> dict[str, list[dict[str, str]]]:
    """The tables of the pages by name, each a list of rows."""
    return {
        "steps": table(report),
        "probabilities": table_of_probabilities(report.probabilities),
        "robustness": table_of_robustness(report.robustness),
        "changes": table_of_changes(report.changes),
        "pruning": table_of_pruning(report.pruning, report.figure),
        "classes": table_of_classes(report),
        "confusions": table_of_confusions(report),
        "mistakes": table_of_mistakes(report),
        "flips": [
            {"image": f"test image {own.image}", report.truth: own.label, "model": own.before, "program": own.after}
            for own in report.flips
        ],
        "reliability": [
            {
                "probability": f"{own.low:.0%} to {own.high:.0%}",
                "images": str(own.n),
                "mean": f"{own.confidence:.1%}",
                report.figure: f"{own.accuracy:.1%}",
            }
            for own in report.reliability
            if own.n
        ],
        "training": table_of_training(report),
        "stages": table_of_stages(report),
        "others": table_of_others(report),
    }


def table(report: Report) -> list[dict[str, str]]:
    """The rows as text; MACs and file sizes with their ratio to the teacher's."""
    teacher = report.rows[0]

    def ratio(value: float, reference: float) -> str:
        if value == reference:
            return ""
        return f" (1/{reference / value:.1f})" if value < reference else f" ({value / reference:.1f}x)"

    return [
        {
            "step": row.step,
            report.figure: f"{row.accuracy:.1%} [{row.low:.1%}, {row.high:.1%}]",
            "parameters": f"{row.parameters:,}",
            "MACs": f"{row.macs / 1e6:.2f} M{ratio(row.macs, teacher.macs)}",
            "file size": f"{row.size_bytes / 1e3:,.0f} kB{ratio(row.size_bytes, teacher.size_bytes)}",
            "engine": row.engine,
            "p50": f"{row.latency.p50_ms:.2f} ms",
            "p90": f"{row.latency.p90_ms:.2f} ms",
            **({} if report.labelled_by_teacher else {"agrees with teacher": f"{row.agreement:.1%}"}),
        }
        for row in report.rows
    ]


def table_of_others(report: Report) -> list[dict[str, str]]:
    """The program of this run among those of others on the same images, the fastest first; empty if there are none."""
    if not report.others:
        return []
    best = report.frontier
    return [
        {
            "run": run.name,
            "program": run.step,
            report.figure: f"{run.accuracy:.1%} [{run.low:.1%}, {run.high:.1%}]",
            "file size": f"{run.size_bytes / 1e3:,.0f} kB",
            "p50": f"{run.p50_ms:.2f} ms",
            "on the frontier": "yes" if (run.p50_ms, run.accuracy) in best else "no",
        }
        for run in sorted(report.programs, key=lambda run: run.p50_ms)
    ]


def text_table(report: Report) -> str:
    """The table, formatted for a terminal."""
    rows = table(report)
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def table_of_classes(report: Report) -> list[dict[str, str]]:
    """The accuracy of each class, those that the program knows least first."""
    return [
        {"class": row.label, "test images": str(row.n), "teacher": f"{row.teacher:.1%}", "program": f"{row.program:.1%}"}
        for row in report.classes
    ]


def table_of_confusions(report: Report) -> list[dict[str, str]]:
    """Which class was taken for which, the most frequent first."""
    names = report.class_names
    pairs = [
        (count, names[row], names[column])
        for row, counts in enumerate(report.confusion)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    ordered = sorted(pairs, key=lambda pair: -pair[0])[:MOST_ROWS]
    return [{report.truth: truth, "program": guess, "test images": str(count)} for count, truth, guess in ordered]


def table_of_mistakes(report: Report) -> list[dict[str, str]]:
    """The mistakes of which the program was surest."""
    return [
        {
            "image": f"test image {own.image}",
            report.truth: own.label,
            "program": own.predicted,
            "probability": f"{own.probability:.1%}",
            "teacher": own.teacher,
        }
        for own in report.mistakes
    ]


def table_of_training(report: Report) -> list[dict[str, str]]:
    """First, best and last figures of each training."""
    rows = []
    for step, history in report.history.items():
        losses = [row["loss"] for row in history if row.get("loss") is not None]
        found = [row["validation"] for row in history if row.get("validation") is not None]
        if losses or found:
            row = {"training": step, "epochs": f"{max(own['epoch'] for own in history):g}"}
            row |= {"loss, first": f"{losses[0]:.3f}" if losses else "", "loss, last": f"{losses[-1]:.3f}" if losses else ""}
            row["validation, best"] = f"{max(found):.1%}" if found else ""
            rows.append(row | {"validation, last": f"{found[-1]:.1%}" if found else ""})
    return rows


def table_of_stages(report: Report) -> list[dict[str, str]]:
    """Time of each stage and, where the machine counts it, energy."""
    counted = any(own.joules is not None for own in report.stages)
    rows = []
    for own in report.stages:
        energy = {"energy": "" if own.joules is None else f"{own.joules / 3600:.2f} Wh"} if counted else {}
        rows.append({"stage": own.stage, "time": duration(own.seconds)} | energy)
    return rows


def duration(seconds: float) -> str:
    """As people read it: 12 s, 3 min 9 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
