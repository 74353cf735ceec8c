"""The command predict: the classes of images, or of their pixels, as a table, JSON, JSON lines, CSV or sorted copies."""

import argparse
import csv
import glob
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .commands import add_command, positive, print_json
from .errors import ExplainedError
from .json_text import json_text
from .names import file_stem
from .printable import printable

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from .runner import Prediction
    from .segmentation import Segmentation

# Pillow and the runtime take seconds to import, so that the command imports them when it runs.

FORMATS = ("table", "json", "jsonl", "csv")
MANY_IMAGES = 20  # from so many on, a bar shows the progress where the results go to a file


class Predictor(Protocol):
    """A program or a model that finds classes in images; a picture is an upright RGB image."""

    labels: list[str]
    is_classifier: bool
    is_segmenter: bool
    explains: bool
    temperature: float

    def logits_of(self, image: "Image.Image") -> "np.ndarray":
        """Logits (K,) of a classifier, or (K, h, w) of a segmenter."""

    def classify(self, image: "Image.Image", top_k: int = 5) -> "list[Prediction]": ...

    def segment(self, image: "Image.Image") -> "Segmentation": ...

    def explain(self, image: "Image.Image", label: str) -> "Image.Image": ...


class PredictionError(ExplainedError):
    """What is asked for cannot be predicted, or told; the message says why."""


def add_predict(
    commands, metavar: str = "DIR", model_help: str = "a program, the folder of an export"
) -> argparse.ArgumentParser:
    help_text = "classify images, or draw the classes of their pixels over them"
    command = add_command(commands, "predict", predict_with_program, help_text, aliases=["run"])
    command.add_argument("model", metavar=metavar, help=model_help)
    command.add_argument(
        "images", nargs="*", metavar="IMAGE", help="files, folders of images, or patterns like 'photos/*.jpg'"
    )
    command.add_argument(
        "--camera", type=int, metavar="N", help="instead of images: frames of a camera, by OpenCV, until Ctrl-C"
    )
    command.add_argument("--frames", type=positive, metavar="N", help="of a camera, at most")
    command.add_argument("--top_k", type=positive, default=5, help="number of classes to name (default: 5)")
    command.add_argument("--format", choices=FORMATS, default="table", help="of what is printed (default: table)")
    command.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    command.add_argument(
        "--below", type=probability, metavar="P", help="name only images whose first class is less probable than this: 0.6"
    )
    command.add_argument(
        "--sort_into", type=Path, metavar="FOLDER", help="a new folder: copy each image into one of its class"
    )
    command.add_argument(
        "--output_dir",
        type=Path,
        default=Path("masks"),
        metavar="FOLDER",
        help="for masks of a segmenter, and pictures (default: masks)",
    )
    command.add_argument(
        "--explain",
        action="store_true",
        help="draw what speaks for the first class; a program must have been exported with --explain",
    )
    return command


def probability(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a probability above 0 and up to 1, got {text}")
    return value


def predict_with_program(arguments: argparse.Namespace) -> int:
    from .runner import Runner

    return predict(arguments, Runner)


def predict(arguments: argparse.Namespace, open_model: Callable[[str], Predictor]) -> int:
    """Tell what a model finds in images; 1 if some cannot be read.

    Raises:
        PredictionError: the model names no classes, or is asked for what its kind does not do.
        FileInTheWayError: a file that would be written exists already.
    """
    from .explanation import new_files
    from .image import UnreadableImageError
    from .runner import NotFiniteError, about_image

    if bool(arguments.images) == (arguments.camera is not None):
        arguments.parser.error("give images or --camera")
    images = find_images(arguments.images)
    model = open_model(arguments.model)
    find = _way_of(model, arguments)
    new_files(images, arguments.output_dir, *find.endings)
    failed, output = False, Output(arguments.format, find.columns)
    pictures = _files(images) if arguments.camera is None else _frames(arguments.camera, arguments.frames)
    try:
        for name, read in pictures:
            try:
                picture = read()
                with about_image(name):
                    found = {"image": str(name)} | find(picture)
                    if arguments.below and found["predictions"][0]["probability"] >= arguments.below:
                        continue
                    found |= find.draw(picture, found, *new_files([name], arguments.output_dir, *find.endings)[0])
            except (UnreadableImageError, NotFiniteError) as error:
                print(f"error: {printable(str(error))}", file=sys.stderr)
                failed = True
                continue
            if arguments.sort_into:
                found["copied_to"] = str(_copy(name, arguments.sort_into / file_stem(found["predictions"][0]["label"])))
            output.tell(found, find.lines(found))
    except KeyboardInterrupt:
        if arguments.camera is None:
            raise
    finally:  # what was found is told, whatever ended it
        output.end()
    return int(failed)


def _way_of(model: Predictor, arguments: argparse.Namespace) -> "_Classify | _Segment":
    if model.is_classifier:
        if arguments.sort_into and arguments.sort_into.exists() and any(arguments.sort_into.iterdir()):
            raise PredictionError(f"--sort_into must be a new or empty folder, got {arguments.sort_into}")
        if arguments.sort_into and arguments.camera is not None:
            raise PredictionError("--sort_into copies files; it takes images, not --camera")
        return _Classify(model, arguments)
    if not model.is_segmenter:
        raise PredictionError(f"{arguments.model} must be a classifier or a segmenter to name classes, got a backbone")
    for flag in ("below", "sort_into", "explain"):
        if getattr(arguments, flag):
            raise PredictionError(f"--{flag} is for classifiers, got a segmenter")
    return _Segment(model, arguments)


class _Classify:
    """Finds the classes of images."""

    def __init__(self, model: Predictor, arguments: argparse.Namespace):
        self.model, self.output_dir = model, arguments.output_dir
        self.top_k, self.one_line = min(arguments.top_k, len(model.labels)), arguments.top_k == 1
        self.endings = ("explained",) if arguments.explain else ()
        ranks = ["", *(f"_{rank}" for rank in range(2, self.top_k + 1))]
        self.columns = [("image", "image")]
        for at, rank in enumerate(ranks):
            self.columns += [
                (f"label{rank}", lambda found, at=at: found["predictions"][at]["label"]),
                (f"probability{rank}", lambda found, at=at: found["predictions"][at]["probability"]),
            ]
        self.columns += [("explained", "explained")] * bool(arguments.explain)
        self.columns += [("copied_to", "copied_to")] * bool(arguments.sort_into)

    def __call__(self, picture: "Image.Image") -> dict:
        return {"predictions": [vars(prediction) for prediction in self.model.classify(picture, self.top_k)]}

    def draw(self, picture: "Image.Image", found: dict, explained: Path | None = None) -> dict:
        """Write what speaks for the first class, if that is asked for."""
        if explained is None:
            return {}
        drawn = self.model.explain(picture, found["predictions"][0]["label"])
        self.output_dir.mkdir(parents=True, exist_ok=True)
        drawn.save(explained)
        return {"explained": str(explained)}

    def lines(self, found: dict) -> list[str]:
        to = found.get("copied_to") or found.get("explained")
        name = printable(found["image"]) + (f" -> {printable(to)}" if to else "")
        rows = [f"{p['probability']:7.2%}  {printable(p['label'])}" for p in found["predictions"]]
        return [f"{rows[0]}  {name}"] if self.one_line else [name, *(f"  {row}" for row in rows)]


class _Segment:
    """Finds the classes of pixels, and writes the mask of an image and a picture of it over the image."""

    endings = ("mask", "overlay")

    def __init__(self, model: Predictor, arguments: argparse.Namespace):
        self.model, self.output_dir, self.top_k = model, arguments.output_dir, arguments.top_k
        self.columns = [(name, name) for name in ("image", "mask", "overlay")]
        self.columns += [(label, lambda found, label=label: found["shares"].get(label, 0.0)) for label in model.labels]

    def __call__(self, picture: "Image.Image") -> dict:
        self.found = self.model.segment(picture)
        return {"shares": self.found.shares()}

    def draw(self, picture: "Image.Image", found: dict, mask: Path, overlay: Path) -> dict:
        """Write the mask, and the picture of it."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.found.as_mask().save(mask)
        self.found.drawn_over(picture).save(overlay)
        return {"mask": str(mask), "overlay": str(overlay)}

    def lines(self, found: dict) -> list[str]:
        shares = list(found["shares"].items())[: self.top_k]
        rows = [f"  {share:7.2%}  {printable(label)}" for label, share in shares]
        return [f"{printable(found['image'])} -> {printable(found['overlay'])}", *rows]


class Output:
    """Tells results on stdout, one after another as they come; JSON at the end.

    columns: of CSV: its name, and the key of a result, or what makes the value of it.
    """

    def __init__(self, form: str, columns: list[tuple[str, str | Callable[[dict], object]]]):
        self.form, self.columns, self.found = form, columns, []
        if form == "csv":
            self.writer = csv.writer(sys.stdout)
            self.writer.writerow([name for name, _ in columns])

    def tell(self, found: dict, lines: list[str]) -> None:
        """Tell of an image. lines: for people."""
        if self.form == "json":
            self.found.append(found)
        elif self.form == "csv":
            self.writer.writerow([found[what] if isinstance(what, str) else what(found) for _, what in self.columns])
        elif self.form == "jsonl":
            print(json_text(found, indent=None, encoding=sys.stdout.encoding or "utf-8"))
        else:
            print("\n".join(lines))
        sys.stdout.flush()  # into a pipe, too, results come one by one

    def end(self) -> None:
        if self.form == "json":
            print_json(self.found)


def find_images(names: Iterable[str]) -> list[Path]:
    """The files that names of files, folders and patterns stand for, in their order.

    Raises:
        FileNotFoundError: a folder holds no images.
        PredictionError: a pattern fits no file.
    """
    from .listing import image_files

    found = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found += image_files(path)
        elif not path.exists() and glob.has_magic(name):
            matches = [Path(match) for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]
            if not matches:
                raise PredictionError(f"no file is called like {name}")
            found += matches
        else:
            found.append(path)  # a missing file is named where it is read
    return found


def _files(images: list[Path]) -> Iterator[tuple[Path, "Callable[[], Image.Image]"]]:
    from .image import load_image

    for image in _with_progress(images):
        yield image, lambda image=image: load_image(image)


def _with_progress(images: list[Path]) -> Iterable[Path]:
    """The images, with a bar if there are many and no results on the terminal show how far it is."""
    if len(images) < MANY_IMAGES or sys.stdout.isatty() or not sys.stderr.isatty():
        return images
    try:
        from tqdm import tqdm
    except ImportError:
        return images
    return tqdm(images, unit="image")


def _frames(camera: int, at_most: int | None) -> Iterator[tuple[Path, "Callable[[], Image.Image]"]]:
    """The frames of a camera, each with a name, until it ends, `at_most` of them, or Ctrl-C.

    Raises:
        PredictionError: OpenCV is not installed, or there is no such camera.
    """
    from PIL import Image

    try:
        import cv2
    except ImportError as error:
        raise PredictionError(f"--camera needs OpenCV ({error}); pip install opencv-python-headless") from error
    capture = cv2.VideoCapture(camera)
    if not capture.isOpened():
        raise PredictionError(f"there is no camera {camera}, or another program uses it")
    number = 0
    try:
        while at_most is None or number < at_most:
            there, pixels = capture.read()
            if not there:
                return
            number += 1
            picture = Image.fromarray(pixels[..., ::-1].copy())  # OpenCV has blue first
            yield Path(f"frame_{number}"), lambda picture=picture: picture
    finally:
        capture.release()


def _copy(image: Path, folder: Path) -> Path:
    """Copy an image into a folder, under a name that no other file has there."""
    folder.mkdir(parents=True, exist_ok=True)
    copy, number = folder / image.name, 1
    while copy.exists():
        number += 1
        copy = folder / f"{image.stem}_{number}{image.suffix}"
    shutil.copyfile(image, copy)
    return copy
