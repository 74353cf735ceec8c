"""Run a device artefact with ExecuTorch, NumPy and Pillow."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Method, Runtime, Verification
from PIL import Image

from .artefact import MANIFEST_FILE, ArtefactError, read_artefact
from .errors import ExplainedError
from .explanation import enlarged, heat
from .image import load_image
from .segmentation import Segmentation, class_map_at, class_map_of

# Numbers of PyTorch's types in the runtime.
SCALAR_TYPES = {"uint8": 0, "float32": 6}


@dataclass(frozen=True)
class Prediction:
    """A class and the probability the model gives it."""

    label: str
    probability: float


class NotFiniteError(ExplainedError):
    """A program, or its model, puts out NaN or infinity, of which no probability and no accuracy can be made."""


class Runner:
    """A loaded program with its labels and its input contract, for programs from people you trust.

    A program is verified before it is loaded, as far as that is possible without running it, but one that was forged can
    still crash the process, or do worse. The commands of this package run programs in a process of their own.

    manifest: contents of `edge.json`. program_bytes: of the program.
    """

    def __init__(self, folder: str | Path, num_threads: int | None = None):
        """Load the artefact in `folder`.

        num_threads: threads of the runtime; None leaves the choice to the runtime. The thread pool belongs to the process: do
            not use an earlier runner after a new one was created with a number.

        Raises:
            ArtefactError: it is missing or damaged, its manifest describes another program, or the runtime refuses it.
        """
        self.folder = folder
        self.manifest, self.program_bytes = read_artefact(folder)
        self._methods: dict[str, Method] = {}
        self._used: set[str] = set()  # methods that have been run
        with self._explained():
            if num_threads is not None:
                # Before loading: a loaded program keeps the thread pool that it was loaded with.
                portable_lib._unsafe_reset_threadpool(num_threads)
            self._program = Runtime.get().load_program(self.program_bytes, verification=Verification.InternalConsistency)
            missing = set(self.manifest.methods) - set(self._program.method_names)
            if missing:
                raise ArtefactError(f"the program in {folder} lacks methods that {MANIFEST_FILE} names: {missing}")
            for method in self.manifest.methods:
                self._check_method(method)
            self._methods["forward"] = self._program.load_method("forward")

    def _check_method(self, name: str) -> None:
        """Compare a method's inputs and outputs with those that the manifest describes.

        Raises:
            ArtefactError: they differ.
        """
        about = self._program.metadata(name)
        inputs = [_type_of(about.input_tensor_meta(index)) for index in range(about.num_inputs())]
        outputs = [_type_of(about.output_tensor_meta(index)) for index in range(about.num_outputs())]
        shapes, dtype = self._output_shapes(name, [shape for shape, _ in outputs])
        for what, found, expected in (
            ("take", inputs, [(self.shape(name), SCALAR_TYPES[self.manifest.input.dtype])]),
            ("put out", outputs, [(shape, SCALAR_TYPES[dtype]) for shape in shapes]),
        ):
            if found != expected:
                raise ArtefactError(
                    f"the program in {self.folder} is not the one that {MANIFEST_FILE} describes: {name} must {what} "
                    f"{expected} (shape, scalar type), got {found}"
                )

    def _output_shapes(self, method: str, found: list[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], str]:
        """Shapes and type that the outputs of a method must have; heights and widths of maps are those that were `found`."""
        B, K = self.manifest.methods[method]["batch_size"], len(self.manifest.labels)
        if self.manifest.class_map:
            return [(B, self.manifest.methods[method]["height"], self.manifest.methods[method]["width"])], "uint8"
        maps = [shape for shape in found if len(shape) == 4 and shape[0] == B]
        of_classes = (B, K, *maps[0][2:]) if maps else (B, K, 1, 1)
        if self.manifest.is_classifier:
            return [(B, K), of_classes] if self.manifest.explains else [(B, K)], "float32"
        if self.manifest.is_segmenter:
            return [(B, K, *self.manifest.map_size) if method == "forward" else of_classes], "float32"
        return maps[:K] + [()] * (K - len(maps)), "float32"

    def shape(self, method: str) -> tuple[int, int, int, int]:
        """Shape of the input of a method.

        Raises:
            ValueError: there is none of this name.
        """
        if method not in self.manifest.methods:
            raise ValueError(f"method must be one of {', '.join(self.manifest.methods)}, got {method!r}")
        return self.manifest.input.shape(**self.manifest.methods[method])

    @property
    def labels(self) -> list[str]:
        """Names of the classes, or of the feature maps of a backbone."""
        return self.manifest.labels

    @property
    def is_classifier(self) -> bool:
        return self.manifest.is_classifier

    @property
    def is_segmenter(self) -> bool:
        return self.manifest.is_segmenter

    @property
    def explains(self) -> bool:
        """Whether a classifier can say what speaks for a class."""
        return self.manifest.explains

    @property
    def temperature(self) -> float:
        """By which logits are divided before the softmax."""
        return self.manifest.temperature

    def logits_of(self, image: str | Path | Image.Image) -> np.ndarray:
        """Logits (K,) of a classifier for an image or an image file."""
        return self.logits(self.pixel_values(image))

    def pixel_values(self, image: str | Path | Image.Image, method: str = "forward") -> np.ndarray:
        """An image or an image file as the input of a method for single images, in the layout of the contract.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        size = self.manifest.methods[method]
        return self.manifest.input.pixel_values(as_picture(image), size["height"], size["width"])

    def outputs(self, pixel_values: np.ndarray, method: str = "forward") -> list[np.ndarray]:
        """All outputs of a method: logits, (B, K) or of a segmenter (B, K, h, w), or classes (B, height, width), or feature
        maps (B, C, H, W); behind the logits of a classifier that explains itself, class maps (B, K, h, w).

        Raises:
            ValueError: no such method, or an input whose shape or type is not that of the contract.
            ArtefactError: the runtime cannot run the method.
            NotFiniteError: an output is NaN or infinite.
        """
        expected, dtype = self.shape(method), self.manifest.input.dtype
        if pixel_values.shape != expected or pixel_values.dtype != dtype:
            raise ValueError(
                f"pixel_values must have shape {expected} and type {dtype}, got {pixel_values.shape} and {pixel_values.dtype}"
            )
        # The runtime reads memory as if it were contiguous, whatever the strides say.
        tensor = torch.from_numpy(np.ascontiguousarray(pixel_values))
        if method in self._used:
            outputs = self._execute(method, tensor)
        else:
            with self._explained():  # the first run allocates memory and can fail; later runs need no guard
                if method not in self._methods:
                    self._methods[method] = self._program.load_method(method)
                outputs = self._execute(method, tensor)
            self._used.add(method)
        if not all(np.isfinite(output).all() for output in outputs):
            raise NotFiniteError(
                f"the outputs of the program in {self.folder} must be finite, got NaN or infinity from method {method}: its "
                "weights are damaged, or it overflows; export the checkpoint again, with recipe fp32 if it was fp16"
            )
        return outputs

    def _execute(self, method: str, tensor: torch.Tensor) -> list[np.ndarray]:
        return [output.numpy().copy() for output in self._methods[method].execute([tensor])]

    def logits(self, pixel_values: np.ndarray, method: str = "forward") -> np.ndarray:
        """Logits of a batch of images, (K,) for a single one and (B, K) for more.

        Raises:
            ValueError: no such method, or an input whose shape or type is not that of the contract.
            NotFiniteError: a logit is NaN or infinite.
        """
        logits = self.outputs(pixel_values, method)[0]
        return logits[0] if len(logits) == 1 else logits

    def constant(self, name: str) -> list:
        """A constant that the program itself holds: `labels`, `temperature`, `input_contract` (as JSON).

        Raises:
            ArtefactError: there is none of this name.
        """
        if name not in self._program.method_names:
            raise ArtefactError(f"the program in {self.folder} has no constant {name!r}, only {self._program.method_names}")
        with self._explained():
            return self._program.load_method(name).execute([])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of the runtime into an `ArtefactError`."""
        try:
            with _held_back_stderr():
                yield
        except (RuntimeError, IndexError, MemoryError, UnicodeDecodeError) as error:
            raise ArtefactError(f"the ExecuTorch runtime here cannot run the program in {self.folder}: {error}") from error

    def classify(self, image: str | Path | Image.Image, top_k: int = 5) -> list[Prediction]:
        """The `top_k` most probable classes of an image or an image file, most probable first.

        Raises:
            ArtefactError: the artefact is no classifier.
            UnreadableImageError: the image cannot be decoded.
            NotFiniteError: a logit for it is NaN or infinite.
        """
        if not self.manifest.is_classifier:
            raise ArtefactError(f"the artefact must be a classifier to name classes, got one of {self.manifest.task}")
        return most_probable(self.logits_of(image), self.temperature, self.labels, top_k)

    def segment(self, image: str | Path | Image.Image) -> Segmentation:
        """The class of every pixel of an image or an image file, at its own size.

        Raises:
            ArtefactError: the artefact is no segmenter.
            UnreadableImageError: the image cannot be decoded.
            NotFiniteError: a logit for it is NaN or infinite.
        """
        manifest = self.manifest
        if not manifest.is_segmenter:
            raise ArtefactError(f"the artefact must be a segmenter to name classes of pixels, got one of {manifest.task}")
        picture = as_picture(image)
        output = self.outputs(manifest.input.pixel_values(picture))[0][0]
        at_size = class_map_at if manifest.class_map else class_map_of
        return Segmentation(
            class_map=at_size(output, picture.height, picture.width), labels=manifest.labels, palette=manifest.palette
        )

    def explain(self, image: str | Path | Image.Image, label: str) -> Image.Image:
        """What speaks for a class, in red, and against it, in blue, over an image or an image file as the program sees it.

        Raises:
            ArtefactError: the program puts out no class maps, or knows no such class.
            UnreadableImageError: the image cannot be decoded.
            NotFiniteError: a value for it is NaN or infinite.
        """
        manifest = self.manifest
        if not manifest.explains:
            raise ArtefactError("the artefact must be one of a classifier exported with --explain")
        if label not in manifest.labels:
            raise ArtefactError(f"label must be one of {', '.join(manifest.labels[:10])}, .., got {label}")
        pixels = self.pixel_values(image)
        maps = self.outputs(pixels)[1][0]
        return heat(maps[manifest.labels.index(label)], enlarged(manifest.input.seen(pixels)))


def as_picture(image: str | Path | Image.Image) -> Image.Image:
    """An image as people see it, or a file of one.

    Raises:
        UnreadableImageError: it cannot be decoded.
    """
    return image if isinstance(image, Image.Image) else load_image(image)


def most_probable(logits: np.ndarray, temperature: float, labels: list[str], top_k: int) -> list[Prediction]:
    """The `top_k` most probable classes by logits (K,), most probable first."""
    probabilities = softmax(logits.astype(np.float64) / temperature)
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return [Prediction(labels[index], float(probabilities[index])) for index in best]


@contextmanager
def about_image(name: object) -> Iterator[None]:
    """Name the image for which a model or program puts out NaN or infinity."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{name}: {error}") from error


def _type_of(about) -> tuple[tuple[int, ...], int]:
    """Shape and scalar type from the runtime's metadata of a tensor."""
    return tuple(about.sizes()), about.dtype()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits (..., K)."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Discard what native code writes to stderr, unless the block fails with an error.

    When its thread pool starts, the runtime complains about every file under /sys that this machine lacks.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        failed = False
        try:
            yield
        except Exception:
            failed = True
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            if failed:
                held_back.seek(0)
                os.write(2, held_back.read())
