"""A local page that shows models at work: drop or take a photograph, see the classes and what speaks for them."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from PIL import Image

from edge.device.errors import ExplainedError
from edge.device.image import load_image
from edge.device.predict import Predictor, find_images
from edge.verbs.opening import is_program, local_folder, open_model
from swin_hf.model_card import as_markdown

TITLE = "Swin at work"
TOP_K = 5
MOST_EXAMPLES = 12
CARD = "README.md"


class Shown:
    """A model on the page. name: as it was given. title: on the page; by default the name of its folder."""

    def __init__(self, name: str, title: str | None = None):
        """Open the model.

        Raises:
            OpeningError, ArtefactError, CheckpointError: there is none, or it is damaged.
            DemoError: it names no classes.
        """
        self.folder = local_folder(name)
        named = Path(name).resolve().name if Path(name).exists() else name
        self.name = title or re.sub(r"@([0-9a-f]{7})[0-9a-f]{33}$", r"@\1", named)  # of a commit, what people tell it by
        self.model: Predictor = open_model(str(self.folder))
        if not (self.model.is_classifier or self.model.is_segmenter):
            raise DemoError(f"{name} must be a classifier or a segmenter to be shown, got a backbone")

    @property
    def heading(self) -> str:
        return f"### {as_markdown(self.name)}\n{'program, ExecuTorch' if is_program(self.folder) else 'checkpoint, PyTorch'}"

    @property
    def card(self) -> str:
        """The model card in its folder without its header, or what is known of it."""
        file = self.folder / CARD
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            return text.split("---", 2)[-1] if text.startswith("---") else text
        kind = "Segmenter" if self.model.is_segmenter else "Classifier"
        return f"{kind} of {len(self.model.labels)} classes: {as_markdown(', '.join(self.model.labels[:50]))}"

    @property
    def explains(self) -> bool:
        return self.model.is_classifier and self.model.explains

    def components(self) -> list[gr.components.Component]:
        """Where its answers go, in the order in which `answers` gives them."""
        gr.Markdown(self.heading)
        if self.model.is_segmenter:
            parts = [_picture(f"{self.name}: classes of the pixels")]
        else:
            parts = [gr.Label(label=f"{self.name}: classes", num_top_classes=TOP_K)]
            if self.explains:
                parts.append(_picture(f"{self.name}: red for, blue against"))
        parts.append(gr.Markdown())
        with gr.Accordion("About this model", open=False):
            gr.Markdown(self.card)
        return parts

    def answers(self, picture: Image.Image | None) -> list:
        """What the model finds in a picture, and how long that took; nothing for none."""
        count = 2 + self.explains
        if picture is None:
            return [None] * (count - 1) + [""]
        started = time.perf_counter()
        if self.model.is_segmenter:
            found = [self.model.segment(picture).drawn_over(picture)]
        else:
            predictions = self.model.classify(picture, TOP_K)
            found = [{own.label: own.probability for own in predictions}]
        milliseconds = (time.perf_counter() - started) * 1e3
        if self.explains:
            found.append(self.model.explain(picture, predictions[0].label))
        return [*found, f"{milliseconds:.1f} ms, with reading the pixels"]


def _picture(label: str) -> gr.Image:
    return gr.Image(label=label, interactive=False, buttons=["download", "fullscreen"])


class DemoError(ExplainedError):
    """A model cannot be shown; the message says why."""


def make_page(names: list[str], examples: list[Path] | None = None, is_public: bool = False) -> gr.Blocks:
    """The page of some models, by folder or by name on the Hub, side by side.

    examples: images to try. is_public: whether others see it, whose photographs then come to this computer.

    Raises:
        As `Shown`.
    """
    folders = [Path(name).resolve().name for name in names]
    shown = [Shown(name, name if folders.count(folder) > 1 else None) for name, folder in zip(names, folders)]
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        where = "It is sent to the computer that runs this page." if is_public else "Nothing leaves this computer."
        gr.Markdown(f"# {TITLE}\nDrop a photograph, choose one, or take one. {where}")
        picture = gr.Image(type="filepath", label="Photograph", sources=["upload", "webcam", "clipboard"], height=360)
        outputs: list[gr.components.Component] = []
        with gr.Row():
            for own in shown:
                with gr.Column(min_width=280):
                    outputs += own.components()
        picture.change(_answering(shown), inputs=picture, outputs=outputs, show_progress="minimal")
        if examples:
            gr.Examples(
                [[str(file)] for file in examples[:MOST_EXAMPLES]],
                inputs=picture,
                label="Examples",
                examples_per_page=MOST_EXAMPLES,
            )
    return page


def _answering(shown: list[Shown]) -> Callable[[str | None], list]:
    def answer(file: str | None) -> list:
        try:
            picture = None if file is None else load_image(file)  # as everywhere: upright, and transparent ones on white
            return [value for own in shown for value in own.answers(picture)]
        except ExplainedError as error:
            raise gr.Error(str(error)) from error

    return answer


def examples_of(names: list[str], given: str | Path | None) -> list[Path]:
    """The images that were given, or those that the run of a model put aside as samples."""
    if given is not None:
        return find_images([str(given)])
    for name in names:
        samples = Path(name).resolve().parent / "samples"
        if samples.is_dir():
            return find_images([str(samples)])
    return []


def serve(
    names: list[str],
    examples: str | Path | None,
    port: int | None = None,
    opens_browser: bool = False,
    is_public: bool = False,
) -> None:
    """Serve the page until Ctrl-C, on this computer or where Gradio's environment variables say, as in a Space."""
    page = make_page(names, examples_of(names, examples), is_public)
    launch(page, server_port=port, inbrowser=opens_browser)


def launch(page: gr.Blocks, **options) -> str:
    """Serve a page on this computer; returns its address. options: of Gradio's `launch`."""
    theme = gr.themes.Default(font="system-ui", font_mono="ui-monospace")  # others are fetched
    _, address, _ = page.launch(theme=theme, footer_links=[], share=False, **options)
    return address
