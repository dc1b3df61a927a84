"""The user's own files: from a path and options to interactions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from alternator.checks import cut
from ur4rec.data.interactions import Interactions, build_interactions, numbered, to_arrow
from ur4rec.data.reading.filters import keep_core, keep_rows
from ur4rec.data.reading.layouts import Files, find_files
from ur4rec.data.reading.opening import Opened, open_table
from ur4rec.data.reading.presplit import Rows, arrange
from ur4rec.data.reading.roles import find_roles
from ur4rec.data.reading.shapes import Shape
from ur4rec.data.reading.tables import Table, join_tables
from ur4rec.data.reading.times import read_times
from ur4rec.data.reading.titles import describe_coverage, read_items, titles_of_rows
from ur4rec.errors import DataError
from ur4rec.options import DataOptions

LISTS = "item_id_list"
"""The column with what a user had before, in data that came split."""
UNTITLED = "no titles: items are called by their names"
UNTIMED = "no times read: the order of the file stands for them"


def read_path(path: Path, options: DataOptions, min_item_interactions: int) -> Interactions:
    """Read interactions, and titles and texts of items where there are any.

    Args:
        path: A file, or a directory of one dataset; see `ur4rec.data.reading.layouts.find_files`.
        options: What was given.
        min_item_interactions: Items with fewer interactions are dropped.

    Raises:
        DataError: A file is missing or malformed; says where.
    """
    files = find_files(path)
    opened = [_open_group(path, group, options) for group in files.groups]
    notes: list[str] = []
    read = [_read_rows(each, options, notes if number == 0 else []) for number, each in enumerate(opened)]
    rows, roles = read[0]
    if files.is_split:
        rows, said = arrange([each for each, _ in read])
        notes += [_describe_parts(rows), *said]
    titles, texts = _titles(files, opened[0], options, roles)
    if options.k_core > 1:
        rows = _keep_core(rows, options.k_core, path, notes)
    interactions = build_interactions(
        users=rows.users_N,
        items=rows.items_N,
        timestamps=rows.times_N,
        titles=titles,
        texts=texts,
        name=files.name,
        source=str(path),
        min_item_interactions=min_item_interactions,
        parts=rows.parts_N,
        deduplicate=options.deduplicate,
    )
    if titles or texts:
        notes.append(describe_coverage(interactions.item_ids, titles, texts))
    else:
        notes.append(UNTITLED)
    return replace(interactions, notes=tuple(notes))


def _open_group(path: Path, group: tuple[Path, ...], options: DataOptions) -> Opened:
    """The table of a file, or of the parts of one."""
    opened = [open_table(each, options) for each in group]
    if len(opened) == 1:
        return opened[0]
    return replace(
        opened[0], table=join_tables(path, [each.table for each in opened]), how=of_parts(opened[0].how, len(opened))
    )


def of_parts(how: str, count: int) -> str:
    """How a table of several files is read."""
    return how if count == 1 else f"{count} parts, {how}"


def _read_rows(opened: Opened, options: DataOptions, notes: list[str]) -> tuple[Rows, dict[str, str]]:
    """The rows that count, with the columns that their roles name."""
    if LISTS in opened.table.columns and options.time is None:
        options = replace(options, order="file")  # the lists are in order
    roles, order = find_roles(opened, options)
    table, said = keep_rows(opened.table, options, roles)
    users, items = table.names(roles["user"]), table.names(roles["item"])
    times, when = np.arange(len(table)), UNTIMED
    if order == "time":
        times, when = read_times(table, roles["time"], options.time_format)
    notes += describe_reading(opened, roles, [when, *said])
    lists = _lists(table) if LISTS in table.columns else None
    return Rows(users_N=users, items_N=items, times_N=times, lists_N=lists), roles


def describe_reading(opened: Opened, roles: Mapping[str, str], said: Sequence[str]) -> list[str]:
    """How a file is read, and what else there is to say of it."""
    columns = ", ".join(f"{role} {cut(name)}" for role, name in roles.items() if role in ("user", "item", "time"))
    label = "" if opened.shape is None else f"{opened.shape.label}: "
    note = [opened.shape.note] if opened.shape is not None and opened.shape.note else []
    return [f"read as {label}{opened.how}; {columns}", *said, *note]


def _lists(table: Table) -> list[tuple[str, ...]]:
    """What the user of each row had before: items between blanks, or a list."""
    strings = table.strings(LISTS, join=True)
    separator = ", " if pa.types.is_nested(table.columns[LISTS].type) else " "
    return [tuple(filter(None, each.split(separator))) for each in strings]


def items_path(files: Files, options: DataOptions, shape: Shape | None) -> Path | None:
    """The file of items: the one that was named, else that beside the interactions."""
    items = files.items if options.items is None else Path(options.items).expanduser()
    return shape.items_beside(files.groups[0][0]) if items is None and shape is not None else items


def _titles(
    files: Files, opened: Opened, options: DataOptions, roles: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Titles and texts of items: of the file that was named, of that beside the interactions, or of their own rows."""
    items = items_path(files, options, opened.shape)
    if items is not None:
        return read_items(items, options, opened.shape)
    return titles_of_rows(opened.table, options, roles)


def _keep_core(rows: Rows, k: int, path: Path, notes: list[str]) -> Rows:
    users_N, items_N = (numbered(each)[0] for each in (rows.users_N, rows.items_N))
    kept_N = keep_core(users_N, items_N, k)
    if not kept_N.any():
        raise no_core(path, len(kept_N), k)
    notes.append(said_of_core(int(kept_N.sum()), len(kept_N), k))
    parts_N = None if rows.parts_N is None else rows.parts_N[kept_N]
    users_N, items_N = (to_arrow(each).filter(pa.array(kept_N)) for each in (rows.users_N, rows.items_N))
    return Rows(users_N=users_N, items_N=items_N, times_N=rows.times_N[kept_N], parts_N=parts_N)


def no_core(path: Path, num_rows: int, k: int) -> DataError:
    """The error that no row is left."""
    return DataError(f"{path}: no interaction is left of {num_rows} with --k-core {k}", option="give a smaller one")


def said_of_core(num_kept: int, num_rows: int, k: int) -> str:
    """How many rows are left."""
    return f"{num_kept:,} of {num_rows:,} rows are in the {k}-core"


def _describe_parts(rows: Rows) -> str:
    assert rows.parts_N is not None
    return describe_counts(np.bincount(rows.parts_N, minlength=4))


def describe_counts(counts: Iterable[int]) -> str:
    """How many rows each part has of data that came split."""
    names = ("for training", "validation targets", "test targets", "context")
    said = ", ".join(f"{count:,} {name}" for name, count in zip(names, counts, strict=True))
    return f"split as the files are: {said}"
