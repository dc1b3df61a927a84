"""JSON lines: one object per line, read whole and checked, or refused with file and line."""

import json
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from alternator.checks import cut, one_line
from ur4rec.data.reading.content import LINE_END, MAX_ROW_BYTES, own, read_beginning, read_blocks, read_content
from ur4rec.data.reading.tables import Part, Table, check_header
from ur4rec.errors import DataError

_SAMPLE_LINES, _SAMPLE_BYTES = 1000, 2**20
"""Where the names and types of the columns are looked up: the first lines."""
_BLOCK = 2**24
"""Bytes that are parsed at once, where a file is not read whole."""
MAX_JSON_COLUMNS = 1000
"""The number of names of a JSON lines file at most."""
MIN_CELLS, MAX_CELLS_PER_BYTE = 2**20, 2
"""The table of a JSON lines file has at most this number of cells, or this number for each byte of the file."""


def read_json_lines(path: Path, encoding: str = "utf-8") -> Table:
    """Read JSON lines: columns of strings, numbers, truth values and lists of them; objects within are left out.

    Raises:
        DataError: The file is missing, empty or in another encoding, or a line is no object or of other types.
    """
    content = read_content(path, encoding)
    kinds, left_out = _column_kinds(path, content)
    table = _parse_lines(path, content, kinds)
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    return Table(path, columns, (Part(path, len(table), partial(_lines, path, encoding)),), left_out=left_out)


def stream_json_lines(path: Path, columns: Collection[str] | None) -> Iterator[tuple[Table, float]]:
    """JSON lines in tables of some thousand rows, with the share of the file that has been read.

    Args:
        path: The file, in UTF-8.
        columns: What is read; None is all columns.

    Raises:
        DataError: As for `read_json_lines`.
    """
    kinds, left_out = _column_kinds(path, read_beginning(path))
    wanted = {name: kind for name, kind in kinds.items() if columns is None or name in columns}
    for line, block, share in read_blocks(path, _BLOCK):
        if block.strip():
            table = _parse_lines(path, block, kinds, wanted, line)
            arrays = {name: table[name].combine_chunks() for name in wanted}
            part = Part(path, len(table), partial(_lines_of, block, line))
            yield Table(path, arrays, (part,), left_out=left_out), share


def _parse_lines(
    path: Path,
    content: bytes,
    kinds: dict[str, pa.DataType],
    wanted: dict[str, pa.DataType] | None = None,
    first_line: int = 1,
) -> pa.Table:
    _refuse_sparse(path, content, len(kinds))
    try:
        return pa.json.read_json(
            own(content),
            read_options=pa.json.ReadOptions(block_size=MAX_ROW_BYTES),
            parse_options=pa.json.ParseOptions(
                explicit_schema=pa.schema(list((wanted or kinds).items())), unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowException as error:
        _refuse_lines(path, content, kinds, first_line)
        raise DataError(f"{path}: cannot be read as JSON lines: {one_line(str(error), 200)}") from error


def _lines(path: Path, encoding: str) -> Iterator[int]:
    return _lines_of(read_content(path, encoding), 1)


def _lines_of(content: bytes, first_line: int) -> Iterator[int]:
    return (line for line, _ in _numbered(content, first_line))


def _numbered(content: bytes, first_line: int = 1) -> Iterator[tuple[int, bytes]]:
    return ((line, text) for line, text in enumerate(LINE_END.split(content), first_line) if text.strip())


def _column_kinds(path: Path, content: bytes) -> tuple[dict[str, pa.DataType], frozenset[str]]:
    """The names and types of the columns, from the first lines, and those that hold objects."""
    kinds: dict[str, Any] = {}
    lines = list(_numbered(content[:_SAMPLE_BYTES]))
    if len(content) > _SAMPLE_BYTES and len(lines) > 1:
        lines.pop()  # it may be cut
    for line, text in lines[:_SAMPLE_LINES]:
        row = _parse(path, line, text)
        for name, value in row.items():
            found = _kind(value)
            kinds[name] = found if kinds.get(name) in (None, found) else _wider(kinds[name], found)
        check_header(f"{path}:{line}", list(kinds))
        if len(kinds) > MAX_JSON_COLUMNS:
            raise DataError(
                f"{path}:{line}: rows must have at most {MAX_JSON_COLUMNS} names together, have more",
                "leave out what few have",
            )
    left_out = frozenset(name for name, kind in kinds.items() if kind is _OBJECT)
    return {
        name: pa.string() if kind is None else kind for name, kind in kinds.items() if name not in left_out
    }, left_out


def _refuse_sparse(path: Path, content: bytes, num_names: int) -> None:
    """Refuse what would take far more memory as a table than as a file, where a cell that is there takes some bytes."""
    num_lines = content.count(b"\n") + 1
    if num_lines * num_names > max(MIN_CELLS, MAX_CELLS_PER_BYTE * len(content)):
        raise DataError(
            f"{path}: rows must have most names in common, {num_lines} lines of {len(content) // num_lines} bytes have "
            f"{num_names}; leave out what few have"
        )


_OBJECT = object()


def _kind(value: Any) -> Any:
    """The Arrow type of a JSON value; None for null and `_OBJECT` for what is left out."""
    if value is None:
        return None
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, (int, float, str)):
        return {int: pa.int64(), float: pa.float64(), str: pa.string()}[type(value)]
    if isinstance(value, list):
        kind = None
        for each in value:
            kind = _wider(kind, _kind(each))
        return kind if kind is _OBJECT else pa.list_(pa.string() if kind is None else kind)
    return _OBJECT


def _wider(kind: Any, other: Any) -> Any:
    """The type of both; the first where there is none, which the reading then refuses."""
    if kind is None or other is None:
        return other if kind is None else kind
    numbers = {pa.int64(), pa.float64()}
    if _OBJECT not in (kind, other) and {kind, other} == numbers:
        return pa.float64()
    return kind


def _parse(path: Path, line: int, text: bytes) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise _no_object(path, line, text, f"{error.msg}, character {error.colno}") from error
    except (ValueError, RecursionError) as error:
        why = one_line(str(error)) if isinstance(error, ValueError) else "it nests too deeply"
        raise _no_object(path, line, text, why) from error
    if not isinstance(row, dict):
        raise _no_object(path, line, text, f"it is {_in_words(row)}")
    return row


def _no_object(path: Path, line: int, text: bytes, why: str) -> DataError:
    shown = cut(repr(text.decode(errors="replace")))
    return DataError(
        f"{path}:{line}: must be a JSON object, got {shown} ({why})", "write one object per line, without [ and ]"
    )


def _refuse_lines(path: Path, content: bytes, kinds: dict[str, pa.DataType], first_line: int) -> None:
    """Raise for the first line that is no object, too long, or has a value of another type."""
    for line, text in _numbered(content, first_line):
        if len(text) >= MAX_ROW_BYTES:
            raise DataError(
                f"{path}:{line}: a row must have at most {MAX_ROW_BYTES} bytes, got {len(text)}; shorten it"
            )
        for name, value in _parse(path, line, text).items():
            kind, found = kinds.get(name), _kind(value)
            if None not in (kind, found) and found != kind and (kind, found) != (pa.float64(), pa.int64()):
                raise DataError(
                    f"{path}:{line}, column {name!r}: must be {_type_in_words(kind)}, as in the first lines, got "
                    f"{_in_words(value)} ({cut(json.dumps(value, ensure_ascii=False))})",
                    "write all in one way",
                )


def _in_words(value: Any) -> str:
    return "null" if value is None else "a list" if isinstance(value, list) else _type_in_words(_kind(value))


def _type_in_words(kind: Any) -> str:
    """A JSON value of a type, for people."""
    known = {pa.bool_(): "true or false", pa.string(): "a string", pa.int64(): "a whole number"}
    if kind is _OBJECT:
        return "an object"
    return known.get(kind, "a number" if kind == pa.float64() else "a list")
