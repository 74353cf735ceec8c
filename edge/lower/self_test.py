"""A program bundled with images and its outputs for them, to be run again on a device (ExecuTorch's BundledProgram)."""

from pathlib import Path

import numpy as np
import torch
from executorch.devtools import BundledProgram
from executorch.devtools.bundled_program.config import MethodTestCase, MethodTestSuite
from executorch.devtools.bundled_program.serialize import serialize_from_bundled_program_to_flatbuffer

NUM_IMAGES = 3


def bundle(program_file: Path, inputs: list[np.ndarray], outputs: list[list[np.ndarray]]) -> bytes:
    """The program in a file with test cases for its method `forward`.

    outputs: of the program for each of the inputs.
    """
    cases = [
        MethodTestCase(inputs=[torch.from_numpy(x)], expected_outputs=[torch.from_numpy(y) for y in ys])
        for x, ys in zip(inputs, outputs)
    ]
    bundled = BundledProgram(None, [MethodTestSuite(method_name="forward", test_cases=cases)], str(program_file))
    return serialize_from_bundled_program_to_flatbuffer(bundled)
