"""Opening: a file of any format as a table, and how it was read."""

from dataclasses import dataclass, replace
from pathlib import Path

from alternator.checks import cut
from ur4rec.data.reading.content import kind_of, read_content
from ur4rec.data.reading.json_lines import read_json_lines
from ur4rec.data.reading.layouts import ATOMIC, JSONS, SUFFIXES
from ur4rec.data.reading.parquet import read_parquet_table
from ur4rec.data.reading.shapes import Shape, shape_of_columns, shape_of_name
from ur4rec.data.reading.tables import Table
from ur4rec.data.reading.text import TextFormat, guess_format, parse_text, read_text_table, sniff_separator
from ur4rec.errors import DataError
from ur4rec.options import DataOptions

_ATOMIC_TYPES = ("token", "token_seq", "float", "float_seq")
_WORDS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", "::": "'::'", " ": "blanks"}
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
    kind, encoding = kind_of(path), options.encoding or "utf-8"
    if kind not in SUFFIXES or (path.suffix.lower() != kind and kind == ".parquet"):
        raise DataError(f"{path}: must end in one of {SUFFIXES} or, of text, with .gz or .zst after it; rename it")
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
        form = replace(_find_format(path, kind, options, content), encoding=encoding)
        opened = Opened(parse_text(path, form, content), _describe(form))
    return replace(opened, shape=shape_of_columns(opened.table.columns)) if known else opened


def _find_format(path: Path, kind: str, options: DataOptions, content: bytes) -> TextFormat:
    separator = options.separator
    usual = _BY_SUFFIX.get(kind)
    if separator is None:
        found = sniff_separator(path, content)
        is_usual = usual is not None and usual.encode() in content.lstrip(b"\r\n").partition(b"\n")[0]
        separator = usual if is_usual or found is None else found
    if separator is None:
        raise DataError(
            f"{path}: must have fields between one of {tuple(_WORDS.values())}, the same number in every line; "
            "give their --separator"
        )
    form = guess_format(separator)
    return replace(form, quoted=form.quoted or kind == ".tsv", columns=options.names)


def _describe(form: TextFormat) -> str:
    between = _WORDS.get(form.separator, repr(form.separator))
    return f"text with {between} between the fields" + (f" in {form.encoding}" if form.encoding != "utf-8" else "")


def _open_atomic(path: Path, encoding: str) -> Opened:
    """An atomic file: the header is name:type; the types are checked and cut off."""
    table = read_text_table(path, TextFormat(separator="\t", encoding=encoding))
    columns, types = {}, {}
    for header, column in table.columns.items():
        name, colon, kind = header.partition(":")
        if not colon or kind not in _ATOMIC_TYPES:
            raise DataError(
                f"{path}:1, column {cut(header)!r}: must be name:type with a type of {_ATOMIC_TYPES}; fix the header, "
                "or give a --separator to read it as it is"
            )
        if name in columns:
            raise DataError(f"{path}:1, column {header!r}: must be there once, got it with two types; drop one")
        columns[name], types[name] = column, kind
    return Opened(replace(table, columns=columns), "RecBole atomic file", types=types)
