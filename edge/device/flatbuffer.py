"""Flatbuffers that may be damaged: every offset is checked before it is followed.

Programs and bundles are flatbuffers. A table is a list of fields, each in a slot: its place in the schema, where a union takes
two, its type and its value.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass


class FlatbufferError(ValueError):
    """A flatbuffer points outside itself or is not what was expected; readers say which file it is."""


@dataclass(frozen=True)
class Table:
    """The table at a position of the bytes `content`. A field that is left out has its default value."""

    content: memoryview
    position: int

    @classmethod
    def root(cls, content: bytes, identifier: bytes) -> "Table":
        """The root of a flatbuffer whose identifier, at byte 4, begins with `identifier`.

        Raises:
            FlatbufferError: it is another one, as by all methods if an offset leads outside.
        """
        if not content[4:8].startswith(identifier):
            raise FlatbufferError(f"bytes 4 to 7 must begin with {identifier!r}, got {content[4:8]!r}")
        view = memoryview(content)
        return cls(view, _unpack(view, "I", 0))

    def number(self, slot: int, kind: str, default: float = 0) -> float | int:
        """A number; kind is that of the module struct."""
        position = self._field(slot)
        return default if position is None else _unpack(self.content, kind, position)

    def numbers(self, slot: int, kind: str) -> tuple:
        start, length = self._vector(slot, struct.calcsize(f"<{kind}"))
        return struct.unpack_from(f"<{length}{kind}", self.content, start)

    def bytes(self, slot: int) -> memoryview:
        start, length = self._vector(slot, 1)
        return self.content[start : start + length]

    def text(self, slot: int) -> str:
        try:
            return str(self.bytes(slot), "utf-8")
        except UnicodeDecodeError as error:
            raise FlatbufferError(f"a text must be UTF-8: {error}") from error

    def table(self, slot: int) -> "Table":
        position = self._field(slot)
        if position is None:
            raise FlatbufferError(f"the table at byte {self.position} must have a table in slot {slot}")
        return Table(self.content, position + _unpack(self.content, "I", position))

    def tables(self, slot: int) -> Iterator["Table"]:
        start, length = self._vector(slot, 4)
        for position in range(start, start + 4 * length, 4):
            yield Table(self.content, position + _unpack(self.content, "I", position))

    def _field(self, slot: int) -> int | None:
        """Position of a field; None if it is left out."""
        vtable = self.position - _unpack(self.content, "i", self.position)
        entry = 4 + 2 * slot
        offset = _unpack(self.content, "H", vtable + entry) if entry < _unpack(self.content, "H", vtable) else 0
        return self.position + offset if offset else None

    def _vector(self, slot: int, item_bytes: int) -> tuple[int, int]:
        """Where the items of a vector begin, and their number."""
        position = self._field(slot)
        if position is None:
            return 0, 0
        start = position + _unpack(self.content, "I", position)
        length = _unpack(self.content, "I", start)
        if start + 4 + length * item_bytes > len(self.content):
            raise FlatbufferError(f"the vector at byte {start} must end within {len(self.content)} bytes, got {length} items")
        return start + 4, length


def _unpack(content: memoryview, kind: str, position: int) -> int | float:
    if not 0 <= position <= len(content) - struct.calcsize(f"<{kind}"):
        raise FlatbufferError(f"offsets must lead to one of {len(content)} bytes, got {position}")
    return struct.unpack_from(f"<{kind}", content, position)[0]
