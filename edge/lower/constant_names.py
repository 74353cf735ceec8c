"""Short names of constants: XNNPACK's lowering names each by its SHA-256 in hexadecimal, and a program holds each name twice.

With 64 characters a name, the names are a third of what an int8 program holds beside its weights.
"""

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from executorch.backends.xnnpack.operators import node_visitor

NAME_BYTES = 8  # of a SHA-256, 11 characters. The runtime shares constants by name; of 10,000, two agree once in 10^11.


class _ShortHash:
    """SHA-256 of some bytes, cut to `NAME_BYTES` and written in base 64."""

    def __init__(self, data: bytes):
        self.data = data

    def hexdigest(self) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(self.data).digest()[:NAME_BYTES]).decode("ascii").rstrip("=")


@contextmanager
def short_constant_names() -> Iterator[None]:
    """Let XNNPACK's lowering give short names inside the block."""
    before = node_visitor.hashlib
    node_visitor.hashlib = SimpleNamespace(sha256=_ShortHash)
    try:
        yield
    finally:
        node_visitor.hashlib = before
