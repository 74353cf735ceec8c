"""The report of a run: every step measured on the same test images, as JSON, Markdown and one HTML page."""

import base64
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import jinja2
import matplotlib
import matplotlib.ticker
import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from distill.compress.teachers import Classifier, load_classifier
from distill.data.examples import Example
from distill.pipeline.honesty import (
    Change,
    Probabilities,
    Robustness,
    changes_of,
    judge_probabilities,
    table_of_changes,
    table_of_probabilities,
    table_of_robustness,
)
from distill.pipeline.measure import classifier_logits, count_macs, count_parameters, program_logits
from distill.pipeline.pruning_table import PruningStep, pruning_steps, table_of_pruning
from distill.pipeline.robustness import CORRUPTIONS, corrupted, spread_evenly
from distill.pipeline.run_folder import read_data_facts, stored_examples
from distill.pipeline.settings import ReportSettings
from distill.public_names import picture_text
from distill.training.figures import accuracy_with_interval, largest_class_share
from distill.training.finetune import METRICS
from edge.device.bench import Latency, measure_latency
from edge.device.environment import describe_machine, installed_versions
from edge.device.runner import Runner
from swin_hf.model_card import as_markdown

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CHECKPOINTS = ("teacher", "student", "pruned", "recovered")
PYTORCH, EXECUTORCH = "PyTorch eager", "ExecuTorch"
ROW_TYPES = {
    "probabilities": Probabilities,
    "robustness": Robustness,
    "changes": Change,
    "pruning": PruningStep,
}  # of more rows


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step of the run, measured on the test images.

    low, high: 95 % interval of the accuracy, which is an agreement with the teacher where it found the classes.
    agreement: share of the test images with the same top class as the teacher.
    """

    step: str
    accuracy: float
    low: float
    high: float
    n: int
    parameters: int
    macs: int
    size_bytes: int
    engine: str
    latency: Latency
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the report shows.

    largest_class_share: of the test images, the accuracy of always naming the largest class.
    program_agreement: share of the test images on which the program and its model have the same top class.
    confusion: confusion matrix (K, K) of the program, true classes in rows.
    """

    name: str
    dataset: str
    class_names: list[str]
    images: dict[str, int]
    num_skipped: int
    rows: list[Row]
    largest_class_share: float
    program_agreement: float
    confusion: list[list[int]]
    machine: str
    versions: dict[str, str]
    date: str
    labelled_by_teacher: bool = False
    probabilities: list[Probabilities] = field(default_factory=list)
    robustness: list[Robustness] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    pruning: list[PruningStep] = field(default_factory=list)

    @property
    def figure(self) -> str:
        """What is given with its interval."""
        return "agreement with the teacher" if self.labelled_by_teacher else "accuracy"

    @property
    def latency_source(self) -> str:
        """Where the latencies that pruning aimed at are from, if they were not measured on this machine."""
        return next((step.latency_source for step in self.pruning if step.latency_source), "")

    @property
    def doubt(self) -> str:
        """What to say first if nothing shows that some of the steps learned anything, else empty."""
        doubtful = [row.step for row in self.rows if row.low <= self.largest_class_share]
        if not doubtful:
            return ""
        return (
            f"Nothing shows that these steps learned anything: {', '.join(doubtful)}. Their {self.figure} on "
            f"{self.rows[0].n} test images cannot be told from that of always naming the largest class, "
            f"{self.largest_class_share:.1%}. Give a teacher that was pre-trained (--teacher CHECKPOINT), or more images."
        )


def make_report(run_dir: Path, settings: ReportSettings, name: str, dataset: str) -> Report:
    """Measure all steps in `run_dir` on its test images. name, dataset: what the report calls the run and its data set."""
    data_facts = read_data_facts(run_dir / "data")
    examples, class_names = stored_examples(run_dir / "data"), data_facts["class_names"]
    test, validation = examples["test"], examples["validation"]
    labels = np.array([example.label for example in test])
    classifiers = {step: load_classifier(run_dir / step, class_names) for step in CHECKPOINTS}
    runner = Runner(run_dir / "edge", num_threads=settings.threads)
    program_step = f"{runner.manifest.recipe} .pte"

    logits = {step: classifier_logits(classifier, test) for step, classifier in classifiers.items()}
    logits[program_step] = program_logits(runner, test)
    top = {step: values.argmax(axis=1) for step, values in logits.items()}
    example = runner.manifest.input.pixel_values(test[0].source.load())
    latency = _latency(classifiers, runner, program_step, example, settings)
    macs = {step: count_macs(classifier, example.shape[-1]) for step, classifier in classifiers.items()}

    def trust(step: str) -> Probabilities:
        if step == program_step:
            return judge_probabilities(step, (logits[step], labels), temperature=runner.manifest.temperature)
        held_out = classifier_logits(classifiers[step], validation), np.array([example.label for example in validation])
        return judge_probabilities(step, (logits[step], labels), held_out)

    some = spread_evenly(len(test))
    answers = {step: partial(classifier_logits, classifier) for step, classifier in classifiers.items()}
    answers[program_step] = partial(program_logits, runner)

    rows = []
    for step in top:
        is_program = step == program_step
        model_step = "recovered" if is_program else step  # the program was exported from this model
        file = run_dir / "edge" / "model.pte" if is_program else run_dir / step / "model.safetensors"
        measured = accuracy_with_interval(top[step], labels)
        rows.append(
            Row(
                step=step,
                accuracy=measured.accuracy,
                low=measured.low,
                high=measured.high,
                n=measured.n,
                parameters=count_parameters(classifiers[model_step]),
                macs=macs[model_step],
                size_bytes=file.stat().st_size,
                engine=EXECUTORCH if is_program else PYTORCH,
                latency=latency[step],
                agreement=float((top[step] == top["teacher"]).mean()),
            )
        )
    return Report(
        name=name,
        dataset=dataset,
        class_names=class_names,
        images={split: len(own) for split, own in examples.items()},
        num_skipped=len(data_facts["skipped"]),
        rows=rows,
        largest_class_share=largest_class_share(labels),
        program_agreement=float((top[program_step] == top["recovered"]).mean()),
        confusion=confusion_matrix(labels, top[program_step], labels=range(len(class_names))).tolist(),
        machine=describe_machine(),
        versions=installed_versions("swin-hf", "torch", "transformers", "torch-pruning", "executorch", "torchao", "datasets"),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        labelled_by_teacher=data_facts.get("labels") == "teacher",
        probabilities=[] if data_facts.get("labels") == "teacher" else [trust(step) for step in top],
        robustness=[
            robustness_of(step, top[step][some], answer, [test[at] for at in some]) for step, answer in answers.items()
        ],
        changes=changes_of(top, labels, class_names),
        pruning=pruning_steps(
            json.loads((run_dir / "pruned" / METRICS).read_text()), rows[CHECKPOINTS.index("recovered")].accuracy
        ),
    )


def robustness_of(
    step: str, top: np.ndarray, answer: Callable[[list[Example]], np.ndarray], examples: list[Example]
) -> Robustness:
    """The accuracy on some images as they are and after each corruption.

    top: first classes (n,) of the images as they are. answer: logits (n, K) for images.
    """
    labels = np.array([example.label for example in examples])
    found = {"as they are": top} | {kind: answer(corrupted(examples, kind)).argmax(axis=1) for kind in CORRUPTIONS}
    accuracies = {name: float((own == labels).mean()) for name, own in found.items()}
    return Robustness(step=step, n=len(examples), accuracies=accuracies)


def _latency(
    classifiers: dict[str, Classifier], runner: Runner, program_step: str, pixel_values: np.ndarray, settings: ReportSettings
) -> dict[str, Latency]:
    """Latency of one image in the model of every step, timed in turn with the same number of threads."""
    pixels = torch.from_numpy(pixel_values)

    def run_model(classifier: Classifier) -> Callable[[], torch.Tensor]:
        return lambda: classifier(pixels)

    runs: dict[str, Callable[[], object]] = {step: run_model(classifier) for step, classifier in classifiers.items()}
    runs[program_step] = lambda: runner.logits(pixel_values)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with torch.inference_mode():
            return measure_latency(runs, settings.repeats, settings.threads)
    finally:
        torch.set_num_threads(threads_before)


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json`, `report.md`, `report.html` and their two plots."""
    plot_accuracy_against_latency(report, folder / "report_accuracy_latency.png")
    plot_confusion(report, folder / "report_confusion.png")
    content = json.dumps(asdict(report), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(f"{content}\n", encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = as_markdown
    pictures = {
        path.stem.removeprefix("report_"): base64.b64encode(path.read_bytes()).decode() for path in folder.glob("*.png")
    }
    for name in ("report.md", "report.html"):
        page = environment.get_template(name).render(report=report, tables=tables(report), pictures=pictures)
        (folder / name).write_text(page, encoding="utf-8")


def read_report(path: Path) -> Report:
    """A finished `report.json`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**(row | {"latency": Latency(**row["latency"])})) for row in content["rows"]]
    more = {name: [kind(**row) for row in content.get(name, [])] for name, kind in ROW_TYPES.items()}
    return Report(**(content | {"rows": rows} | more))


def tables(report: Report) -> dict[str, list[dict[str, str]]]:
    """The tables of the pages by name, each a list of rows."""
    return {
        "steps": table(report),
        "probabilities": table_of_probabilities(report.probabilities),
        "robustness": table_of_robustness(report.robustness),
        "changes": table_of_changes(report.changes),
        "pruning": table_of_pruning(report.pruning, report.figure),
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


def text_table(report: Report) -> str:
    """The table, formatted for a terminal."""
    rows = table(report)
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def plot_accuracy_against_latency(report: Report, path: Path) -> None:
    """Each step as a point: median latency on a logarithmic x axis, accuracy with its interval on the y axis."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for index, row in enumerate(report.rows):
        interval = [[100 * (row.accuracy - row.low)], [100 * (row.high - row.accuracy)]]
        marker = "s" if row.engine == EXECUTORCH else "o"
        axes.errorbar(
            row.latency.p50_ms,
            100 * row.accuracy,
            yerr=interval,
            fmt=marker,
            capsize=4,
            label=f"{row.step} ({row.engine})",
            color=f"C{index}",
        )
    axes.set_xscale("log")
    for axis_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
    axes.set_xlabel(f"median latency of one image, ms ({report.rows[0].latency.threads} thread(s))")
    axes.set_ylabel(f"{report.figure}, % (test images, n = {report.rows[0].n}, 95 % interval)")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_confusion(report: Report, path: Path) -> None:
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
    if len(names) <= 30:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    column, row, count, ha="center", va="center", color="white" if shares[row, column] > 0.5 else "black"
                )
    figure.savefig(path, dpi=120)
    plt.close(figure)
