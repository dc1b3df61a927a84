"""The user's own files: RecBole atomic files, CSV, TSV and Parquet."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from alternator.checks import cut
from ur4rec.data.interactions import Interactions, build_interactions
from ur4rec.data.reading.tables import Table, TextFormat, read_parquet_table, read_text_table, require_columns
from ur4rec.errors import DataError
from ur4rec.files import parse_object

_SUFFIXES = (".csv", ".tsv", ".parquet")
_ATOMIC_TYPES = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of the user's own tables."""

    user: str = "user"
    """The user of an interaction."""
    item: str = "item"
    """The item, in the interactions and in the items table."""
    timestamp: str = "timestamp"
    """The time: seconds (or any number that grows with time), or ISO 8601 dates."""
    title: str | None = None
    """The title, in the items table; None: ``title`` if it exists (atomic: the first with "title" or "name" in it)."""
    texts: tuple[str, ...] | None = None
    """What the encoder reads besides the title, in the items table; None: all other columns except ids."""


def read_path(
    path: Path, columns: Columns, items_path: Path | None, min_item_interactions: int, *, deduplicate: bool = False
) -> Interactions:
    """Read interactions, and titles and texts of items where there are any.

    Args:
        path: A directory of atomic files or of tables, or a table.
        columns: Names of the columns (in atomic files only those of title and texts can be chosen).
        items_path: The items table, if it is not beside the interactions.
        min_item_interactions: Items with fewer interactions are dropped.
        deduplicate: Drop rows that repeat another one.

    Raises:
        DataError: A file is missing or malformed; says where.
    """
    interactions_path = _interactions_file(path) if path.is_dir() else path
    items = items_path or _items_file(interactions_path, beside=path.is_dir())
    if interactions_path.suffix == ".inter":
        columns = replace(columns, user="user_id", item="item_id", timestamp="timestamp")
    interactions = _read(interactions_path)
    require_columns(interactions, (columns.user, columns.item, columns.timestamp), _remedy(interactions_path))
    titles, texts = ({}, {}) if items is None else _read_items(items, columns)
    return build_interactions(
        users=interactions.names(columns.user),
        items=interactions.names(columns.item),
        timestamps=interactions.numbers_of_time(columns.timestamp),
        titles=titles,
        texts=texts,
        name=interactions_path.stem if interactions_path.suffix == ".inter" else path.stem,
        source=str(path),
        min_item_interactions=min_item_interactions,
        deduplicate=deduplicate,
    )


def _interactions_file(directory: Path) -> Path:
    found = sorted(directory.glob("*.inter")) or [
        file for suffix in _SUFFIXES if (file := directory / f"interactions{suffix}").exists()
    ]
    if len(found) != 1:
        names = tuple(file.name for file in found) or "none"
        raise DataError(
            f"{directory}: must hold one NAME.inter or one interactions.csv, .tsv or .parquet, got {names}; "
            "pass the file itself"
        )
    return found[0]


def _items_file(interactions_path: Path, *, beside: bool) -> Path | None:
    if interactions_path.suffix == ".inter":
        candidates = [interactions_path.with_suffix(".item")]
    else:
        candidates = [interactions_path.with_name(f"items{suffix}") for suffix in _SUFFIXES if beside]
    return next((file for file in candidates if file.exists()), None)


def _remedy(path: Path) -> str:
    if path.suffix == ".inter":
        return "a header is, for example, user_id:token<TAB>item_id:token<TAB>timestamp:float"
    return "rename it, or pass the names with Columns(user=..., item=..., timestamp=...)"


def _read(path: Path) -> Table:
    if path.suffix in (".inter", ".item"):
        return _read_atomic(path)
    if path.suffix == ".parquet":
        return read_parquet_table(path)
    if path.suffix in (".csv", ".tsv"):
        return read_text_table(path, TextFormat(separator="," if path.suffix == ".csv" else "\t", quoted=True))
    raise DataError(f"{path}: must end in .inter, .item, .csv, .tsv or .parquet, got {path.suffix!r}; rename it")


def _read_atomic(path: Path) -> Table:
    """An atomic file: the header is name:type; the types are checked and cut off."""
    table = read_text_table(path, TextFormat(separator="\t"))
    columns = {}
    for header, column in table.columns.items():
        name, colon, kind = header.partition(":")
        if not colon or kind not in _ATOMIC_TYPES:
            raise DataError(
                f"{path}:1, column {cut(header)!r}: must be name:type with a type of {_ATOMIC_TYPES}; fix the header"
            )
        if name in columns:
            raise DataError(f"{path}:1, column {header!r}: must be there once, got it with two types; drop one")
        columns[name] = column
    return Table(path, columns, table.format)


def _read_items(path: Path, columns: Columns) -> tuple[dict[str, str], dict[str, str]]:
    table = _read(path)
    require_columns(table, (columns.item,), _remedy(path))
    title = columns.title or _title_column(table, columns.item)
    others = columns.texts if columns.texts is not None else _text_columns(table, {columns.item, title})
    require_columns(
        table, [name for name in (title, *others) if name], "pass the names with Columns(title=..., texts=...)"
    )
    items = table.names(columns.item)
    table.refuse_repeats(columns.item)
    title_strings = table.strings(title) if title else items
    titles = {item: text or item for item, text in zip(items, title_strings, strict=True)}
    rows = zip(titles.values(), *(table.strings(name) for name in others), strict=True)
    return titles, dict(zip(titles, (_join(row) for row in rows), strict=True))


def _title_column(table: Table, item: str) -> str | None:
    names = [name for name in table.columns if name != item]
    exact = [name for name in names if name == "title"]
    alike = [name for name in names if "title" in name or "name" in name] if table.path.suffix == ".item" else []
    return next(iter(exact + alike), None)


def _text_columns(table: Table, taken: set[str | None]) -> tuple[str, ...]:
    return tuple(name for name in table.columns if name not in taken and not name.endswith("_id"))


def _join(parts: Iterable[str]) -> str:
    return ". ".join(part for part in parts if part)


def read_items(path: Path, columns: Columns) -> tuple[dict[str, str], dict[str, str]]:
    """Titles and texts by item, from an items table of any of the formats.

    Raises:
        DataError: The file is missing or malformed; says where.
    """
    return _read_items(path, columns)


_ONE_PER_LINE = "\x1f"
"""A separator of fields that no id has: a line is one field."""


def read_ids(path: Path, names: tuple[str, ...]) -> list[str]:
    """Ids, in the order of a file: one per line, or a column of a table or of JSON lines.

    Args:
        path: The file. One that is neither a table nor JSON lines by its suffix has one id per line.
        names: What the column may be called, the first first.

    Raises:
        DataError: The file is missing, malformed or empty, or has no such column.
    """
    if path.suffix in (".jsonl", ".ndjson"):
        return _read_json_ids(path, names)
    if path.suffix in (*_SUFFIXES, ".inter", ".item"):
        table = _read(path)
        column = next((name for name in names if name in table.columns), names[0])
        require_columns(table, (column,), "rename it, or write one id per line into a .txt file")
        return [str(name) for name in table.names(column)]
    table = read_text_table(path, TextFormat(separator=_ONE_PER_LINE, columns=(names[0],)))
    return [str(name) for name in table.names(names[0])]


def _read_json_ids(path: Path, names: tuple[str, ...]) -> list[str]:
    lines = read_text_table(path, TextFormat(separator=_ONE_PER_LINE, columns=("object",)))
    found = []
    for number, line in enumerate(lines.strings("object"), 1):
        try:
            row = parse_object(line.encode())
            value = next(row[name] for name in names if name in row)
        except (ValueError, StopIteration) as error:
            raise DataError(f"{path}, object {number}: must be a JSON object with {names[0]!r}; fix it") from error
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise DataError(f"{path}, object {number}: {names[0]!r} must be a string or an integer, got {value!r}")
        found.append(str(value))
    return found
