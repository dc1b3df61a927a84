"""Read: files of interactions of any size, piece by piece, into rows of numbers that wait on the disk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alternator.checks import cut
from ur4rec.data.preparing.names import Names
from ur4rec.data.preparing.spill import Rows
from ur4rec.data.reading.filters import Filters
from ur4rec.data.reading.formats import (
    LISTS,
    UNTIMED,
    UNTITLED,
    describe_reading,
    items_path,
    of_parts,
)
from ur4rec.data.reading.layouts import Files
from ur4rec.data.reading.opening import Opened, Source, open_source
from ur4rec.data.reading.roles import find_roles
from ur4rec.data.reading.tables import Table, check_columns, require_columns, take_rows
from ur4rec.data.reading.times import TimeReader
from ur4rec.data.reading.titles import describe_coverage, find_title, read_items, titles_of_rows
from ur4rec.errors import DataError
from ur4rec.options import DataOptions

MIN_PIECE = 2**16
"""Bytes of a piece at least."""


@dataclass
class Found:
    """What was read."""

    rows: Rows
    """Users and items by their numbers."""
    users: Names
    """The users by number."""
    items: Names
    """The items by number."""
    titles: dict[str, str] = field(default_factory=dict)
    """The titles of items."""
    texts: dict[str, str] = field(default_factory=dict)
    """The texts of items."""
    notes: list[str] = field(default_factory=list)
    """How it was read."""

    def describe_titles(self, item_ids: Sequence[str]) -> str:
        """How many of the items have a title."""
        return describe_coverage(item_ids, self.titles, self.texts) if self.titles or self.texts else UNTITLED


def read_files(
    path: Path, files: Files, options: DataOptions, folder: Path, memory: int, told: Callable[[float], None]
) -> Found:
    """Read all rows that count.

    Args:
        path: What was given, for messages.
        files: The files of one dataset.
        options: How they are read.
        folder: Where the rows wait.
        memory: Bytes of a piece.
        told: Called with the share that has been read.

    Raises:
        DataError: A file is missing or malformed; says where.
    """
    readers = [_Group(path, group, options) for group in files.groups]
    first = readers[0]
    found = Found(Rows(folder), Names(), Names())
    sizes = [[each.stat().st_size for each in group] for group in files.groups]
    done, total = 0, max(sum(map(sum, sizes)), 1)
    items = items_path(files, options, first.opened.shape)
    for part, reader in enumerate(readers):
        for number, source in enumerate(reader.sources):
            for table, share in _pieces(source.tables(reader.columns), memory):
                titled = part == 0 and items is None
                _add(found, reader, table, part, titled)
                told((done + share * sizes[part][number]) / total)
            done += sizes[part][number]
    said = [each for reader in readers for each in reader.filters.check(path)]
    found.notes = describe_reading(first.described, first.roles, [first.describe_times(), *said[:1]])
    if items is not None:
        found.titles, found.texts = read_items(items, options, first.opened.shape)
    return found


class _Group:
    """The files of one part, which are read alike."""

    def __init__(self, path: Path, paths: tuple[Path, ...], options: DataOptions) -> None:
        self.sources: list[Source] = [open_source(each, options) for each in paths]
        self.opened: Opened = self.sources[0].first
        columns = self.opened.table.columns
        for source in self.sources[1:]:
            check_columns(source.first.table, self.opened.table)
        if LISTS in columns:
            raise DataError(
                f"{paths[0]}: rows must each be an interaction, got one that has column {cut(LISTS)!r}; data with such "
                "lists is read whole: leave it as it is, for ur4rec train --dataset"
            )
        self.described = replace(self.opened, how=of_parts(self.opened.how, len(paths)))
        self.roles, self._order = find_roles(self.opened, options)
        self.options = options
        self.filters = Filters(options, self.roles)
        needed = [*self.filters.wanted, *([self.filters.rating] if self.filters.rating else [])]
        require_columns(self.opened.table, needed, option="give another column to --where or --columns rating=...")
        title, texts = find_title(columns, options, self.roles)
        self.columns = {*self.roles.values(), *needed, *([title] if title else []), *texts} & columns.keys()
        self._times = TimeReader(self.roles["time"], options.time_format) if self._order == "time" else None
        self._num_rows = 0

    def times(self, table: Table) -> NDArray[Any]:
        """The times of the next rows."""
        if self._times is not None:
            return self._times.read(table)
        self._num_rows += len(table)
        return np.arange(self._num_rows - len(table), self._num_rows)

    def describe_times(self) -> str:
        """What the times were read as."""
        return UNTIMED if self._times is None else self._times.describe()


def _pieces(tables: Iterator[tuple[Table, float]], memory: int) -> Iterator[tuple[Table, float]]:
    """Tables of about a number of bytes, from smaller ones."""
    waiting: list[Table] = []
    size, share = 0, 0.0
    for table, share in tables:
        waiting.append(table)
        size += sum(column.nbytes for column in table.columns.values())
        if size >= max(memory, MIN_PIECE):
            yield _joined(waiting), share
            waiting, size = [], 0
    if waiting:
        yield _joined(waiting), share


def _joined(tables: list[Table]) -> Table:
    columns = {name: pa.concat_arrays([each.columns[name] for each in tables]) for name in tables[0].columns}
    return Table(tables[0].path, columns, tuple(part for table in tables for part in table.parts))


def _add(found: Found, reader: _Group, table: Table, part: int, titled: bool) -> None:
    """Add the rows of a table that count, and the titles of the items that are new in it."""
    num_known = len(found.items)
    items_N = found.items.number(table, reader.roles["item"])
    if titled and len(found.items) > num_known:
        new, rows = np.unique(items_N, return_index=True)
        rows = np.sort(rows[new >= num_known])
        columns = {name: column.take(pa.array(rows)) for name, column in table.columns.items()}
        titles, texts = titles_of_rows(Table(table.path, columns, ()), reader.options, reader.roles)
        found.titles |= titles
        found.texts |= texts
    kept_N = reader.filters.matching(table)
    if not kept_N.all():
        table, items_N = take_rows(table, kept_N), items_N[kept_N]
    if len(table):
        found.rows.add(found.users.number(table, reader.roles["user"]), items_N, reader.times(table), part)
