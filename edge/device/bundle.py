"""The self-test of an artefact: a program with inputs and its outputs for them, in ExecuTorch's BundledProgram.

The runtime's own reader follows whatever offsets a file has: a damaged one ends the process. This reader checks them.
"""

import math
from dataclasses import dataclass

import numpy as np

from .flatbuffer import FlatbufferError, Table

BUNDLE_MAGIC = b"BP"  # at byte 4
# Slots of ExecuTorch's schema (devtools/bundled_program/schema/bundled_program_schema.fbs).
SUITES, PROGRAM = 1, 2
METHOD_NAME, CASES = 0, 1
INPUTS, OUTPUTS = 0, 1
KIND, VALUE = 0, 1
TENSOR = 1  # a kind of value
SCALAR_TYPE, SIZES, DATA, DIM_ORDER = 0, 1, 2, 3
DTYPES = {0: np.uint8, 6: np.float32}


@dataclass(frozen=True)
class Case:
    """Inputs of a method, and its outputs for them on the machine that exported the program."""

    inputs: list[np.ndarray]
    outputs: list[np.ndarray]


@dataclass(frozen=True)
class Bundle:
    """A program and cases for its method `forward`."""

    program: memoryview
    cases: list[Case]


def read_bundle(content: bytes) -> Bundle:
    """The contents of a bundle.

    Raises:
        FlatbufferError: it is not a bundle, or a damaged one.
    """
    root = Table.root(content, BUNDLE_MAGIC)
    suite = next((suite for suite in root.tables(SUITES) if suite.text(METHOD_NAME) == "forward"), None)
    cases = [] if suite is None else [Case(_tensors(case, INPUTS), _tensors(case, OUTPUTS)) for case in suite.tables(CASES)]
    return Bundle(root.bytes(PROGRAM), cases)


def _tensors(case: Table, slot: int) -> list[np.ndarray]:
    return [_tensor(value) for value in case.tables(slot)]


def _tensor(value: Table) -> np.ndarray:
    if value.number(KIND, "B") != TENSOR:
        raise FlatbufferError("a value of a bundle must be a tensor")
    tensor = value.table(VALUE)
    sizes, data, scalar_type = tensor.numbers(SIZES, "i"), tensor.bytes(DATA), tensor.number(SCALAR_TYPE, "b")
    dtype = DTYPES.get(scalar_type)
    contiguous = bytes(tensor.bytes(DIM_ORDER)) == bytes(range(len(sizes)))
    if dtype is None or not contiguous or min(sizes, default=1) < 0 or math.prod(sizes) * dtype().nbytes != len(data):
        raise FlatbufferError(f"a tensor of scalar type {scalar_type} and sizes {sizes} must not have {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(sizes).copy()
