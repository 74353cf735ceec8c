"""The report's pages: any name is shown as it is, and a run that learned nothing says so first."""

import itertools
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from distill.pipeline.energy import EnergyMeter
from distill.pipeline.honesty import Robustness, changes_of, judge_probabilities
from distill.pipeline.mistakes import classes_of, flips_of, mistakes_of, reliability_of
from distill.pipeline.other_runs import OtherRun, name_of_test_images, other_runs
from distill.pipeline.pruning_table import pruning_steps
from distill.pipeline.report import Report, Row, StageCost, history_of, read_report
from distill.pipeline.report_pages import duration, tables, write_report
from distill.pipeline.report_pictures import Pictures, address
from distill.pipeline.report_plots import accuracy_latency
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
        "classes": classes_of(np.arange(6), np.zeros(6, int), np.arange(6), names),
        "mistakes": mistakes_of(np.full((6, 6), 1 / 6), np.arange(6), np.arange(6), names),
        "flips": flips_of(np.arange(6), np.zeros(6, int), np.arange(6), names),
        "reliability": reliability_of(np.full((6, 6), 1 / 6), np.arange(6)),
        "history": {"teacher": [{"epoch": 1.0, "loss": 2.0}, {"epoch": 1.0, "validation": 0.5}], "student": []},
        "stages": [StageCost(stage="data", seconds=75.0), StageCost(stage="teacher", seconds=7260.0, joules=7200.0)],
        "command": "python distill/run.py --dataset 'my photos'",
    }
    return Report(**(fields | changes))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Glyph")  # fonts lack letters
def test_any_name_is_shown_as_it_is(tmp_path, name):
    write_report(report(name=name, dataset=name), tmp_path)
    page, text = ((tmp_path / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert "<svg onload" not in page and "<script" not in page and text.count("<svg") == text.count("\\<svg")
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


@pytest.mark.parametrize(
    "latencies", [(0.08, 4.4), (0.08, 1.8), (1.1, 1.2), (1.0, 1.0), (0.3, 2.5), (9.0, 41.0), (0.005, 800.0)]
)
def test_labels_of_latencies_can_be_read(latencies):
    made = report()
    rows = [replace(row, latency=replace(row.latency, p50_ms=own)) for row, own in zip(made.rows, latencies)]
    figure = accuracy_latency(replace(made, rows=rows))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    inside = [label for label in axes.get_xticklabels() if axes.get_xlim()[0] <= label.get_position()[0] <= axes.get_xlim()[1]]
    boxes = sorted((label.get_window_extent() for label in inside), key=lambda box: box.x0)
    assert len(boxes) >= 2 and all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert not any(label.get_text() for label in axes.get_xticklabels(minor=True))
    plt.close(figure)


def test_the_report_says_what_a_student_was_found_for(tmp_path):
    for found in ("", "latency_ms=5 (latency_ms 4.95, by a table of 30 programs on a pi_4)"):
        write_report(report(student_found_for=found), tmp_path)
        text, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
        assert ("The student was found for" in text) == ("The student was found for" in page) == bool(found)
        assert f"found for {found}." in page or not found
        assert f"found for {found}." in text or not found
        assert "\n\n| step |" in text


@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_caption_can_be_drawn(tmp_path):
    draw([Panels(pictures=[np.zeros((4, 4, 3))], caption=name, right=True) for name in NAMES], tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_classes_mistakes_and_flips_by_hand():
    names, labels = ["cat", "dog", "owl"], np.array([0, 0, 1, 1, 2])
    teacher, model = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 0])
    probabilities = np.array([[0.9, 0.1, 0.0], [0.3, 0.6, 0.1], [0.55, 0.4, 0.05], [0.2, 0.8, 0.0], [0.95, 0.05, 0.0]])
    program = probabilities.argmax(axis=1)  # 0 1 0 1 0
    rows = classes_of(teacher, program, labels, names)
    assert [(row.label, row.n, row.teacher, row.program) for row in rows] == [
        ("owl", 1, 1.0, 0.0),
        ("cat", 2, 1.0, 0.5),
        ("dog", 2, 1.0, 0.5),
    ]
    found = mistakes_of(probabilities, teacher, labels, names, at_most=2)
    assert [(own.image, own.label, own.predicted, own.probability, own.teacher) for own in found] == [
        (4, "owl", "cat", 0.95, "owl"),
        (1, "cat", "dog", 0.6, "cat"),
    ]
    (flip,) = flips_of(model, program, labels, names)
    assert (flip.image, flip.label, flip.before, flip.after) == (1, "cat", "cat", "dog")
    bins = reliability_of(probabilities, labels)
    assert sum(own.n for own in bins) == 5 and len(bins) == 15
    assert bins[14].n == 1 and bins[14].accuracy == 0.0 and bins[14].confidence == 0.95  # 14/15 to 1


def test_the_verdict_says_what_a_run_is_worth():
    verdict = report(program_agreement=0.95).verdict
    assert "The program names the right class of 90.0% [80.0%, 95.0%] of 60 images that it never saw" in verdict
    assert "always naming the largest class would get 30.0%" in verdict and "changed the class of 3 of these images" in verdict
    assert (
        "1.0 times smaller than the teacher's" in verdict and "changed the class of none of these images" in report().verdict
    )
    assert "names the teacher's class of" in report(labelled_by_teacher=True).verdict


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_page_is_whole_with_its_pictures_and_numbers(tmp_path):
    picture = address(Image.fromarray(np.full((40, 30, 3), 200, np.uint8)))
    large = address(Image.fromarray(np.full((400, 300, 3), 200, np.uint8)))
    assert picture.startswith("data:image/png;base64,") and large.startswith("data:image/jpeg;base64,")
    pictures = Pictures(examples={name: [picture] for name in NAMES}, mistakes=[[picture, large]] * 5, flips=[picture] * 5)
    write_report(report(), tmp_path, pictures)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 6 + 10 + 5 == page.count('<img src="data:image/')  # nothing is fetched
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "url(http" not in page
    assert page.count("<figure") == 4 and page.count("<svg") == 4
    for identifier in re.findall(r'href="#([a-z]+)"', page[page.index("<nav") : page.index("</nav>")]):
        assert f'id="{identifier}"' in page
    for shown in (
        "1 min 15 s",
        "2 h 1 min",
        "2.00 Wh",
        "python distill/run.py --dataset &#39;my photos&#39;",
        "&lt;svg onload",
    ):
        assert shown in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page and "currentColor" in page
    assert read_report(tmp_path / "report.json") == report()
    assert "| data | 1 min 15 s |" in (tmp_path / "report.md").read_text() and duration(12.4) == "12 s"


def test_what_a_training_logged_is_read(tmp_path):
    history = [
        {"epoch": 1, "loss": 0.5, "lr": 1},
        {"epoch": 1, "eval_accuracy": 0.25},
        {"epoch": 2, "eval_teacher_agreement": 1},
    ]
    (tmp_path / "metrics.json").write_text(json.dumps({"history": history}))
    assert history_of(tmp_path / "metrics.json") == [
        {"epoch": 1, "loss": 0.5},
        {"epoch": 1, "validation": 0.25},
        {"epoch": 2, "validation": 1},
    ]
    (tmp_path / "metrics.json").write_text("{}")
    assert history_of(tmp_path / "metrics.json") == []


def test_energy_is_counted_across_the_end_of_a_counter(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.pipeline.energy.PERIOD_S", 0.01)
    assert EnergyMeter(tmp_path).joules is None
    for number, used in ((0, 900), (1, 10)):
        package = tmp_path / f"intel-rapl:{number}"
        package.mkdir()
        (package / "max_energy_range_uj").write_text("999")
        (package / "energy_uj").write_text(f"{used}\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the first
    with EnergyMeter(tmp_path) as meter:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100")  # 200 further, past 999
        (tmp_path / "intel-rapl:1" / "energy_uj").write_text("40")
    assert meter.joules == pytest.approx(230e-6)


def put_run(folder: Path, images: dict, **changes) -> None:
    """What other runs look at of a run."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "stage.json").write_text(json.dumps({"settings": images}))
    written = report(name=folder.name, test_images=name_of_test_images(folder), **changes)
    (folder / "report.json").write_text(json.dumps(asdict(written)))


@pytest.mark.filterwarnings("ignore:Glyph")
def test_programs_of_other_runs_on_the_same_images_stand_beside_it(tmp_path):
    images = {"dataset": "photos", "split_seed": 0, "image_size": 32, "files": [["a.png", 10]]}
    put_run(tmp_path / "own", images)
    put_run(tmp_path / "larger images", images | {"image_size": 64})
    put_run(tmp_path / "worse", images | {"dataset": "/home/me/photos"}, accuracy=0.4, low=0.3, high=0.5)
    put_run(tmp_path / "another split", images | {"split_seed": 1})
    put_run(tmp_path / "another machine", images, machine="a phone")
    for name, content in (("damaged", "{"), ("of another time", '{"rows": []}'), ("a list", "[]")):
        put_run(tmp_path / name, images)
        (tmp_path / name / "report.json").write_text(content)
    put_run(tmp_path / "damaged row", images)
    put_run(tmp_path / "split anew", images | {"split_seed": 2})
    (tmp_path / "no run").mkdir()
    record = json.loads((tmp_path / "damaged row" / "report.json").read_text())
    record["rows"][-1]["latency"]["p50_ms"] = None
    (tmp_path / "damaged row" / "report.json").write_text(json.dumps(record))
    (tmp_path / "split anew" / "data" / "stage.json").write_text(json.dumps({"settings": images}))  # not yet reported
    own = name_of_test_images(tmp_path / "own")
    found = other_runs(tmp_path / "own", own, "machine", 1)
    assert [(own.name, own.accuracy, own.p50_ms) for own in found] == [("larger images", 0.9, 1.0), ("worse", 0.4, 1.0)]
    assert other_runs(tmp_path / "own", own, "machine", 2) == [] and name_of_test_images(tmp_path / "no run") == ""
    of_hub = {"dataset": "org/a", "files": []}
    put_run(tmp_path / "hub", of_hub)
    put_run(tmp_path / "other hub", of_hub | {"dataset": "org/b"})
    assert name_of_test_images(tmp_path / "hub") != name_of_test_images(tmp_path / "other hub")

    faster = OtherRun(name="<b>faster</b>", step="int8 .pte", accuracy=0.85, low=0.8, high=0.9, size_bytes=9000, p50_ms=0.5)
    shown = report(others=[*found[1:], faster])
    rows = [(row["run"], row["p50"], row["on the frontier"]) for row in tables(shown)["others"]]
    assert rows == [("<b>faster</b>", "0.50 ms", "yes"), ("run", "1.00 ms", "yes"), ("worse", "1.00 ms", "no")]
    assert tables(report())["others"] == []
    write_report(shown, tmp_path)
    assert read_report(tmp_path / "report.json") == shown
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;faster" in page and "<b>faster" not in page
