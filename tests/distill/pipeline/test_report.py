"""The report's pages: any name is shown as it is, and a run that learned nothing says so first."""

import json

import numpy as np
import pytest

from distill.pipeline.honesty import Robustness, changes_of, judge_probabilities
from distill.pipeline.pruning_table import pruning_steps
from distill.pipeline.report import Report, Row, read_report, tables, write_report
from distill.training.pictures import draw
from distill.training.tasks.task import Panels
from edge.device.bench import Latency

STEPS = [  # of a `metrics.json` of a pruning
    {"targets": ["macs=0.7x"], "removed_shares": {"hidden": 0.3, "heads": 0.0}, "macs": 3.5e6, "macs_share": 0.7}
    | {"params": 9e3, "params_share": 0.9, "evaluation": {"value": 0.8}, "recovered": {"value": 0.9}},
    {
        "latency_source": "by a table",
        "targets": ["macs=0.5x", "latency=0.6x"],
        "removed_shares": {"hidden": 0.5, "heads": 0.25},
        "macs": 2.5e6,
    }
    | {"macs_share": 0.5, "params": 6e3, "params_share": 0.6, "latency": 0.61, "latency_share": 0.61}
    | {"evaluation": {"value": 0.6}},
]

NAMES = ["$\\frac{$", "<svg onload=alert(1)>", "a\nb\0c", "x" * 250, "日本", "*bold* [link](x)"]


def report(accuracy=0.9, low=0.8, high=0.95, **changes) -> Report:
    names = [changes.get("name", "run")] * 6
    latency = Latency(p50_ms=1.0, p90_ms=2.0, p99_ms=3.0, repeats=10, threads=1)
    row = {"accuracy": accuracy, "low": low, "high": high, "n": 60, "parameters": 10, "macs": 10, "size_bytes": 10}
    steps = {"teacher": "PyTorch eager", "int8 .pte": "ExecuTorch"}
    fields = {
        "name": "run",
        "dataset": "photos",
        "class_names": NAMES,
        "images": {"train": 100, "test": 60},
        "num_skipped": 0,
        "rows": [Row(step=name, engine=engine, latency=latency, agreement=1.0, **row) for name, engine in steps.items()],
        "largest_class_share": 0.3,
        "program_agreement": 1.0,
        "confusion": [[10 if row == column else 0 for column in range(6)] for row in range(6)],
        "machine": "machine",
        "versions": {"torch": "2"},
        "date": "2026-11-25",
        "probabilities": [judge_probabilities("teacher", (np.eye(6), np.arange(6)), temperature=1.5)],
        "robustness": [Robustness(step="teacher", n=60, accuracies={"as they are": 0.9, "noise": 0.8})],
        "pruning": pruning_steps({"steps": STEPS}, recovered=0.85),
        "changes": changes_of({"teacher": np.arange(6), "int8 .pte": np.zeros(6, int)}, np.arange(6), names),
    }
    return Report(**(fields | changes))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Glyph")  # fonts lack letters
def test_any_name_is_shown_as_it_is(tmp_path, name):
    write_report(report(name=name, dataset=name), tmp_path)
    page, text = ((tmp_path / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert "<svg" not in page and text.count("<svg") == text.count("\\<svg")
    assert text.splitlines()[0].startswith("# ") and text.splitlines()[0].endswith(": from teacher to phone")
    assert read_report(tmp_path / "report.json") == report(name=name, dataset=name)


def test_a_run_that_learned_nothing_says_so_first(tmp_path):
    write_report(report(accuracy=0.35, low=0.25, high=0.47), tmp_path)
    expected = "Nothing shows that these steps learned anything: teacher, int8 .pte."
    assert expected in (tmp_path / "report.md").read_text().splitlines()[2]
    page = (tmp_path / "report.html").read_text()
    assert page.index(expected) < page.index("Data: photos") and "--teacher CHECKPOINT" in page
    assert report().doubt == ""
    assert json.loads((tmp_path / "report.json").read_text())["largest_class_share"] == 0.3


def test_steps_of_pruning_are_shown_with_what_they_removed():
    steps = {"step": "1", "target": "macs=0.7x", "costs": "3.5 M MACs (70.0%), 9 K parameters (90.0%)"}
    steps |= {"removed": "30% of hidden, 0% of heads", "accuracy right after pruning": "80.0%", "after recovery": "90.0%"}
    last = {"step": "2", "target": "macs=0.5x, latency=0.6x"}
    last |= {"costs": "2.5 M MACs (50.0%), 6 K parameters (60.0%), 61.0% of the latency"}
    last |= {"removed": "50% of hidden, 25% of heads", "accuracy right after pruning": "60.0%", "after recovery": "85.0%"}
    assert tables(report())["pruning"] == [steps, last]
    assert report().latency_source == "by a table" and report(pruning=[]).latency_source == ""
    assert pruning_steps({"steps": [STEPS[0] | {"removed_shares": {"hidden": 0.0}}]}, recovered=0.85) == []


@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_caption_can_be_drawn(tmp_path):

    draw([Panels(pictures=[np.zeros((4, 4, 3))], caption=name, right=True) for name in NAMES], tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
