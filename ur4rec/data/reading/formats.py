"""The user's own files: from a path and options to interactions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from alternator.checks import cut
from ur4rec.data.interactions import Interactions, build_interactions
from ur4rec.data.reading.filters import keep_core, keep_rows
from ur4rec.data.reading.layouts import Files, find_files
from ur4rec.data.reading.opening import Opened, open_table
from ur4rec.data.reading.presplit import Rows, arrange
from ur4rec.data.reading.roles import find_roles
from ur4rec.data.reading.tables import Table, join_tables
from ur4rec.data.reading.times import read_times
from ur4rec.data.reading.titles import describe_coverage, read_items, titles_of_rows
from ur4rec.errors import DataError
from ur4rec.options import DataOptions

_LISTS = "item_id_list"


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
        notes += ["split as the files are: " + _describe_parts(rows), *said]
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
        notes.append("no titles: items are called by their names")
    return replace(interactions, notes=tuple(notes))


def _open_group(path: Path, group: tuple[Path, ...], options: DataOptions) -> Opened:
    """The table of a file, or of the parts of one."""
    opened = [open_table(each, options) for each in group]
    if len(opened) == 1:
        return opened[0]
    return replace(
        opened[0], table=join_tables(path, [each.table for each in opened]), how=f"{len(opened)} parts, {opened[0].how}"
    )


def _read_rows(opened: Opened, options: DataOptions, notes: list[str]) -> tuple[Rows, dict[str, str]]:
    """The rows that count, with the columns that their roles name."""
    if _LISTS in opened.table.columns and options.time is None:
        options = replace(options, order="file")  # the lists are in order
    roles, order = find_roles(opened, options)
    table, said = keep_rows(opened.table, options, roles)
    users, items = table.names(roles["user"]), table.names(roles["item"])
    times, when = np.arange(len(table)), "no times read: the order of the file stands for them"
    if order == "time":
        times, when = read_times(table, roles["time"], options.time_format)
    columns = ", ".join(f"{role} {cut(name)}" for role, name in roles.items() if role in ("user", "item", "time"))
    label = "" if opened.shape is None else f"{opened.shape.label}: "
    notes += [f"read as {label}{opened.how}; {columns}", when, *said]
    if opened.shape is not None and opened.shape.note:
        notes.append(opened.shape.note)
    lists = _lists(table) if _LISTS in table.columns else None
    return Rows(users_N=users, items_N=items, times_N=times, lists_N=lists), roles


def _lists(table: Table) -> list[tuple[str, ...]]:
    """What the user of each row had before: items between blanks, or a list."""
    strings = table.strings(_LISTS, join=True)
    separator = ", " if pa.types.is_nested(table.columns[_LISTS].type) else " "
    return [tuple(filter(None, each.split(separator))) for each in strings]


def _titles(
    files: Files, opened: Opened, options: DataOptions, roles: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Titles and texts of items: of the file that was named, of that beside the interactions, or of their own rows."""
    items = files.items if options.items is None else Path(options.items).expanduser()
    if items is None and opened.shape is not None:
        items = opened.shape.items_beside(files.groups[0][0])
    if items is not None:
        return read_items(items, options, opened.shape)
    return titles_of_rows(opened.table, options, roles)


def _keep_core(rows: Rows, k: int, path: Path, notes: list[str]) -> Rows:
    users_N, items_N = (np.unique(each.astype(str), return_inverse=True)[1] for each in (rows.users_N, rows.items_N))
    kept_N = keep_core(users_N, items_N, k)
    if not kept_N.any():
        raise DataError(f"{path}: no interaction is left of {len(kept_N)} with --k-core {k}; give a smaller one")
    notes.append(f"{kept_N.sum():,} of {len(kept_N):,} rows are in the {k}-core")
    parts_N = None if rows.parts_N is None else rows.parts_N[kept_N]
    return Rows(
        users_N=rows.users_N[kept_N], items_N=rows.items_N[kept_N], times_N=rows.times_N[kept_N], parts_N=parts_N
    )


def _describe_parts(rows: Rows) -> str:
    assert rows.parts_N is not None
    names = ("for training", "validation targets", "test targets", "context")
    return ", ".join(
        f"{count:,} {name}" for name, count in zip(names, np.bincount(rows.parts_N, minlength=4), strict=True)
    )
