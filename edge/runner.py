"""Run a device artefact: needs the ExecuTorch wheel, NumPy and Pillow, and neither transformers nor swin_hf."""

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
from executorch.runtime import Runtime

from edge.artefact import ArtefactError, read_artefact
from edge.image import load_image, to_pixel_values


@dataclass(frozen=True)
class Prediction:
    """A class and the probability the model gives it."""

    label: str
    probability: float


class Runner:
    """A loaded program with its labels and its input contract.

    manifest: what `edge.json` says.
    """

    def __init__(self, folder: str | Path, num_threads: int | None = None):
        """Load the artefact in `folder`.

        num_threads: threads of the runtime, by default as many as it thinks best. They belong to the process: a runner made
            earlier must not be used after another one was made with a number.

        Raises:
            ArtefactError: it is missing or damaged, or the runtime does not take the program.
        """
        self.manifest, self._program_bytes = read_artefact(folder)
        contract = self.manifest.input
        try:
            with _held_back_stderr():
                if num_threads is not None:
                    # Before loading: a loaded program holds on to the thread pool that this replaces.
                    portable_lib._unsafe_reset_threadpool(num_threads)
                self._program = Runtime.get().load_program(self._program_bytes)
                self._forward = self._program.load_method("forward")
                shape = (1, contract.channels, contract.height, contract.width)
                self.logits(np.zeros(shape, dtype=np.float32))
        except RuntimeError as error:
            raise ArtefactError(f"the ExecuTorch runtime here cannot run the program in {folder}: {error}") from error

    def pixel_values(self, image: str | Path) -> np.ndarray:
        """An image file as the program's input, float32 (1, 3, height, width) in [0, 1].

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        contract = self.manifest.input
        return to_pixel_values(load_image(image), contract.height, contract.width, contract.resample)

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        """Logits (K,) of one input, float32 (1, 3, height, width) in [0, 1].

        Raises:
            ValueError: another shape.
        """
        contract = self.manifest.input
        expected = (1, contract.channels, contract.height, contract.width)
        if pixel_values.shape != expected:
            raise ValueError(f"pixel_values must have shape {expected}, got {pixel_values.shape}")
        # The runtime reads memory as if it were contiguous, whatever the strides say.
        tensor = torch.from_numpy(np.ascontiguousarray(pixel_values, dtype=np.float32))
        return self._forward.execute([tensor])[0].numpy()[0].copy()

    def classify(self, image: str | Path, top_k: int = 5) -> list[Prediction]:
        """The `top_k` most probable classes of an image file, the best first."""
        probabilities = softmax(self.logits(self.pixel_values(image)))
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return [Prediction(self.manifest.labels[index], float(probabilities[index])) for index in best]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits (..., K)."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Keep what native code writes to stderr to itself, unless the block fails.

    The runtime reports every file under /sys that this machine lacks when its thread pool starts.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            if not succeeded:
                held_back.seek(0)
                os.write(2, held_back.read())
