"""The card of a published model: what is known of it, and the figures that its `metrics.json` holds."""

import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .errors import ExplainedError
from .weight_files import ConversionError, read_json_object

CARD, METRICS = "README.md", "metrics.json"
SHARES = ("accuracy", "iou", "agreement")  # ends of the names of metrics between 0 and 1, which are shown in percent


class PublishError(ExplainedError):
    """A folder cannot be published as it is; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The object "evaluation" of `metrics.json`: a figure measured on a data set.

    dataset_type: its id on the Hub, or "imagefolder" and the like for local images; by default its name if that is an id.
    metric: its name, like accuracy or mean_iou. low, high: its 95 % interval, if there is one. n: number of test images.
    largest_class_share: of the test images, the accuracy of always naming the largest class.
    """

    dataset: str
    metric: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    dataset_type: str | None = None
    largest_class_share: float | None = None

    def __post_init__(self):
        for name in ("dataset", "metric", "dataset_type"):
            value = getattr(self, name)
            if (not isinstance(value, str) or not value) and (name, value) != ("dataset_type", None):
                raise PublishError(f"evaluation.{name} must be text, got {value!r}")
        if type(self.n) is not int or self.n < 1:
            raise PublishError(f"evaluation.n must be a positive integer, got {self.n!r}")
        for name in ("value", "low", "high", "largest_class_share"):
            value = getattr(self, name)
            if value is None and name != "value":
                continue
            if type(value) not in (int, float) or not math.isfinite(value):
                raise PublishError(f"evaluation.{name} must be a finite number, got {value!r}")
            if self.is_share and not 0 <= value <= 1:
                raise PublishError(f"evaluation.{name} must lie in [0, 1] for {self.metric}, got {value!r}")
        if (self.low is None) != (self.high is None):
            raise PublishError(f"evaluation.low and evaluation.high must both be given, got {self.low!r} and {self.high!r}")

    @property
    def is_share(self) -> bool:
        return self.metric.endswith(SHARES)

    @property
    def doubt(self) -> str:
        """What to say first if nothing shows that the model learned anything, else empty."""
        known = self.metric == "accuracy" and self.low is not None and self.largest_class_share is not None
        return doubt(self.value, self.low, self.high, self.n, self.largest_class_share) if known else ""

    @property
    def row(self) -> tuple[str, str]:
        """Name and value for the table of a card: `accuracy, 40 test images` and `90.0 % [80.0, 95.0]`."""

        def shown(value: float) -> str:
            return f"{100 * value:.1f}" if self.is_share else f"{value:.4g}"

        value = shown(self.value) + (" %" if self.is_share else "")
        interval = "" if self.low is None else f" [{shown(self.low)}, {shown(self.high)}]"
        return f"{self.metric.replace('_', ' ')}, {self.n} test images", value + interval


def as_markdown(text: str) -> str:
    """A name as one line of Markdown that shows it as it is: nothing in it is taken for formatting or for HTML."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return re.sub(r"([\\`*\[\]<>#|$&])", r"\\\1", line)


def figure_text(name: str, value: float) -> str:
    """A figure as people read it: shares, as their names tell, in percent with one decimal; others with four digits."""
    is_share = name.removeprefix("test_").removeprefix("validation_").endswith(SHARES) and 0 <= value <= 1
    return f"{100 * value:.1f} %" if is_share else f"{value:.4g}"


def doubt(accuracy: float, low: float, high: float, n: int, largest_class_share: float) -> str:
    """A sentence if an accuracy with its interval cannot be told from that of always naming the largest class, else empty."""
    if low > largest_class_share:
        return ""
    return (
        f"Nothing shows that this model learned anything: its accuracy of {accuracy:.1%} [{low:.1%}, {high:.1%}] on {n} test "
        f"images cannot be told from that of always naming the largest class, {largest_class_share:.1%}."
    )


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says of a model beside what is in its `metrics.json`.

    pipeline, library: the Hub's names of the task, if it has one, and of the library that loads the model.
    about: a sentence on the model. use: Markdown with the code that loads it, with `{repo_id}` where its name goes.
    limits: what it should not be used for, or is not known of it.
    base_model: of the Hub, from which its training began. figures: rows of the table of measured figures.
    """

    pipeline: str | None
    library: str
    about: str
    use: str
    limits: str = ""
    base_model: str | None = None
    figures: dict[str, str] = field(default_factory=dict)


def loading_code(auto_class: str, is_stock: bool = False, has_our_backbone: bool = False) -> str:
    """Markdown with the code that loads a model, with `{repo_id}` where its name goes.

    is_stock: it is one of transformers', which needs no code of ours, unless it has a backbone of ours.
    """
    registers = "import swin_hf  # pip install swin-hf\n" if has_our_backbone else ""
    trust = "" if is_stock else ", trust_remote_code=True"
    code = (
        f"```python\n{registers}from transformers import AutoImageProcessor, {auto_class}\n\n"
        f'model = {auto_class}.from_pretrained("{{repo_id}}"{trust})\n'
        f'processor = AutoImageProcessor.from_pretrained("{{repo_id}}"{trust})\n```\n'
    )
    own = (
        "\nWith `pip install swin-hf` and `import swin_hf`, no code of this repository is run and `trust_remote_code` is not "
        "needed.\n"
    )
    return code if is_stock else code + own


def write_card(card: Card, repo_id: str, source: Path, folder: Path) -> None:
    """Write a model card into a folder: what is known of the model, the figures in the source's `metrics.json`, nothing else.

    Raises:
        PublishError: `metrics.json` is not what it should be.
    """
    numbers, evaluation = read_metrics(source / METRICS)
    figures = card.figures | (dict([evaluation.row]) if evaluation else {})
    figures |= {name.replace("_", " "): figure_text(name, value) for name, value in numbers.items()}
    name = repo_id.split("/")[-1]
    data = ModelCardData(
        library_name=card.library,
        pipeline_tag=card.pipeline,
        base_model=card.base_model,
        datasets=[evaluation.dataset_type] if evaluation and "/" in (evaluation.dataset_type or "") else None,
        tags=["swin", "swin_hf"],
        model_name=name if evaluation and card.pipeline else None,
        eval_results=[_eval_result(evaluation, card.pipeline)] if evaluation and card.pipeline else None,
    )
    rows = "\n".join(f"| {as_markdown(name)} | {value} |" for name, value in figures.items())
    warning = f"**{evaluation.doubt}**\n\n" if evaluation and evaluation.doubt else ""
    limits = f"\n## Limits\n\n{card.limits}\n" if card.limits else ""
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {as_markdown(name)}\n\n{warning}{card.about}\n\n## Use\n\n"
        f"{card.use.format(repo_id=repo_id)}\n## Measured\n\n| figure | value |\n|---|---|\n{rows}\n{limits}"
    )
    ModelCard(text).save(folder / CARD)


def _eval_result(evaluation: Evaluation, pipeline: str) -> EvalResult:
    return EvalResult(
        task_type=pipeline,
        dataset_type=evaluation.dataset_type or (evaluation.dataset if "/" in evaluation.dataset else "imagefolder"),
        dataset_name=evaluation.dataset,
        metric_type=evaluation.metric,
        metric_value=evaluation.value,
    )


def read_metrics(path: Path) -> tuple[dict[str, float], Evaluation | None]:
    """The finite numbers of a `metrics.json` and its evaluation, if there is such a file and if it has one.

    Raises:
        PublishError: it is no JSON object, or a key of its evaluation is missing, unknown or of the wrong type.
    """
    if not path.is_file():
        return {}, None
    try:
        metrics = read_json_object(path)
    except ConversionError as error:
        raise PublishError(str(error)) from error
    numbers = {name: value for name, value in metrics.items() if type(value) in (int, float) and math.isfinite(value)}
    try:
        return numbers, _evaluation(metrics["evaluation"]) if "evaluation" in metrics else None
    except PublishError as error:
        raise PublishError(f"{path}: {error}") from error


def _evaluation(content: Any) -> Evaluation:
    if not isinstance(content, dict):
        raise PublishError(f"evaluation must be an object, got {type(content).__name__}")
    known, needed = {one.name for one in fields(Evaluation)}, {"dataset", "metric", "value", "n"}
    if wrong := sorted((content.keys() - known) | (needed - content.keys())):
        raise PublishError(f"evaluation must have the keys {', '.join(sorted(known))}; missing or unknown: {', '.join(wrong)}")
    return Evaluation(**content)
