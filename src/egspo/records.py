"""Rows of JSON lines and CSV files, gzipped or not; an error names the setting, the file and the line."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

Row = dict[str, Any]
Record = TypeVar("Record")


def read_rows(path: Path, field: str) -> list[tuple[int, Row]]:
    """Line number and columns, named in lower case, of every row of a .jsonl, .json or .csv file, also .gz.

    A .json file holds one array of objects; their line is their place in it, from 1.

    Raises:
        ValueError: for an unreadable or empty file or a broken row; ``field`` is the setting it came from.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in _READERS:
        raise ValueError(f"{field}: {path}: unknown kind of file; give .jsonl, .json or .csv, also gzipped")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            rows = list(_READERS[kind](file, f"{field}: {path}"))
    except (UnicodeDecodeError, csv.Error, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{field}: {path}: not a readable {kind} file ({error}); save it as UTF-8 text"
        ) from error
    if not rows:
        raise ValueError(f"{field}: {path}: holds no rows; give a file with at least one")
    return [(line, {str(key).strip().lower(): value for key, value in row.items()}) for line, row in rows]


def read_records(path: Path, field: str, parse: Callable[[Row], Record]) -> list[tuple[str, Record]]:
    """``FILE:LINE`` and what ``parse`` makes of the row, for every row of a file.

    Raises:
        ValueError: as `read_rows`, and with the place of the row for every ``ValueError`` of ``parse``.
    """
    rows = [(f"{path}:{line}", row) for line, row in read_rows(path, field)]
    records = parse_rows(rows, parse, f"{field}: ")
    return [(f"{path.name}{place.removeprefix(str(path))}", record) for place, record in records]


def parse_rows(
    rows: Iterable[tuple[str, Row]], parse: Callable[[Row], Record], prefix: str
) -> list[tuple[str, Record]]:
    """The place of each row and what ``parse`` makes of it.

    Raises:
        ValueError: with the place of the row for every ``ValueError`` of ``parse``.
    """
    records = []
    for place, row in rows:
        try:
            records.append((place, parse(row)))
        except ValueError as error:
            raise ValueError(f"{prefix}{place}: {error}") from error
    return records


def chat_messages(value: Any) -> list[dict[str, str]]:
    """Chat messages, ``role`` and ``content`` of each; none of what is no list of them."""
    whole = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    )
    return [{"role": m["role"], "content": m["content"]} for m in value] if whole else []


def _csv_rows(file: Iterable[str], place: str) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(file)
    for row in reader:
        yield reader.line_num, row


def _json_rows(file: Iterable[str], place: str) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            reason = getattr(error, "msg", error)
            raise ValueError(
                f"{place}:{line}: not JSON ({reason}); write one JSON object per line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{place}:{line}: not a JSON object; write one JSON object per line")
        yield line, row


def _array_rows(file: TextIO, place: str) -> Iterator[tuple[int, Row]]:
    try:
        rows = json.load(file)
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({getattr(error, 'msg', error)}); correct the file") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{place}: not an array of JSON objects; write one, or JSON lines as .jsonl")
    yield from enumerate(rows, 1)


_READERS = {"csv": _csv_rows, "jsonl": _json_rows, "json": _array_rows}
