"""Roles: which column holds users, which items, which times."""

import re
from collections.abc import Mapping
from pathlib import Path

from alternator.checks import one_line
from ur4rec.data.reading.content import kind_of, peek_line
from ur4rec.data.reading.layouts import TEXTS
from ur4rec.data.reading.opening import Opened
from ur4rec.data.reading.shapes import find_role, suggest_roles
from ur4rec.data.reading.tables import Table, require_columns
from ur4rec.data.reading.times import kind_of_time
from ur4rec.errors import DataError
from ur4rec.options import DataOptions

NEEDED = {"user": "user", "item": "item", "time": "timestamp"}
"""What must be there, and how a column of that role is called."""


def find_roles(opened: Opened, options: DataOptions) -> tuple[dict[str, str], str]:
    """The column of each role, and the order of the rows: ``time`` or ``file``.

    What was given counts first; then a known shape; in an atomic file the types (see `atomic_roles`); else the names.

    Raises:
        DataError: A column is missing; the message has the first line and the option that would read it.
    """
    table = opened.table
    given = {role: name for role in (*NEEDED, "rating") if (name := getattr(options, role)) is not None}
    if opened.shape is not None:
        found = dict(opened.shape.roles)
    elif opened.types is not None:
        found = atomic_roles(opened.types)
    else:
        found = {role: name for role in (*NEEDED, "rating") if (name := find_role(role, table.columns)) is not None}
    roles = {**found, **given}
    order = options.order
    if order == "time" and "time" not in roles and opened.shape is not None:
        order = opened.shape.order
    needed = [role for role in NEEDED if role != "time" or order == "time"]
    if order == "file":
        roles.pop("time", None)
    if options.names is not None:
        _refuse_names_as_values(table, roles.get("time"))
    elif kind_of(table.parts[0].path) in TEXTS and (opened.shape is None or given):
        _refuse_values_as_names(table, roles, needed, set(given.values()))
    missing = [roles.get(role, NEEDED[role]) for role in needed if roles.get(role) not in table.columns]
    require_columns(table, missing, option=_advise(opened, roles, needed, options) if missing else "")
    return roles, order


def atomic_roles(types: Mapping[str, str]) -> dict[str, str]:
    """The roles of the columns of an atomic file, whatever they are called.

    User: ``user_id``, else the first token with user or session in its name, else the first token. Item: ``item_id``,
    else the first other token with item in its name, else the next token after the user, else the first. Time:
    ``timestamp``, else the first float with time or date in its name. Rating: ``rating``.

    Example:
        >>> atomic_roles({"session_id": "token", "track": "token", "play_time": "float"})
        {'user': 'session_id', 'item': 'track', 'time': 'play_time'}
    """
    tokens = [name for name, kind in types.items() if kind == "token"]
    floats = [name for name, kind in types.items() if kind == "float"]
    rules = {"user": ("user_id", "user|session", tokens, True), "item": ("item_id", "item", tokens, True)}
    rules |= {"time": ("timestamp", "time|date", floats, False), "rating": ("rating", "^rating$", floats, False)}
    exact = {rule[0] for rule in rules.values()}
    roles: dict[str, str] = {}
    for role, (name, pattern, columns, is_any) in rules.items():
        left = [each for each in columns if each not in roles.values() and (each == name or each not in exact)]
        if role == "item" and "user" in roles:  # what comes after the user, then what comes before
            left.sort(key=lambda each: tokens.index(each) < tokens.index(roles["user"]))
        like = [each for each in left if re.search(pattern, each, re.IGNORECASE)]
        found = [name] * (name in left) + like + left * is_any
        if found:
            roles[role] = found[0]
    return roles


def show_first_line(path: Path) -> str:
    """What a message says of the first line of a text file; nothing of a Parquet file."""
    if kind_of(path) == ".parquet":
        return ""
    return f"first line: {one_line(peek_line(path), 120)!r}; "


def _advise(opened: Opened, roles: Mapping[str, str], needed: list[str], options: DataOptions) -> str:
    """The first line, and the option that would read the file."""
    columns = opened.table.columns
    present = {role: roles[role] for role in needed if roles.get(role) in columns}
    left = [name for name in columns if name not in present.values() and "," not in name]  # which --columns cannot name
    suggested = {**suggest_roles(left), **present}
    path = opened.table.parts[0].path
    first = show_first_line(path)
    if len(columns) == 1 and kind_of(path) in TEXTS and options.names is None:
        return f"{first}give the --separator that is between its fields"
    if opened.types is not None:
        first += "a header is, for example, user_id:token<TAB>item_id:token<TAB>timestamp:float; "
    pairs = ",".join(f"{role}={suggested.get(role, '...')}" for role in needed)
    untimed = "time" in needed and "time" not in suggested
    named = "" if options.names is None else f"have {', '.join(NEEDED[role] for role in needed)} in --names, or "
    return f"{first}{named}give --columns {pairs}{', or --order file if the rows are in the order of time' * untimed}"


def _refuse_values_as_names(table: Table, roles: Mapping[str, str], needed: list[str], given: set[str]) -> None:
    """Refuse a file without a header: its first row would be lost."""
    path = table.parts[0].path
    names = list(table.columns)
    values = [name for name in names if kind_of_time(name) is not None]
    used = [roles[role] for role in needed if roles.get(role) in table.columns]
    itself = [name for name in used if name in given and name in set(table.strings(name).tolist())]
    if not itself and not (set(used) & set(values) or (values and len(used) < len(needed))):
        return
    timed = kind_of_time(names[-1]) is not None and len(names) > 2 and len(names[-1]) > 5
    usual = ["user", "item", *["rating"] * (len(names) - 2 - timed), *["timestamp"] * timed]
    shown = ",".join(usual) if len(names) < 5 else "user,item,..."
    raise DataError(
        f"{path}: its first line must be names of columns, it looks like values",
        option=f"{show_first_line(path)}if it has no header give --no-header --names {shown}"
        f"{'' if timed else ' and, without times, --order file'}",
    )


def _refuse_names_as_values(table: Table, time: str | None) -> None:
    """Refuse a file with a header that is read as one without: its first line is no row."""
    beginning = {name: column.slice(0, 2) for name, column in table.columns.items()}
    shown = {name: Table(table.path, beginning, ()).strings(name).tolist() for name in beginning}
    first = [values[0] for values in shown.values()]
    named = all(find_role(role, first) is not None for role in ("user", "item"))
    untimed = time in shown and [bool(re.search(r"\d", value)) for value in shown[time]] == [False, True]
    if named or untimed:
        raise DataError(
            f"{table.path}: its first line must be a row, it looks like names of columns",
            option=f"{show_first_line(table.parts[0].path)}leave out --no-header and --names; --columns says which "
            "column is what",
        )
