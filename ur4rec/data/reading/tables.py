"""Tables that have been read: columns of strings, or of whatever a file holds, and where each row stands."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from alternator.checks import cut, listed, one_line
from ur4rec.errors import DataError

MAX_NAME = 1000
"""The length of the name of a column at most, in characters."""
Fault = Callable[[str], str | None]


@dataclass(frozen=True)
class Part:
    """A file whose rows are in a table."""

    path: Path
    """The file."""
    num_rows: int
    """The number of its rows."""
    lines: Callable[[], Iterator[int]] | None = None
    """The line of each row; None where rows are not lines."""
    first_row: int = 1
    """The number of its first row, where rows are not lines."""

    def places(self) -> Iterator[str]:
        """Where each row stands, for messages."""
        if self.lines is not None:  # of all rows from here on, perhaps
            return (f"{self.path}:{line}" for line in islice(self.lines(), self.num_rows))
        return (f"{self.path}, row {row}" for row in range(self.first_row, self.first_row + self.num_rows))


@dataclass(frozen=True)
class Table:
    """A table that has been read from one file or several."""

    path: Path
    """The file, or the directory of several."""
    columns: dict[str, pa.Array]
    """The columns by name."""
    parts: tuple[Part, ...]
    """The files, in the order of the rows."""
    kept_N: NDArray[np.bool_] | None = None
    """Which of the rows of the files are in the table; None is all."""
    left_out: frozenset[str] = frozenset()
    """Columns of the file that hold objects, which are not read."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def strings(self, column: str, *, join: bool = False) -> NDArray[Any]:
        """A column as strings; see `arrow_strings`."""
        with self._utf8(column):
            return np.asarray(self.arrow_strings(column, join=join).to_numpy(zero_copy_only=False), dtype=object)

    def arrow_strings(self, column: str, *, join: bool = False) -> pa.Array:
        """A column as strings; a missing value is the empty one, and a whole number has no decimal point.

        Args:
            column: The name.
            join: Whether lists are taken too, what is in them between commas.

        Raises:
            DataError: It holds neither strings nor numbers, or is not UTF-8.
        """
        array = whole_numbers(self.columns[column])
        if join and pa.types.is_nested(array.type):
            array = pa.array([", ".join(_flatten(value)) for value in self._values(column)], pa.string())
        if not pa.types.is_string(array.type):
            try:
                array = pc.cast(array, pa.string())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"{self.path}, column {column!r}: must be strings or numbers, got {type_in_words(array.type)}",
                    "write it as strings",
                ) from error
        return pc.fill_null(array, "") if array.null_count else array

    def _values(self, column: str) -> list[Any]:
        with self._utf8(column):
            return list(self.columns[column].to_pylist())

    @contextmanager
    def _utf8(self, column: str) -> Iterator[None]:
        try:
            yield
        except (UnicodeDecodeError, pa.ArrowException) as error:
            raise DataError(
                f"{self.path}, column {column!r}: must be UTF-8 ({error}); write it again as UTF-8"
            ) from error

    def names(self, column: str) -> pa.Array:
        """A column of user or item names: none may be empty."""
        values = self.arrow_strings(column)
        with self._utf8(column):
            values.validate(full=True)
        if pc.min(pc.binary_length(values)).as_py() == 0:
            self.refuse(column, lambda value: None if value else "must not be empty", "name it or drop the row")
        return values

    def numbers(self, column: str) -> NDArray[np.float64]:
        """A column as numbers; a missing one is NaN, which is not above any."""
        array = self.columns[column]
        if pa.types.is_string(array.type):
            array = pc.if_else(pc.equal(array, ""), None, array)
        try:
            return np.asarray(pc.cast(array, pa.float64()).to_numpy(zero_copy_only=False), np.float64)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            advice = ("write numbers", "choose the column with --columns rating=...")
            self.refuse(column, _fault_of_number, *advice)
            raise DataError(
                f"{self.path}, column {column!r}: must be numbers, got {type_in_words(array.type)}", *advice
            ) from None

    def refuse(self, column: str, fault: Fault, remedy: str = "", option: str = "") -> None:
        """Raise for the first value that has a fault, with its place; see `DataError` for the rest."""
        places: Iterator[str] = (place for part in self.parts for place in part.places())
        if self.kept_N is not None:
            places = compress(places, self.kept_N)
        for place, value, read in zip(places, self.strings(column), self.columns[column], strict=False):
            if found := fault(str(value)):
                shown = repr(cut(str(value))) if value else _show_missing(read.as_py())
                raise DataError(f"{place}, column {column!r}: {found}, got {shown}", remedy, option)


def join_tables(path: Path, tables: Sequence[Table]) -> Table:
    """The rows of several tables, one after the other.

    Raises:
        DataError: They have other columns than the first, or columns of other types.
    """
    first = tables[0]
    for table in tables:
        check_columns(table, first)
    columns = {}
    for name in first.columns:
        try:
            chunks = pa.concat_tables(
                [pa.table({name: table.columns[name]}) for table in tables], promote_options="permissive"
            )[name]
        except pa.ArrowException as error:
            raise DataError(
                f"{path}, column {name!r}: must be of one type in all files ({one_line(str(error))})",
                "write all files in one way",
            ) from error
        columns[name] = chunks.combine_chunks()
    return Table(path, columns, tuple(part for table in tables for part in table.parts))


def check_columns(table: Table, first: Table) -> None:
    """Refuse a table that has other columns than the first of those that it belongs to."""
    if set(table.columns) != set(first.columns):
        raise DataError(
            f"{table.path}: must have the columns of {first.path.name} ({_shown(first.columns)}), "
            f"has {_shown(table.columns)}; keep one kind of table in a directory, or pass the file itself"
        )


def take_rows(table: Table, kept_N: NDArray[np.bool_]) -> Table:
    """The rows that are kept, of a table with all of its rows."""
    return replace(
        table, columns={name: each.filter(pa.array(kept_N)) for name, each in table.columns.items()}, kept_N=kept_N
    )


def require_columns(table: Table, columns: Iterable[str], remedy: str = "", option: str = "") -> None:
    """Refuse a table that lacks one of the columns.

    Args:
        table: The table.
        columns: What it must have.
        remedy: What to do about it, for the message.
        option: Likewise; see `DataError`.

    Raises:
        DataError: Names the missing column, those there are, and the remedy.
    """
    for column in columns:
        if column in table.left_out:
            raise DataError(
                f"{table.path}, column {column!r}: must be strings or numbers, got objects", "write it as strings"
            )
        if column not in table.columns:
            raise DataError(f"{table.path}: needs a column {column!r}, has {_shown(table.columns)}", remedy, option)
    if not len(table):
        raise DataError(f"{table.path}: holds no row; give a file with at least one")


def check_header(where: str, names: Sequence[str]) -> None:
    """Refuse names of columns that are empty, there twice or too long."""
    if not all(names) or len(set(names)) < len(names):
        raise DataError(f"{where}: column names must be distinct and not empty, got {_shown(names)}")
    if (longest := max(names, key=len, default="")) and len(longest) > MAX_NAME:
        raise DataError(f"{where}: a column name must have at most {MAX_NAME} characters, got {cut(longest)!r}")


def _shown(names: Iterable[str]) -> str:
    return listed(map(cut, names), 12)


def type_in_words(kind: pa.DataType) -> str:
    """What a column holds, for people.

    Example:
        >>> type_in_words(pa.list_(pa.int64())), type_in_words(pa.int64())
        ('lists', 'whole numbers')
    """
    words = {
        "lists": pa.types.is_list(kind) or pa.types.is_large_list(kind),
        "objects": pa.types.is_struct(kind) or pa.types.is_map(kind),
        "truth values": pa.types.is_boolean(kind),
        "strings": pa.types.is_string(kind) or pa.types.is_large_string(kind),
        "whole numbers": pa.types.is_integer(kind),
        "numbers": pa.types.is_floating(kind),
    }
    return next((word for word, holds in words.items() if holds), str(kind))


def whole_numbers(array: pa.Array) -> pa.Array:
    """Floats and decimals as integers, if all of them are whole: 192, not 192.0 or 9.78e+12. NaN is missing."""
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
    elif not pa.types.is_decimal(array.type):
        return array
    try:
        return pc.cast(array, pa.int64())
    except pa.ArrowInvalid:
        return array


def _flatten(value: Any) -> Iterator[str]:
    """The strings in a value that may be a list, of lists."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flatten(each)
    elif isinstance(value, dict):
        yield from _flatten(list(value.values()))
    elif value not in (None, ""):
        yield str(value)


def _show_missing(value: Any) -> str:
    """What was read where a string is empty."""
    return "''" if value == "" else "null" if value is None else "NaN"


def _fault_of_number(value: str) -> str | None:
    try:
        float(value or 0)
    except ValueError:
        return "must be a number"
    return None
