"""What a program says of itself, read from its bytes without running any of it."""

import struct
from collections.abc import Iterator

from .flatbuffer import FlatbufferError, Table

PROGRAM_MAGIC = b"ET"  # at byte 4, as flatbuffers place their identifier; the schema's version follows
HEADER_MAGIC = b"eh00"  # at byte 8: the extended header of a program whose data follow its graph
# Slots of ExecuTorch's schema (schema/program.fbs).
PLANS, SEGMENTS = 1, 4
SEGMENT_OFFSET, SEGMENT_SIZE = 0, 1
NAME, VALUES, OUTPUTS = 0, 2, 4
KIND, VALUE = 0, 1
DOUBLE, STRING = 4, 6  # kinds of a value


def sections(content: bytes) -> tuple[int, int]:
    """Bytes of the graph of a program, and where its weights and constants begin: after its end if there are none.

    Raises:
        FlatbufferError: they do not fit into the file, which then was cut or is no program.
    """
    if content[8:12] != HEADER_MAGIC:
        return len(content), len(content)
    if len(content) < 32:
        raise FlatbufferError(f"the header must have 32 bytes, got a file of {len(content)}")
    graph_bytes, data_start = struct.unpack_from("<QQ", content, 16)
    if not 0 < graph_bytes <= len(content) or data_start > len(content):
        raise FlatbufferError(
            f"a graph of {graph_bytes} bytes and data from byte {data_start} on must fit into {len(content)} bytes"
        )
    return graph_bytes, data_start or len(content)


def read_constants(content: bytes, names: set[str]) -> dict[str, list[str | float]]:
    """The values of those methods of a program that only put out texts and numbers.

    Raises:
        FlatbufferError: it is not a program, or not a whole one.
    """
    data_start = sections(content)[1]
    program = Table.root(content, PROGRAM_MAGIC)
    for number, segment in enumerate(program.tables(SEGMENTS)):
        start, size = data_start + segment.number(SEGMENT_OFFSET, "Q"), segment.number(SEGMENT_SIZE, "Q")
        if start + size > len(content):
            raise FlatbufferError(f"data {number} at {start} of {size} bytes must end within {len(content)} bytes")
    return {plan.text(NAME): list(_outputs(plan)) for plan in program.tables(PLANS) if plan.text(NAME) in names}


def _outputs(plan: Table) -> Iterator[str | float]:
    values = list(plan.tables(VALUES))
    for index in plan.numbers(OUTPUTS, "i"):
        if not 0 <= index < len(values):
            raise FlatbufferError(f"outputs must be among {len(values)} values, got number {index}")
        kind = values[index].number(KIND, "B")
        if kind not in (DOUBLE, STRING):
            raise FlatbufferError(f"a constant must be a text or a number, got a value of kind {kind}")
        value = values[index].table(VALUE)
        yield value.text(0) if kind == STRING else value.number(0, "d")
