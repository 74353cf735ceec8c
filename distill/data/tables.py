"""Tables of images: .csv, .jsonl and .parquet files with a row for each image."""

import csv
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from distill.data.sources import DataError, by_split
from edge.device.names import IMAGE_NAMES, MASK_NAMES, is_hidden, split_of

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")


def is_table(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in TABLE_SUFFIXES


def open_table(path: Path) -> tuple[dict[str, datasets.Dataset], dict[str, int]]:
    """The rows of each split, with images from paths relative to the table's folder, and how many are left out for what.

    A column "split" may name the split of each row. Cells of .csv and .jsonl files are text.

    Raises:
        DataError: it is no table, or a cell that must be filled is empty.
    """
    rows = _read(path)
    left_out: Counter[str] = Counter()
    columns = [name for name, feature in rows.features.items() if _holds_paths(name, feature)]
    for column in columns:
        names = list(rows[column])
        empty = [number for number, name in enumerate(names) if name is None or not name.strip()]
        if empty:
            raise DataError(f'column "{column}" of {path} is empty in row {empty[0]}; fill it')
        visible = [number for number, name in enumerate(names) if not _is_hidden(path.parent, name.strip())]
        left_out["hidden"] += len(names) - len(visible)
        rows = rows.select(visible)
    for column in columns:
        rows = rows.add_column(f"{column}.path", [str(_file(path.parent, name.strip())) for name in rows[column]])
        rows = rows.remove_columns(column).rename_column(f"{column}.path", column)
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return _by_split(rows, path), {reason: count for reason, count in left_out.items() if count}


def paths_in_table(path: Path) -> list[Path]:
    """The image files that a table names."""
    try:
        splits, _ = open_table(path)
    except DataError:  # said when the images are needed
        return []
    cells = [
        cell
        for rows in splits.values()
        for column, feature in rows.features.items()
        if isinstance(feature, datasets.Image)
        for cell in rows.cast_column(column, datasets.Image(decode=False)).flatten()[f"{column}.path"]
    ]
    return [Path(cell) for cell in cells if cell]


def _holds_paths(column: str, feature: Any) -> bool:
    return column in (*IMAGE_NAMES, *MASK_NAMES) and getattr(feature, "dtype", None) in ("string", "large_string")


def _is_hidden(folder: Path, name: str) -> bool:
    """Whether a part of a path in a table is hidden, seen from the table's folder."""
    path = Path(name)
    if path.is_absolute():
        path = path.relative_to(folder.resolve()) if path.is_relative_to(folder.resolve()) else Path(path.name)
    return any(is_hidden(part) for part in path.parts if part != "..")


def _file(folder: Path, name: str) -> Path:
    """The file that a table names, whose name may be composed (NFC) in one of the two and decomposed (NFD) in the other."""
    forms = [folder / name, *(folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    return forms[0] if name.isascii() else next((file for file in forms if file.exists()), forms[0])


def _by_split(rows: datasets.Dataset, path: Path) -> dict[str, datasets.Dataset]:
    if "split" not in rows.column_names:
        return {"all": rows}
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(rows["split"]):
        numbers.setdefault(str(name).strip(), []).append(number)
    unknown = sorted(name for name in numbers if split_of(name) is None)
    splits = by_split(numbers, f'column "split" of {path}')
    if unknown or "train" not in splits:
        raise DataError(
            f'column "split" of {path} must hold train, validation, test, one in each row and including train, got '
            f"{', '.join(unknown or splits)}"
        )
    return {split: rows.select(numbers[name]) for split, name in splits.items()}


def _read(path: Path) -> datasets.Dataset:
    if path.suffix.lower() == ".parquet":
        try:
            return datasets.Dataset.from_parquet(str(path))
        except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
            raise DataError(f"--dataset {path} is not a table that can be read: {error.__cause__ or error}") from error
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(_csv_rows(text) if path.suffix.lower() == ".csv" else _json_rows(text))
    except (ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"--dataset {path} is not a table that can be read: {error}") from error
    names = list(dict.fromkeys(name for row in rows for name in row))
    features = datasets.Features({name: datasets.Value("string") for name in names})
    return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names}, features=features)


def _csv_rows(text: str) -> Iterator[dict[str, str | None]]:
    """Cells as they are written; empty ones are None."""
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    if len(set(header)) < len(header):
        raise ValueError(f"columns must have different names, got {', '.join(header)}")
    for cells in reader:
        if len(cells) > len(header):
            raise ValueError(f"line {reader.line_num} has {len(cells)} cells, there are {len(header)} columns")
        if cells:
            filled = [cell if cell.strip() else None for cell in cells] + [None] * (len(header) - len(cells))
            yield dict(zip(header, filled))


def _json_rows(text: str) -> Iterator[dict[str, str | None]]:
    """Numbers as they are written, other values as JSON; null and empty text are None."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON; write null where there is nothing")

    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line, parse_int=str, parse_float=str, parse_constant=refuse)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} must be a JSON object, got {line[:40]}")
            yield {name.strip(): _as_text(value) for name, value in row.items()}


def _as_text(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
