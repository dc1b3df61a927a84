"""Separated text files, read whole and checked, or refused with file, line and column.

The fast path is pyarrow's. Only when it (or a later check) finds something wrong is the file read again, slowly,
to say where.
"""

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from alternator.checks import cut, one_line
from ur4rec.data.reading.content import (
    LINE_END,
    MAX_ROW_BYTES,
    ByteStream,
    own,
    read_beginning,
    read_content,
    refuse_bytes,
)
from ur4rec.data.reading.tables import Part, Table, check_header
from ur4rec.errors import DataError

MAX_FIELD_CHARACTERS = 131_072
"""The maximum length of a field of a text file, in characters: the limit of the standard library's csv."""
MAX_COLUMNS = 25_000
"""The number of columns of a text file at most: each takes some kilobytes, however little is in it."""
SEPARATORS = ("::", "\t", ";", "|", ",", " ")
"""What may separate fields where neither an option nor a suffix says."""
_SNIFFED_LINES, _SNIFFED_BYTES = 10, 2**16


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """The format of a text file that holds a table."""

    separator: str
    """What separates two fields; one character, or ``::``."""
    quoted: bool = False
    """Whether fields may be in double quotes, as in CSV."""
    escaped: bool = False
    """Whether a backslash takes the meaning from the character after it."""
    encoding: str = "utf-8"
    """The encoding of the characters."""
    columns: tuple[str, ...] | None = None
    """Names of the columns; None: those in the first line."""


def read_text_table(path: Path, form: TextFormat) -> Table:
    """Read a separated text file; every row must have as many fields as the first line.

    A field has at most 131,072 characters and a row at most a megabyte, so that an unclosed quote is found.

    Raises:
        DataError: The file is missing, empty or in another encoding, or a row has another number of fields.
    """
    return parse_text(path, form, read_content(path, form.encoding))


def parse_text(path: Path, form: TextFormat, content: bytes) -> Table:
    """The table of a text file with this content; see `read_text_table`."""
    names, start = (list(form.columns), 0) if form.columns else _header(path, form, content)
    if not content[start:].strip(b"\r\n"):
        raise DataError(f"{path}: holds no row; give a file with at least one")
    try:
        columns = _read_columns(form, content, start, names)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        _refuse_shape(path, form, _text(form, content), len(names))
        raise DataError(f"{path}: cannot be read as a table of {len(names)} columns: {one_line(str(error))}") from error
    if _has_long_fields(columns) or (b'"' in content and form.quoted and _has_line_ends(columns)):
        _refuse_shape(path, form, _text(form, content), len(names))
    return Table(path, columns, (Part(path, len(columns[names[0]]), partial(_lines, path, form)),))


def sniff_separator(path: Path, content: bytes) -> str | None:
    """The separator that splits the first lines into the same number of fields, the largest; None if none does."""
    lines = [line for line in LINE_END.split(content[:_SNIFFED_BYTES]) if line]
    if len(lines) > 1 and len(content) > _SNIFFED_BYTES:
        lines.pop()  # it may be cut
    sample = b"\n".join(lines[:_SNIFFED_LINES]).decode(errors="replace").encode()
    found = {}
    for separator in SEPARATORS:
        try:
            form = guess_format(separator)
            lengths = {len(row) for _, row in _rows(path, form, _text(form, sample))}
        except DataError:  # quotes that no CSV has
            continue
        if len(lengths) == 1 and lengths != {1}:
            found[separator] = lengths.pop()
    return max(found, key=lambda separator: found[separator], default=None)


def stream_text(path: Path, form: TextFormat, columns: Collection[str] | None) -> Iterator[tuple[Table, float]]:
    """A text file in tables of some thousand rows, with the share of it that has been read; never in memory whole.

    Args:
        path: The file, in UTF-8.
        form: Its format, with one character between the fields.
        columns: What is read; None is all columns. Of a format with quotes all are, so that an unclosed one is found.

    Raises:
        DataError: As for `read_text_table`.
    """
    beginning = read_beginning(path)
    names, start = (list(form.columns), 0) if form.columns else _header(path, form, beginning)
    source = ByteStream(path)
    wanted = [name for name in names if columns is None or form.quoted or name in columns]
    num_rows, scanned = 0, False
    try:
        reader = pa.csv.open_csv(
            source.stream,
            read_options=pa.csv.ReadOptions(
                column_names=names,
                block_size=MAX_ROW_BYTES,
                skip_rows=0 if form.columns else len(LINE_END.split(beginning[:start])),
            ),
            parse_options=_parse_options(form, form.separator),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, include_columns=wanted
            ),
        )
        for batch in reader:
            table = {name: batch[name] for name in wanted}
            if _has_nul(batch):
                refuse_bytes(path)
            if not scanned and (_has_long_fields(table) or (form.quoted and _has_line_ends(table))):
                scanned = True
                _refuse_shape(path, form, _open(path, form), len(names))
            if len(batch):
                yield (
                    Table(path, table, (Part(path, len(batch), partial(_later_lines, path, form, num_rows)),)),
                    source.share,
                )
            num_rows += len(batch)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        refuse_bytes(path)
        if num_rows or "Empty CSV file" not in str(error):
            _refuse_shape(path, form, _open(path, form), len(names))
            raise DataError(
                f"{path}: cannot be read as a table of {len(names)} columns: {one_line(str(error))}"
            ) from error
    if not num_rows:
        raise DataError(f"{path}: holds no row; give a file with at least one")


def _later_lines(path: Path, form: TextFormat, num_before: int) -> Iterator[int]:
    """The number of the (last) line of each row after the first ones."""
    rows = _rows(path, form, _open(path, form))
    return (line for line, _ in islice(rows, num_before + (form.columns is None), None))


def _has_nul(batch: pa.RecordBatch) -> bool:
    buffers = (column.buffers()[2] for column in batch.columns)
    return any(buffer is not None and not np.frombuffer(buffer, np.uint8).all() for buffer in buffers)


def guess_format(separator: str) -> TextFormat:
    """What a separator says of quotes: fields between commas and semicolons may be in some."""
    return TextFormat(separator=separator, quoted=separator in (",", ";"))


def _lines(path: Path, form: TextFormat) -> Iterator[int]:
    """The number of the (last) line of each row."""
    rows = _rows(path, form, _text(form, read_content(path, form.encoding)))
    if form.columns is None:
        next(rows)
    return (line for line, _ in rows)


def _header(path: Path, form: TextFormat, content: bytes) -> tuple[list[str], int]:
    """The names in the first line that is not empty, and where it ends."""
    start = len(content) - len(content.lstrip(b"\r\n"))
    end = start + len(LINE_END.split(content[start:], maxsplit=1)[0])
    line = len(LINE_END.split(content[:start]))
    _, names = next(_rows(path, form, _text(form, content[start:end]), line))
    check_header(f"{path}:{line}", names)
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{path}:{line}: a table must have at most {MAX_COLUMNS} columns, got {len(names)}; drop some")
    return names, end


def _read_columns(form: TextFormat, content: bytes, start: int, names: Sequence[str]) -> dict[str, pa.Array]:
    separator, rows = form.separator, memoryview(content)[start:]
    if len(separator) > 1:
        rows, separator = memoryview(content[start:].replace(separator.encode(), b"\t")), "\t"
    table = pa.csv.read_csv(
        own(rows),
        read_options=pa.csv.ReadOptions(column_names=names, block_size=MAX_ROW_BYTES),
        parse_options=_parse_options(form, separator),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    return {name: table[name].combine_chunks() for name in names}


def _parse_options(form: TextFormat, separator: str) -> Any:
    return pa.csv.ParseOptions(
        delimiter=separator,
        quote_char='"' if form.quoted else False,
        escape_char="\\" if form.escaped else False,
        newlines_in_values=form.quoted,
    )


def _has_long_fields(columns: dict[str, pa.Array]) -> bool:
    return any((pc.max(pc.utf8_length(column)).as_py() or 0) > MAX_FIELD_CHARACTERS for column in columns.values())


def _has_line_ends(columns: dict[str, pa.Array]) -> bool:
    """Whether a field spans lines: then it may be all that follows an unclosed quote, which pyarrow accepts."""
    return any(pc.any(pc.match_substring(column, end)).as_py() for column in columns.values() for end in "\r\n")


def _text(form: TextFormat, content: bytes) -> TextIO:
    """A content as `_rows` reads it: within quotes, line ends are as they are."""
    return io.StringIO(content.decode(), newline="" if form.quoted else None)


def _open(path: Path, form: TextFormat) -> TextIO:
    """A file as `_rows` reads it."""
    stream = ByteStream(path).stream
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline="" if form.quoted else None)


def _rows(path: Path, form: TextFormat, text: TextIO, first_line: int = 1) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of its (last) line, without pyarrow. Empty lines are skipped."""
    if not form.quoted:
        for line, whole in enumerate(text, first_line):
            if whole != "\n":
                yield line, whole.removesuffix("\n").split(form.separator)
        return
    escape = "\\" if form.escaped else None
    reader = csv.reader(text, delimiter=form.separator, strict=True, escapechar=escape)
    line = 0
    try:
        for row in reader:
            line = reader.line_num
            if row:
                yield first_line + line - 1, row
    except csv.Error as error:
        raise DataError(f"{path}:{first_line + line}: cannot be read: {error}; look for an unclosed quote") from error


def _refuse_shape(path: Path, form: TextFormat, text: TextIO, num_columns: int) -> None:
    """Raise for the first row that has another number of fields, or a field that is too long."""
    for number, (line, row) in enumerate(_rows(path, form, text)):
        if len(row) != num_columns:
            is_named = number == 0 and form.columns is not None
            raise DataError(
                f"{path}:{line}, column {min(len(row), num_columns)}: every row must have {num_columns} fields, got "
                f"{len(row)}",
                f"fix the row ({cut(form.separator.join(row))!r})",
                f"give {len(row)} --names" if is_named else "",
            )
        longest = max(range(num_columns), key=lambda column: len(row[column]))
        if len(row[longest]) > MAX_FIELD_CHARACTERS:
            raise DataError(
                f"{path}:{line}, column {longest + 1}: a field must have at most {MAX_FIELD_CHARACTERS} characters, "
                f"got {len(row[longest])}; shorten it"
            )
        if (size := len(form.separator.join(row).encode())) > MAX_ROW_BYTES:
            raise DataError(f"{path}:{line}: a row must have at most {MAX_ROW_BYTES} bytes, got {size}; shorten it")
