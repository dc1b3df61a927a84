"""Tables: separated text files and Parquet, read whole and checked, or refused with file, line and column.

The fast path is pyarrow's. Only when it (or a later check) finds something wrong is the file read again, slowly,
to say where.
"""

import csv
import io
import re
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

from alternator.checks import cut, listed, one_line
from ur4rec.errors import DataError

MAX_FIELD_CHARACTERS = 131_072
"""The maximum length of a field of a text file, in characters: the limit of the standard library's csv."""
MAX_ROW_BYTES = 2**20
"""The maximum length of a row of a text file: the block that pyarrow reads at once."""
MAX_COLUMNS = 25_000
"""The number of columns of a text file at most: each takes some kilobytes, however little is in it."""
MAX_LINE_BYTES = 2**24
"""A longer line is refused before the file is parsed, which would say which of its fields is too long."""
MAX_PARQUET_BYTES, MAX_PARQUET_RATIO, _PARQUET_ROWS = 2**27, 100, 2**14
"""A table from Parquet has at most this number of bytes, or this number of times those of the file; rows at once."""
_LINE_END = re.compile(b"\r\n|\n|\r")


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """The format of a text file that holds a table."""

    separator: str
    """What separates two fields; one character, or ``::``."""
    quoted: bool = False
    """Whether fields may be in double quotes, as in CSV."""
    encoding: str = "utf-8"
    """The encoding of the characters."""
    columns: tuple[str, ...] | None = None
    """Names of the columns; None: those in the first line."""


@dataclass(frozen=True)
class Table:
    """A table that has been read: columns of strings (or of whatever Parquet holds) and the line of each row."""

    path: Path
    """The file."""
    columns: dict[str, pa.Array]
    """The columns by name."""
    format: TextFormat | None
    """The format of the text file; None for Parquet."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def strings(self, column: str) -> NDArray[Any]:
        """A column as strings; a missing value of a Parquet file is the empty one."""
        array = self.columns[column]
        if not pa.types.is_string(array.type):
            try:
                array = pc.cast(array, pa.string())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"{self.path}, column {column!r}: must be strings or numbers, got {array.type}; write it as strings"
                ) from error
        try:
            return np.asarray(pc.fill_null(array, "").to_numpy(zero_copy_only=False), dtype=object)
        except (UnicodeDecodeError, pa.ArrowException) as error:
            raise DataError(
                f"{self.path}, column {column!r}: must be UTF-8 ({error}); write it again as UTF-8"
            ) from error

    def names(self, column: str) -> NDArray[Any]:
        """A column of user or item names: none may be empty."""
        values = self.strings(column)
        if not np.all(values.astype(bool)):
            self._refuse(column, lambda value: None if value else "must not be empty", "name it or drop the row")
        return values

    def refuse_repeats(self, column: str) -> None:
        """Raise for a value that an earlier row has too."""
        before: set[str] = set()

        def fault(value: str) -> str | None:
            repeated = value in before
            before.add(value)
            return "must not be repeated" if repeated else None

        if len(set(self.strings(column))) < len(self):
            self._refuse(column, fault, "drop one of the rows")

    def numbers_of_time(self, column: str) -> NDArray[Any]:
        """A column of times: integers as int64, other numbers as float64, ISO 8601 dates as seconds since 1970."""
        times = parse_times(self.columns[column])
        if times is not None:
            return times
        kinds: list[str] = []

        def fault(value: str) -> str | None:
            kind = kind_of_time(value)
            if kind is None:
                return "must be a finite number or an ISO 8601 date"
            kinds.append(kind)
            return f"must be {kinds[0]}, as in the first row" if kind != kinds[0] else None

        self._refuse(column, fault, "write seconds as a number, or an ISO 8601 date")
        raise DataError(
            f"{self.path}, column {column!r}: must be times, got {self.columns[column].type}; write numbers"
        )

    def _refuse(self, column: str, fault: Callable[[str], str | None], remedy: str) -> None:
        """Raise for the first value that has a fault, with its place."""
        places = self._lines() if self.format else range(1, len(self) + 1)
        for place, value in zip(places, self.strings(column), strict=False):
            if found := fault(str(value)):
                where = f"{self.path}:{place}" if self.format else f"{self.path}, row {place}"
                raise DataError(f"{where}, column {column!r}: {found}, got {cut(str(value))!r}; {remedy}")

    def _lines(self) -> Iterator[int]:
        assert self.format is not None
        rows = _rows(self.path, self.format, _read_bytes(self.path, self.format.encoding))
        if self.format.columns is None:
            next(rows)
        return (line for line, _ in rows)


def read_text_table(path: Path, form: TextFormat) -> Table:
    """Read a separated text file; every row must have as many fields as the first line.

    A field has at most 131,072 characters and a row at most a megabyte, so that an unclosed quote is found.

    Raises:
        DataError: The file is missing, empty or in another encoding, or a row has another number of fields.
    """
    content = _read_bytes(path, form.encoding)
    names, start = (list(form.columns), 0) if form.columns else _header(path, form, content)
    if not content[start:].strip(b"\r\n"):
        raise DataError(f"{path}: holds no row; give a file with at least one")
    try:
        columns = _read_columns(form, content, start, names)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        _refuse_shape(path, form, content, len(names))
        raise DataError(f"{path}: cannot be read as a table of {len(names)} columns: {one_line(str(error))}") from error
    if _has_long_fields(columns) or (b'"' in content and form.quoted and _has_line_ends(columns)):
        _refuse_shape(path, form, content, len(names))
    return Table(path, columns, form)


def read_parquet_table(path: Path) -> Table:
    """Read a Parquet file.

    Raises:
        DataError: The file is missing or is not Parquet, or two columns have one name.
    """
    _check_is_file(path)
    table = read_parquet(path)
    _check_header(str(path), table.column_names)
    return Table(path, {name: table[name].combine_chunks() for name in table.column_names}, None)


def read_parquet(path: Path) -> pa.Table:
    """The table of a Parquet file, read piece by piece: a file that is small and holds a huge table is refused.

    Raises:
        DataError: The file is missing or is not Parquet, or its table is far larger than the file.
    """
    try:
        limit = max(MAX_PARQUET_BYTES, MAX_PARQUET_RATIO * path.stat().st_size)
        with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            batches: list[pa.RecordBatch] = []
            for batch in file.iter_batches(_PARQUET_ROWS):
                batches.append(batch)
                if (limit := limit - batch.nbytes) < 0:
                    raise DataError(
                        f"{path}: a table must be at most {MAX_PARQUET_RATIO} times as large as its file, this one is "
                        "larger; write it without what repeats"
                    )
            table = pa.Table.from_batches(batches, file.schema_arrow)
            if len(table) != file.metadata.num_rows:
                raise DataError(
                    f"{path}: cannot be read as Parquet: its footer says {file.metadata.num_rows} rows, it has "
                    f"{len(table)}; write it again"
                )
            return table
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {one_line(str(error), 200)}") from error


def require_columns(table: Table, columns: Sequence[str], remedy: str) -> None:
    """Refuse a table that lacks one of the columns.

    Raises:
        DataError: Names the missing column, those there are, and the remedy.
    """
    for column in columns:
        if column not in table.columns:
            raise DataError(
                f"{table.path}: needs a column {column!r}, has {listed(map(cut, table.columns), 12)}; {remedy}"
            )
    if not len(table):
        raise DataError(f"{table.path}: holds no row; give a file with at least one")


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        found = "a directory" if path.is_dir() else "something else" if path.exists() else "none"
        raise DataError(f"{path}: must be an existing file, got {found}; give the path of one")


def _read_bytes(path: Path, encoding: str) -> bytes:
    """The content without a byte order mark, checked to be text in that encoding."""
    _check_is_file(path)
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not content.strip():
        raise DataError(f"{path}: is empty; give a file with at least one row")
    _refuse_long_lines(path, content)
    try:
        content.decode(encoding)
        place = content.find(b"\0")
    except UnicodeDecodeError as error:
        place = error.start
    if place >= 0:
        lines = _LINE_END.split(content[:place])
        raise DataError(
            f"{path}:{len(lines)}, byte {len(lines[-1]) + 1}: must be {encoding} text, "
            f"got the byte 0x{content[place]:02x}; save it as {encoding}"
        )
    return content


def _refuse_long_lines(path: Path, content: bytes) -> None:
    """Refuse a line that no row may have, before the file is decoded and parsed: both take many times its memory."""
    start = 0
    while len(content) - start > MAX_LINE_BYTES:
        end = max(content.rfind(each, start, start + MAX_LINE_BYTES + 1) for each in (b"\n", b"\r"))
        if end < 0:
            lines = len(_LINE_END.split(content[:start]))
            raise DataError(f"{path}:{lines}: a row must have at most {MAX_ROW_BYTES} bytes, got more; shorten it")
        start = end + 1


def _header(path: Path, form: TextFormat, content: bytes) -> tuple[list[str], int]:
    """The names in the first line that is not empty, and where it ends."""
    start = len(content) - len(content.lstrip(b"\r\n"))
    end = start + len(_LINE_END.split(content[start:], maxsplit=1)[0])
    line = len(_LINE_END.split(content[:start]))
    _, names = next(_rows(path, form, content[start:end], line))
    _check_header(f"{path}:{line}", names)
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{path}:{line}: a table must have at most {MAX_COLUMNS} columns, got {len(names)}; drop some")
    return names, end


def _check_header(where: str, names: Sequence[str]) -> None:
    if not all(names) or len(set(names)) < len(names):
        raise DataError(f"{where}: column names must be distinct and not empty, got {listed(map(cut, names), 12)}")


def _read_columns(form: TextFormat, content: bytes, start: int, names: list[str]) -> dict[str, pa.Array]:
    separator = form.separator
    if len(separator) > 1:
        content, separator = content.replace(separator.encode(), b"\t"), "\t"
    table = pa.csv.read_csv(
        own(
            memoryview(content)[start:] if form.encoding == "utf-8" else content[start:].decode(form.encoding).encode()
        ),
        read_options=pa.csv.ReadOptions(column_names=names, block_size=MAX_ROW_BYTES),
        parse_options=pa.csv.ParseOptions(
            delimiter=separator, quote_char='"' if form.quoted else False, newlines_in_values=form.quoted
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    return {name: table[name].combine_chunks() for name in names}


def own(content: bytes | memoryview) -> pa.BufferReader:
    """A stream over a copy that Arrow owns.

    A thread of Arrow may let go of the last block that it has read while the interpreter ends: if Python owned the
    memory (`pa.py_buffer`, or an ``encoding`` that is decoded in Python) the process would abort, with exit code 134.
    """
    copy = pa.BufferOutputStream()
    copy.write(content)
    return pa.BufferReader(copy.getvalue())


def _has_long_fields(columns: dict[str, pa.Array]) -> bool:
    return any((pc.max(pc.utf8_length(column)).as_py() or 0) > MAX_FIELD_CHARACTERS for column in columns.values())


def _has_line_ends(columns: dict[str, pa.Array]) -> bool:
    """Whether a field spans lines: then it may be all that follows an unclosed quote, which pyarrow accepts."""
    return any(pc.any(pc.match_substring(column, end)).as_py() for column in columns.values() for end in "\r\n")


def _rows(path: Path, form: TextFormat, content: bytes, first_line: int = 1) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of its (last) line, without pyarrow. Empty lines are skipped."""
    text = content.decode(form.encoding)
    if not form.quoted:
        for line, row in enumerate(re.split("\r\n|\n|\r", text), first_line):
            if row:
                yield line, row.split(form.separator)
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=form.separator, strict=True)
    line = 0
    try:
        for row in reader:
            line = reader.line_num
            if row:
                yield first_line + line - 1, row
    except csv.Error as error:
        raise DataError(f"{path}:{first_line + line}: cannot be read: {error}; look for an unclosed quote") from error


def _refuse_shape(path: Path, form: TextFormat, content: bytes, num_columns: int) -> None:
    """Raise for the first row that has another number of fields, or a field that is too long."""
    for line, row in _rows(path, form, content):
        if len(row) != num_columns:
            last = min(len(row), num_columns)
            raise DataError(
                f"{path}:{line}, column {last}: every row must have {num_columns} fields, got {len(row)}; "
                f"fix the row ({cut(form.separator.join(row))!r})"
            )
        longest = max(range(num_columns), key=lambda column: len(row[column]))
        if len(row[longest]) > MAX_FIELD_CHARACTERS:
            raise DataError(
                f"{path}:{line}, column {longest + 1}: a field must have at most {MAX_FIELD_CHARACTERS} characters, "
                f"got {len(row[longest])}; shorten it"
            )
        if (size := len(form.separator.join(row).encode(form.encoding))) > MAX_ROW_BYTES:
            raise DataError(f"{path}:{line}: a row must have at most {MAX_ROW_BYTES} bytes, got {size}; shorten it")


_PER_SECOND = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}


def parse_times(array: pa.Array) -> NDArray[Any] | None:
    """Times as int64 or float64, or None where a value is not a time or they are of several kinds."""
    if array.null_count or pa.types.is_boolean(array.type):
        return None
    if pa.types.is_temporal(array.type):
        return _seconds(array) if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type) else None
    for kind in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            times = pc.cast(array, kind, safe=kind != pa.float64())  # not each integer beyond 2**53 is a float
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        if pa.types.is_timestamp(kind):
            return _seconds(times)
        numbers = times.to_numpy(zero_copy_only=False)
        return numbers if np.isfinite(numbers).all() else None
    return None


def _seconds(array: pa.Array) -> NDArray[np.float64]:
    if pa.types.is_date(array.type):
        array = pc.cast(array, pa.timestamp("s" if pa.types.is_date32(array.type) else "ms"))
    counts = pc.cast(array, pa.int64()).to_numpy(zero_copy_only=False)
    return np.asarray(counts / _PER_SECOND[array.type.unit], np.float64)


def kind_of_time(value: str) -> str | None:
    """The kind of time that a string holds: a number, a date or a date with a time zone; None if none of them."""
    if (times := parse_times(pa.array([value]))) is None or not np.isfinite(times).all():
        return None
    try:
        float(value)
    except ValueError:
        zoned = re.search(r"(Z|[+-]\d\d(:?\d\d)?)$", value.partition(":")[2])
        return "a date with a time zone" if zoned else "a date"
    return "a number"
