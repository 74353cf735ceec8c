"""File names and labels on a terminal, which may hold anything."""

import sys
import unicodedata

# Control characters, halves of pairs (as in names that are not UTF-8), and two more ends of lines.
NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp")


def printable(text: str) -> str:
    """A text in one line, with escapes like `\\x1b` for what does not print or would steer the terminal."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in NOT_SHOWN else character
        for character in text
    )


def escape_in_streams() -> None:
    """Escape what the encoding of stdout or stderr lacks instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
