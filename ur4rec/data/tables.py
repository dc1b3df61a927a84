"""Tables: separated text files and Parquet, read whole and checked, or refused with file, line and column.

The fast path is pyarrow's. Only when it (or a check after it) finds something wrong is the file gone through again,
slowly, to say where.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from ur4rec.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How a text file holds a table."""

    separator: str
    """What is between two fields; one character, or ``::``."""
    quoted: bool = False
    """Whether fields may be in double quotes, as in CSV."""
    encoding: str = "utf-8"
    """How characters are encoded."""
    columns: tuple[str, ...] | None = None
    """Names of the columns; None: they are in the first line."""


@dataclass(frozen=True)
class Table:
    """A table that has been read: columns of texts (or of whatever Parquet holds) and where each row was."""

    path: Path
    """The file."""
    columns: dict[str, pa.Array]
    """The columns by name."""
    format: TextFormat | None
    """How the text file was read; None for Parquet."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def texts(self, column: str) -> NDArray[Any]:
        """A column as texts; where Parquet has nothing it is empty."""
        array = self.columns[column]
        if not pa.types.is_string(array.type):
            try:
                array = pc.cast(array, pa.string())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"{self.path}, column {column!r}: must be texts or numbers, got {array.type}; write it as texts"
                ) from error
        return np.asarray(pc.fill_null(array, "").to_numpy(zero_copy_only=False), dtype=object)

    def names(self, column: str) -> NDArray[Any]:
        """A column of user or item names: none may be empty."""
        values = self.texts(column)
        if not np.all(values.astype(bool)):
            self._refuse(column, lambda value: None if value else "must not be empty", "name it or drop the row")
        return values

    def refuse_repeats(self, column: str) -> None:
        """Raise for a value that a row before it has too."""
        before: set[str] = set()

        def fault(value: str) -> str | None:
            repeated = value in before
            before.add(value)
            return "must not be repeated" if repeated else None

        if len(set(self.texts(column))) < len(self):
            self._refuse(column, fault, "drop one of the rows")

    def numbers_of_time(self, column: str) -> NDArray[Any]:
        """A column of times: whole numbers as int64, others as float64, ISO 8601 dates as seconds since 1970."""
        times = _parse_times(self.columns[column])
        if times is None:
            self._refuse(column, _time_fault, "write seconds as a number, or an ISO 8601 date")
            raise DataError(
                f"{self.path}, column {column!r}: times must be of one kind, got several; write all as numbers"
            )
        return times

    def _refuse(self, column: str, fault: Callable[[str], str | None], remedy: str) -> None:
        """Raise for the first value that has a fault, with its place."""
        places = self._lines() if self.format else range(1, len(self) + 1)
        for place, value in zip(places, self.texts(column), strict=False):
            if found := fault(str(value)):
                where = f"{self.path}:{place}" if self.format else f"{self.path}, row {place}"
                raise DataError(f"{where}, column {column!r}: {found}, got {str(value)!r}; {remedy}")

    def _lines(self) -> Iterator[int]:
        assert self.format is not None
        rows = _rows(self.path, self.format, self.path.read_bytes())
        if self.format.columns is None:
            next(rows)
        return (line for line, _ in rows)


def read_text_table(path: Path, form: TextFormat) -> Table:
    """Read a separated text file; every row must have as many fields as the first line.

    Raises:
        DataError: The file is missing, empty, wrongly encoded, or a row has another number of fields.
    """
    content = _read_bytes(path)
    names = list(form.columns) if form.columns else _header(path, form, content)
    separator = form.separator if len(form.separator) == 1 else "\t"
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(content.replace(form.separator.encode(), separator.encode())),
            read_options=pa.csv.ReadOptions(
                column_names=names, skip_rows=0 if form.columns else 1, encoding=form.encoding
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if form.quoted else False,
                newlines_in_values=form.quoted,
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        _refuse_shape(path, form, content, len(names))
        raise DataError(f"{path}: cannot be read as a table with the columns {names}: {error}") from error
    return Table(path, {name: table[name].combine_chunks() for name in names}, form)


def read_parquet_table(path: Path) -> Table:
    """Read a Parquet file.

    Raises:
        DataError: The file is missing or is not Parquet.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        table = pa.parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    return Table(path, {name: table[name].combine_chunks() for name in table.column_names}, None)


def require_columns(table: Table, columns: Sequence[str], remedy: str) -> None:
    """Refuse a table that lacks one of the columns.

    Raises:
        DataError: Names the missing column, those there are, and the remedy.
    """
    for column in columns:
        if column not in table.columns:
            raise DataError(f"{table.path}: needs a column {column!r}, has {tuple(table.columns)}; {remedy}")
    if not len(table):
        raise DataError(f"{table.path}: holds no row; give a file with at least one")


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not content.strip():
        raise DataError(f"{path}: is empty; give a file with at least one row")
    return content


def _header(path: Path, form: TextFormat, content: bytes) -> list[str]:
    first_line = content.lstrip(b"\r\n").partition(b"\n")[0].rstrip(b"\r")
    _, names = next(_rows(path, form, first_line))
    for name in names:
        if not name or names.count(name) > 1:
            raise DataError(f"{path}:1: column names must be distinct and not empty, got {tuple(names)}")
    return names


def _rows(path: Path, form: TextFormat, content: bytes) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of its (last) line, without pyarrow. Empty lines are skipped."""
    text = _decode(path, form.encoding, content)
    if form.quoted:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=form.separator)
        try:
            yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: cannot be read: {error}; look for a quote left open") from error
    else:
        lines = enumerate(text.replace("\r\n", "\n").split("\n"), start=1)
        yield from ((number, line.split(form.separator)) for number, line in lines if line)


def _decode(path: Path, encoding: str, content: bytes) -> str:
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        raise DataError(
            f"{path}:{line}: must be {encoding}, got the byte 0x{byte:02x}; save it as {encoding}"
        ) from error


def _refuse_shape(path: Path, form: TextFormat, content: bytes, num_columns: int) -> None:
    for line, row in _rows(path, form, content):
        if len(row) != num_columns:
            last = min(len(row), num_columns)
            raise DataError(
                f"{path}:{line}, column {last}: every row must have {num_columns} fields, got {len(row)}; "
                f"mend the row ({form.separator.join(row)[:60]!r})"
            )


def _parse_times(array: pa.Array) -> NDArray[Any] | None:
    """Times as int64 or float64, or None where a value is no time."""
    if array.null_count:
        return None
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        return _seconds(array)
    for kind in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            times = pc.cast(array, kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        if pa.types.is_timestamp(kind):
            return _seconds(times)
        numbers = times.to_numpy(zero_copy_only=False)
        return numbers if np.isfinite(numbers).all() else None
    return None


def _seconds(array: pa.Array) -> NDArray[np.float64]:
    micros = pc.cast(pc.cast(array, pa.timestamp("us")), pa.int64()).to_numpy(zero_copy_only=False)
    return np.asarray(micros / 1e6, np.float64)


def _time_fault(value: str) -> str | None:
    times = _parse_times(pa.array([value]))
    if times is None or not math.isfinite(float(times[0])):
        return "must be a finite number or an ISO 8601 date"
    return None
