"""Names in cards, reports and pictures: never where on this disk something lies, and nothing that is taken for a command."""

from pathlib import Path


def public_name(name: str) -> str:
    """A Hub id as it is; of what lies, or looks as if it lay, on this disk, its own name without folders."""
    path = Path(name).expanduser()
    is_hub_id = not path.is_absolute() and name.count("/") <= 1 and not name.startswith((".", "~")) and "\\" not in name
    return name if is_hub_id and not path.exists() else path.resolve().name


def dataset_type(name: str) -> str:
    """The `type` of a data set for a model index: the Hub's id, or how images on this disk are read."""
    if public_name(name) == name and not Path(name).exists():
        return name
    suffix = Path(name).suffix.lower()
    return suffix[1:] if suffix in (".csv", ".jsonl", ".parquet") else "imagefolder"


def picture_text(name: str, at_most: int = 30) -> str:
    """A name as it is drawn: without characters that cannot be, and not longer than `at_most`."""
    text = "".join(letter if letter.isprintable() else " " for letter in name)
    return text if len(text) <= at_most else f"{text[: at_most - 1]}…"
