"""Run a command on damaged copies of a file of an artefact, as if somebody had meant it: with their own sha256.

python damaged_artefacts.py ARTEFACT_DIR FILE NUM_SEEDS COMMAND ARGUMENT.. : prints a line of JSON for each copy. The command
is `python -m edge COMMAND ARTEFACT_DIR ARGUMENT..`, in the child process of the real one; PyTorch is loaded once for all.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

import edge.device.runner
import edge.device.verify  # noqa: F401
from edge.__main__ import main
from edge.device.artefact import sha256_of
from edge.device.child import run_in_child

SIZES = (0, 1, 4, 7, 8, 11, 12, 16, 31, 32, 33, 64, 1000)  # of cut copies, beside random ones
PHOTOGRAPH = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0" + bytes(range(256)) * 40


def damaged_copies(content: bytes, num_seeds: int):
    """Copies by name, for each seed one, after some of other sizes and other formats."""
    for size in SIZES:
        yield f"cut to {size} bytes", content[:size]
    yield "a photograph", PHOTOGRAPH
    yield "the head of it and a photograph", content[:32] + PHOTOGRAPH
    yield "twice", content * 2
    for seed in range(num_seeds):
        rng = random.Random(seed)
        change = rng.choice(CHANGES)
        # Weights are most of a file: two of three changes go where the tables are, at either end.
        limit = rng.choice((len(content), 8000, -8000))
        position = rng.randrange(limit) if limit > 0 else len(content) - 1 - rng.randrange(min(-limit, len(content)))
        changed = bytearray(content)
        change(rng, changed, position)
        yield f"seed {seed}: {change.__name__} at {position}", bytes(changed)


def one_bit(rng, content, position):
    content[position] ^= 1 << rng.randrange(8)


def eight_bits(rng, content, position):
    for _ in range(8):
        content[(position + rng.randrange(500)) % len(content)] ^= 1 << rng.randrange(8)


def one_byte(rng, content, position):
    content[position] = rng.randrange(256)


def one_number(rng, content, position):
    numbers = (b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x80", rng.randbytes(4))
    content[position : position + 4] = rng.choice(numbers)


def zeros(rng, content, position):
    stop = min(position + rng.randrange(1, 200), len(content))
    content[position:stop] = bytes(stop - position)


def a_piece_from_elsewhere(rng, content, position):
    other = rng.randrange(len(content))
    content[position : position + 64] = content[other : other + 64]


def more_bytes(rng, content, position):
    content[position:position] = rng.randbytes(rng.randrange(1, 64))


def cut(rng, content, position):
    del content[position:]


CHANGES = (one_bit, one_bit, eight_bits, one_byte, one_number, zeros, a_piece_from_elsewhere, more_bytes, cut)


def run_on_copies(folder: Path, name: str, num_seeds: int, arguments: list[str]) -> None:
    content, manifest = (folder / name).read_bytes(), json.loads((folder / "edge.json").read_text())
    streams = os.dup(1), os.dup(2)
    for what, damaged in damaged_copies(content, num_seeds):
        (folder / name).write_bytes(damaged)
        manifest["sha256"][name] = sha256_of(damaged)
        (folder / "edge.json").write_text(json.dumps(manifest))
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            sys.stdout.flush()
            for stream, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), stream)
            code = run_in_child(lambda: main([arguments[0], str(folder), *arguments[1:], "--json"]))
            for stream, original in zip((1, 2), streams):
                os.dup2(original, stream)
            said = {}
            for stream, file in (("out", out), ("err", err)):
                file.seek(0)
                said[stream] = file.read().decode(errors="replace")
        print(json.dumps({"what": what, "code": code, **said}), flush=True)


if __name__ == "__main__":
    run_on_copies(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
