"""Opening: a file of any format as a table, and how it was read."""

import codecs
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from alternator.checks import cut
from ur4rec.data.reading.content import MAX_ROW_BYTES, check_is_file, kind_of, read_beginning, read_content
from ur4rec.data.reading.json_lines import read_json_lines, stream_json_lines
from ur4rec.data.reading.layouts import ATOMIC, JSONS, SUFFIXES
from ur4rec.data.reading.parquet import read_parquet_table, stream_parquet
from ur4rec.data.reading.shapes import Shape, shape_of_columns, shape_of_name
from ur4rec.data.reading.tables import Table
from ur4rec.data.reading.text import TextFormat, guess_format, parse_text, read_text_table, sniff_separator, stream_text
from ur4rec.errors import DataError
from ur4rec.options import DataOptions

_ATOMIC_TYPES = ("token", "token_seq", "float", "float_seq")
_WORDS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", "::": "'::'", " ": "blanks"}
Tables = Callable[[Collection[str] | None], Iterator[tuple[Table, float]]]
_BY_SUFFIX = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Opened:
    """A table and how it was read."""

    table: Table
    """The table."""
    how: str
    """The format, for people."""
    shape: Shape | None = None
    """The known shape that it has."""
    types: dict[str, str] | None = None
    """The types of the columns of an atomic file."""


def open_table(path: Path, options: DataOptions, form: TextFormat | None = None, *, known: bool = True) -> Opened:
    """Read a file of any format.

    Args:
        path: The file.
        options: What was given: separator, names, encoding.
        form: The format of a text file that is known without looking.
        known: Whether it may be the interactions of a known dataset.

    Raises:
        DataError: It is missing, malformed, or of a format that is not read.
    """
    kind, encoding = _check_suffix(path), options.encoding or "utf-8"
    if kind in ATOMIC and form is None and options.separator is None and options.names is None:
        return _open_atomic(path, encoding)
    if kind == ".parquet":
        opened = Opened(read_parquet_table(path), "Parquet")
    elif kind in JSONS:
        opened = Opened(read_json_lines(path, encoding), "JSON lines")
    else:
        by_hand = options.separator is not None or options.names is not None
        shape = shape_of_name(path) if known and not by_hand else None
        form = form or (shape.form if shape is not None else None)
        if form is not None:
            form = replace(form, encoding=options.encoding or form.encoding)
            return Opened(read_text_table(path, form), _describe(form), shape)
        content = read_content(path, encoding)
        if known:
            _refuse_separator(path, options, content)
        form = replace(_find_format(path, kind, options, content), encoding=encoding)
        opened = Opened(parse_text(path, form, content), _describe(form))
    return replace(opened, shape=shape_of_columns(opened.table.columns)) if known else opened


@dataclass(frozen=True)
class Source:
    """A file that is read table by table."""

    first: Opened
    """Its first rows, and how it is read."""
    tables: Tables
    """Reads the columns named, or all: tables of some thousand rows, and the share of the file that has been read."""


def open_source(path: Path, options: DataOptions) -> Source:
    """Open a file of interactions to be read table by table, whatever its size.

    Args:
        path: The file.
        options: What was given: separator, names, encoding.

    Raises:
        DataError: It is missing or malformed, or of a format or an encoding that cannot be read so.
    """
    kind = _check_suffix(path)
    tables: Tables
    shape = types = None
    if kind == ".parquet":
        tables, how = partial(stream_parquet, path), "Parquet"
    elif kind in JSONS:
        _refuse_unstreamed(path, options.encoding or "utf-8")
        tables, how = partial(stream_json_lines, path), "JSON lines"
    else:
        by_hand = options.separator is not None or options.names is not None
        shape = None if by_hand else shape_of_name(path)
        if kind in ATOMIC and not by_hand:
            form = TextFormat(separator="\t")
        elif shape is not None and shape.form is not None:
            form = shape.form
        else:
            beginning = read_beginning(path)
            _refuse_separator(path, options, beginning)
            form = _find_format(path, kind, options, beginning)
        form = replace(form, encoding=options.encoding or form.encoding)
        _refuse_unstreamed(path, form.encoding, form.separator)
        tables, how = partial(stream_text, path, form), _describe(form)
        if kind in ATOMIC and not by_hand:
            tables, how = partial(_stream_atomic, path, tables), "RecBole atomic file"
            types = _atomic_types(path, next(stream_text(path, form, None))[0].columns)
    table, _ = next(tables(None))
    if kind not in ATOMIC or options.separator is not None or options.names is not None:
        shape = shape or shape_of_columns(table.columns)
    return Source(Opened(table, how, shape, types), tables)


def _refuse_unstreamed(path: Path, encoding: str, separator: str = "") -> None:
    if codecs.lookup(encoding).name not in ("utf-8", "ascii") or len(separator) > 1:
        what = f"with {separator!r} between the fields" if len(separator) > 1 else f"in {encoding}"
        raise DataError(
            f"{path}: must be UTF-8 with one character between the fields to be read in pieces, it is text {what}",
            "write it so, or leave it as it is, for ur4rec train --dataset, which reads it whole",
        )


def _stream_atomic(
    path: Path,
    tables: Tables,
    columns: Collection[str] | None,
) -> Iterator[tuple[Table, float]]:
    """Tables with the columns of an atomic file, without their types."""
    for table, share in tables(None):
        names = {header: header.partition(":")[0] for header in table.columns}
        kept = {name: table.columns[header] for header, name in names.items() if columns is None or name in columns}
        yield replace(table, columns=kept), share


def _check_suffix(path: Path) -> str:
    kind = kind_of(path)
    if not path.exists():
        check_is_file(path)
    if kind not in SUFFIXES or (path.suffix.lower() != kind and kind == ".parquet"):
        raise DataError(f"{path}: must end in one of {SUFFIXES} or, of text, with .gz or .zst after it", "rename it")
    return kind


def _refuse_separator(path: Path, options: DataOptions, content: bytes) -> None:
    """Refuse a separator that the first lines do not have, where they have another."""
    given = options.separator
    if given is None or given.encode() in content[:MAX_ROW_BYTES]:
        return
    if (found := sniff_separator(path, content)) is not None:
        raise DataError(
            f"{path}: must have {_WORDS.get(given, repr(given))} between the fields, it has {_WORDS[found]}",
            option="leave out --separator",
        )


def _find_format(path: Path, kind: str, options: DataOptions, content: bytes) -> TextFormat:
    separator = options.separator
    usual = _BY_SUFFIX.get(kind)
    if separator is None:
        found = sniff_separator(path, content)
        is_usual = usual is not None and usual.encode() in content.lstrip(b"\r\n").partition(b"\n")[0]
        separator = usual if is_usual or found is None else found
    if separator is None:
        raise DataError(
            f"{path}: must have fields between one of {tuple(_WORDS.values())}, the same number in every line",
            option="give their --separator",
        )
    form = guess_format(separator)
    return replace(form, quoted=form.quoted or kind == ".tsv", columns=options.names)


def _describe(form: TextFormat) -> str:
    between = _WORDS.get(form.separator, repr(form.separator))
    return f"text with {between} between the fields" + (f" in {form.encoding}" if form.encoding != "utf-8" else "")


def _open_atomic(path: Path, encoding: str) -> Opened:
    """An atomic file: the header is name:type; the types are checked and cut off."""
    table = read_text_table(path, TextFormat(separator="\t", encoding=encoding))
    types = _atomic_types(path, table.columns)
    columns = dict(zip(types, table.columns.values(), strict=True))
    return Opened(replace(table, columns=columns), "RecBole atomic file", types=types)


def _atomic_types(path: Path, headers: Collection[str]) -> dict[str, str]:
    """The type of each column."""
    types: dict[str, str] = {}
    for header in headers:
        name, colon, kind = header.partition(":")
        if not colon or kind not in _ATOMIC_TYPES:
            raise DataError(
                f"{path}:1, column {cut(header)!r}: must be name:type with a type of {_ATOMIC_TYPES}",
                "fix the header",
                "give a --separator to read it as it is",
            )
        if name in types:
            raise DataError(f"{path}:1, column {header!r}: must be there once, got it with two types; drop one")
        types[name] = kind
    return types
