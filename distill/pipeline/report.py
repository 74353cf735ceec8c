"""The report of a run: every step measured on the same test images, what it learned, and what it got wrong."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

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
)
from distill.pipeline.measure import classifier_logits, count_macs, count_parameters, program_logits
from distill.pipeline.mistakes import Bin, Flip, Mistake, OfClass, classes_of, flips_of, mistakes_of, reliability_of
from distill.pipeline.other_runs import OtherRun, name_of_test_images, on_the_frontier, other_runs
from distill.pipeline.pruning_table import PruningStep, pruning_steps
from distill.pipeline.report_plots import EXECUTORCH
from distill.pipeline.robustness import CORRUPTIONS, corrupted, spread_evenly
from distill.pipeline.run_folder import read_data_facts, stored_examples
from distill.pipeline.stage_settings import ReportSettings
from distill.pipeline.stages import MANIFEST
from distill.pipeline.student_shape import found_for
from distill.training.figures import AGREEMENT, accuracy_with_interval
from distill.training.finetune import METRICS
from edge.device.bench import Latency, measure_latency
from edge.device.environment import describe_machine, installed_versions
from edge.device.runner import Runner, softmax
from edge.device.scores import largest_class_share

CHECKPOINTS = ("teacher", "student", "pruned", "recovered")  # folders; the last two where something is pruned
PYTORCH = "PyTorch eager"


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
class StageCost:
    """Time of a stage, of its last session if it was interrupted, and the energy of the processors where they count it."""

    stage: str
    seconds: float
    joules: float | None = None


ROW_TYPES = {
    "probabilities": Probabilities,
    "robustness": Robustness,
    "changes": Change,
    "pruning": PruningStep,
    "classes": OfClass,
    "mistakes": Mistake,
    "flips": Flip,
    "reliability": Bin,
    "stages": StageCost,
    "others": OtherRun,
}  # of more rows


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the report shows, but for its pictures.

    largest_class_share: of the test images, the accuracy of always naming the largest class.
    program_agreement: share of the test images on which the program and its model have the same top class.
    confusion: confusion matrix (K, K) of the program, true classes in rows.
    classes, mistakes, reliability: of the program. flips: what making the program of the model changed.
    test_images: a name of the test images, the same for other runs on them. others: programs of such runs.
    history: of each training, rows of "epoch" with "loss" or "validation", an accuracy or agreement.
    student_found_for: the target that a student's shape was found for, and what it costs, in words.
    command: that repeats the run.
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
    classes: list[OfClass] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)
    reliability: list[Bin] = field(default_factory=list)
    history: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    stages: list[StageCost] = field(default_factory=list)
    student_found_for: str = ""
    test_images: str = ""
    others: list[OtherRun] = field(default_factory=list)
    command: str = ""

    @property
    def last_model(self) -> str:
        """The step whose model became the program."""
        return self.rows[-2].step

    @property
    def truth(self) -> str:
        """What the labels are."""
        return "teacher's class" if self.labelled_by_teacher else "true class"

    @property
    def verdict(self) -> str:
        """What the run is worth, in sentences."""
        teacher, program = self.rows[0], self.rows[-1]
        named = "the teacher's class" if self.labelled_by_teacher else "the right class"
        smaller, faster = teacher.size_bytes / program.size_bytes, teacher.latency.p50_ms / program.latency.p50_ms
        changed = round((1 - self.program_agreement) * program.n)
        took = f"{program.latency.p50_ms:.{0 if program.latency.p50_ms >= 10 else 2}f} ms"
        return (
            f"The program names {named} of {program.accuracy:.1%} [{program.low:.1%}, {program.high:.1%}] of {program.n:,} "
            f"images that it never saw; always naming the largest class would get {self.largest_class_share:.1%}. "
            f"It is a file of {program.size_bytes / 1e3:,.0f} kB, {times(smaller, 'smaller', 'larger')} than the teacher's. "
            f"An image takes {took} here, {times(faster, 'faster', 'slower')} than the teacher in PyTorch. Turning the last "
            f"model into the program changed the class of {changed or 'none'} of these images."
        )

    @property
    def programs(self) -> list[OtherRun]:
        """The program of this run, and those of others on the same images."""
        row = self.rows[-1]
        figures = {name: getattr(row, name) for name in ("step", "accuracy", "low", "high", "size_bytes")}
        return [OtherRun(name=self.name, p50_ms=row.latency.p50_ms, **figures), *self.others]

    @property
    def frontier(self) -> list[tuple[float, float]]:
        """Latency and accuracy of the programs that no other one equals or beats in both, the fastest first."""
        return on_the_frontier([(own.p50_ms, own.accuracy) for own in self.programs])

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


def times(ratio: float, more: str, less: str) -> str:
    """1.5 times smaller; or, for ratios below 1, the inverse with the other word."""
    return f"{ratio:.1f} times {more}" if ratio >= 1 else f"{1 / ratio:.1f} times {less}"


def make_report(
    run_dir: Path, settings: ReportSettings, dataset: str, command: str, last_model: str, stages: list[StageCost]
) -> Report:
    """Measure all steps in `run_dir` on its test images.

    dataset: what the report calls the data set. command: that repeats the run. last_model: of
        `CHECKPOINTS`, that from which the program was exported. stages: what those before it cost.
    """
    checkpoints = CHECKPOINTS[: CHECKPOINTS.index(last_model) + 1]
    data_facts = read_data_facts(run_dir / "data")
    examples, class_names = stored_examples(run_dir / "data"), data_facts["class_names"]
    test, validation = examples["test"], examples["validation"]
    labels = np.array([example.label for example in test])
    classifiers = {step: load_classifier(run_dir / step, class_names) for step in checkpoints}
    runner = Runner(run_dir / "edge", num_threads=settings.threads)
    test_images, machine = name_of_test_images(run_dir), describe_machine()
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

    sure = softmax(logits[program_step].astype(np.float64) / runner.manifest.temperature)
    some = spread_evenly(len(test))
    answers = {step: partial(classifier_logits, classifier) for step, classifier in classifiers.items()}
    answers[program_step] = partial(program_logits, runner)

    rows = []
    for step in top:
        is_program = step == program_step
        model_step = last_model if is_program else step
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
        name=run_dir.resolve().name,
        dataset=dataset,
        class_names=class_names,
        images={split: len(own) for split, own in examples.items()},
        num_skipped=len(data_facts["skipped"]),
        rows=rows,
        largest_class_share=largest_class_share(labels),
        program_agreement=float((top[program_step] == top[last_model]).mean()),
        confusion=confusion_matrix(labels, top[program_step], labels=range(len(class_names))).tolist(),
        machine=machine,
        versions=installed_versions("swin-hf", "torch", "transformers", "torch-pruning", "executorch", "torchao", "datasets"),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        labelled_by_teacher=data_facts.get("labels") == "teacher",
        probabilities=[] if data_facts.get("labels") == "teacher" else [trust(step) for step in top],
        robustness=[
            robustness_of(step, top[step][some], answer, [test[at] for at in some]) for step, answer in answers.items()
        ],
        changes=changes_of(top, labels, class_names),
        pruning=pruning_steps(json.loads((run_dir / "pruned" / METRICS).read_text()), rows[-2].accuracy)
        if "pruned" in checkpoints
        else [],
        classes=classes_of(top["teacher"], top[program_step], labels, class_names),
        mistakes=mistakes_of(sure, top["teacher"], labels, class_names),
        flips=flips_of(top[last_model], top[program_step], labels, class_names),
        reliability=[] if data_facts.get("labels") == "teacher" else reliability_of(sure, labels),
        history={step: history_of(run_dir / step / METRICS) for step in checkpoints if step != "pruned"},
        stages=stages,
        student_found_for=found_for(run_dir) if any(own.stage == "shape" for own in stages) else "",
        test_images=test_images,
        others=other_runs(run_dir, test_images, machine, settings.threads),
        command=command,
    )


def history_of(file: Path) -> list[dict[str, float]]:
    """What a training logged in a `metrics.json`, as rows of "epoch" with "loss" or "validation"; empty if there was none."""
    rows = []
    for row in json.loads(file.read_text(encoding="utf-8")).get("history", []):
        for name, key in (("loss", "loss"), ("validation", "eval_accuracy"), ("validation", f"eval_{AGREEMENT}")):
            if row.get(key) is not None:
                rows.append({"epoch": row["epoch"], name: row[key]})
    return rows


def stage_cost(folder: Path) -> StageCost:
    """What `stage.json` in the folder of a stage says of its time and energy."""
    record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return StageCost(stage=record["stage"], seconds=record["seconds"], joules=record.get("joules"))


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
    """Latency of one image in the model of every step, timed in turns with the same number of threads."""
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


def read_report(path: Path) -> Report:
    """A finished `report.json`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**(row | {"latency": Latency(**row["latency"])})) for row in content["rows"]]
    more = {name: [kind(**row) for row in content.get(name, [])] for name, kind in ROW_TYPES.items()}
    return Report(**(content | {"rows": rows} | more))
