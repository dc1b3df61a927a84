"""Titles: what people and the encoder read of items, from a file of items or from the interactions themselves."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from alternator.checks import cut, listed
from ur4rec.data.reading.opening import Opened, open_table
from ur4rec.data.reading.roles import show_first_line
from ur4rec.data.reading.shapes import Shape, find_role
from ur4rec.data.reading.tables import Table, require_columns
from ur4rec.options import DataOptions

logger = logging.getLogger(__name__)

_TITLES = ("title", "name", "itemtitle", "itemname", "producttitle", "productname")
"""What a column of titles is called in a file of items, in any case, without blanks, hyphens and underscores."""
_TITLES_OF_ROWS = tuple(name for name in _TITLES if name != "name")
"""The same in the interactions, where a name may be a user's."""


def read_items(path: Path, options: DataOptions, shape: Shape | None) -> tuple[dict[str, str], dict[str, str]]:
    """The title and the text of each item of a file.

    Args:
        path: The file of items.
        options: What was given.
        shape: The known shape that the interactions have.

    Raises:
        DataError: It is malformed, lists an item twice, or lacks a column.
    """
    by_shape = shape is not None and options.items is None
    form = shape.items_form if shape is not None and by_shape else None
    opened = open_table(path, _of_items(options), form, known=False)
    table = opened.table
    if shape is not None and by_shape and shape.movies is not None and (options.title, options.texts) == (None, None):
        movies = shape.movies(table)
        return {item: each.title for item, each in movies.items()}, {item: each.text for item, each in movies.items()}
    known = dict(shape.item_roles) if shape is not None and set(shape.item_roles.values()) <= set(table.columns) else {}
    item = _item_column(opened, options, known)
    title = options.title or known.get("title") or _title_column(opened, item)
    if options.texts is not None:
        others: Sequence[str] = options.texts
    elif shape is not None and known:
        others = [name for name in shape.texts if name in table.columns]
    else:
        others = [name for name in table.columns if name not in (item, title) and not _is_id(name)]
    require_columns(
        table, [name for name in (title, *others) if name], option="give others with --columns title=... or --text"
    )
    items = table.names(item).to_pylist()
    titles, rows = _texts(items, table, title, [name for name in others if name != title])
    texts: dict[str, str] = {}
    if any(texts.setdefault(item, text) != text for item, text in zip(items, rows, strict=True)):
        before: dict[str, str] = {}
        left = iter(rows)
        table.refuse(
            item,
            lambda name: None if before.setdefault(name, text := next(left)) == text else "must not be repeated",
            "drop one of the rows",
        )
    return titles, texts


def titles_of_rows(
    table: Table, options: DataOptions, roles: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The title and the text of each item from its first row in the interactions, where they have such columns.

    Args:
        table: The interactions.
        options: What was given: title and texts, which must be there.
        roles: The columns that are something else.

    Raises:
        DataError: A column that was named is missing.
    """
    title, others = find_title(table.columns, options, roles)
    if title is None and not others:
        return {}, {}
    require_columns(
        table,
        [name for name in (title, *others) if name],
        option="give others with --columns title=... or --text, or --items FILE",
    )
    items, rows = np.unique(table.strings(roles["item"]).astype(str), return_index=True)
    columns = {name: table.columns[name].take(pa.array(rows)) for name in (title, *others) if name}
    names = items.tolist()
    titles, texts = _texts(names, Table(table.path, columns, ()), title, others)
    return titles, dict(zip(names, texts, strict=True))


def find_title(columns: Iterable[str], options: DataOptions, roles: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """The column of titles in the interactions, if there is one, and those of further texts; see `titles_of_rows`."""
    left = [name for name in columns if name not in roles.values()]
    title = options.title or next((name for each in _TITLES_OF_ROWS for name in left if _plain(name) == each), None)
    return title, [name for name in options.texts or () if name != title]


def describe_coverage(item_ids: Sequence[str], titles: Mapping[str, str], texts: Mapping[str, str]) -> str:
    """How many items have a title (or a text, where there are no titles); warns of fewer than half.

    Args:
        item_ids: The items of the interactions.
        titles: The titles that were read.
        texts: The texts that were read, of every item that is listed.
    """
    found = titles or texts
    missing = [item for item in item_ids if item not in found]
    num_found, noun = len(item_ids) - len(missing), "title" if titles else "text"
    said = f"{num_found:,} of {len(item_ids):,} items have a {noun}"
    if num_found < len(missing):
        used = set(item_ids)
        unused = [item for item in texts if item not in used] or list(texts)
        logger.warning(
            "only %s: the interactions call items %s, the items file %s; write both in the same way, or the retriever "
            "learns from names alone",
            *(said, listed(map(cut, missing)), listed(map(cut, unused))),
        )
    return said


def _of_items(options: DataOptions) -> DataOptions:
    """What was given for the interactions and holds for the items too: the encoding alone."""
    return DataOptions(encoding=options.encoding)


def _item_column(opened: Opened, options: DataOptions, known: dict[str, str]) -> str:
    names = opened.table.columns
    choices = (
        options.item,
        known.get("item"),
        "item_id" if opened.types is not None else None,
        find_role("item", names),
    )
    found = next((name for name in choices if name in names), None)
    if found is None:
        remedy = f"{show_first_line(opened.table.path)}name the column of items {options.item or 'item'}"
        require_columns(opened.table, [options.item or "item"], remedy)
    assert found is not None
    return found


def _title_column(opened: Opened, item: str) -> str | None:
    names = [name for name in opened.table.columns if name != item]
    exact = [name for each in _TITLES for name in names if _plain(name) == each]
    alike = [name for name in names if "title" in name.lower() or "name" in name.lower()] if opened.types else []
    return next(iter([name for name in names if name == "title"] + exact + alike), None)


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character not in " _-")


def _is_id(name: str) -> bool:
    return name.lower().endswith("_id") or name.endswith("Id")


def _texts(
    items: Sequence[str], table: Table, title: str | None, others: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """The titles of the items that have one, and the text of each row: title and others, or the item if it has none."""
    title_strings = table.strings(title, join=True).tolist() if title else [""] * len(items)
    rows = zip(title_strings, *(table.strings(name, join=True) for name in others), strict=True)
    titles = {item: text for item, text in zip(items, title_strings, strict=True) if text}
    texts = (". ".join(part for part in row if part) for row in rows)
    return titles, [text or item for item, text in zip(items, texts, strict=True)]
