"""Run a command on damaged copies of a file of an artefact, as if somebody had meant it: with their own sha256.

python damaged_artefacts.py ARTEFACT_DIR IMAGE NUM_SEEDS prints a line of JSON for each copy: of the program, which `edge run`
takes, and of the bundle, which `edge self-test` takes. They run as on a command line; PyTorch is loaded once for all of them.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

from edge.__main__ import make_parser
from edge.device.artefact import sha256_of
from edge.device.child import run_in_child
from edge.device.commands import run_command
from edge.device.runner import Runner

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


def run_on_copies(folder: Path, name: str, num_seeds: int, *command: str) -> None:
    content, description = (folder / name).read_bytes(), (folder / "edge.json").read_text()
    manifest, stderr = json.loads(description), os.dup(2)
    for what, damaged in damaged_copies(content, num_seeds):
        (folder / name).write_bytes(damaged)
        manifest["sha256"][name] = sha256_of(damaged)
        (folder / "edge.json").write_text(json.dumps(manifest))
        with tempfile.TemporaryFile() as said:
            os.dup2(said.fileno(), 2)
            code = run_in_child(lambda: run_command(make_parser(), [*command, "--json"]))
            os.dup2(stderr, 2)
            said.seek(0)
            err = said.read().decode(errors="replace")
        print(json.dumps({"file": name, "what": what, "code": code, "err": err}), flush=True)
    (folder / name).write_bytes(content)
    (folder / "edge.json").write_text(description)


if __name__ == "__main__":
    folder, image, num_seeds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    Runner(folder)
    run_on_copies(folder, "model.pte", num_seeds, "run", str(folder), image)
    run_on_copies(folder, "self_test.bpte", num_seeds, "self-test", str(folder))
