"""Filters: which rows of the interactions count.

Shapes: N rows.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from alternator.checks import cut, listed
from ur4rec.data.reading.tables import Table, require_columns, take_rows
from ur4rec.errors import DataError
from ur4rec.options import DataOptions


def keep_rows(table: Table, options: DataOptions, roles: Mapping[str, str]) -> tuple[Table, list[str]]:
    """The rows that ``where`` and ``min_rating`` keep, and what there is to say of it.

    Raises:
        DataError: A column is missing, a rating is no number, or no row is left.
    """
    kept_N = np.ones(len(table), bool)
    said = []
    wanted: dict[str, list[str]] = {}
    for each in options.where:
        column, _, value = each.partition("=")
        wanted.setdefault(column, []).append(value)
    for column, values in wanted.items():
        require_columns(table, [column], "give another column to --where")
        strings = table.strings(column)
        matches_N = np.isin(strings.astype(str), values)
        if not matches_N.any():
            raise DataError(
                f"{table.path}, column {column!r}: must be {' or '.join(map(repr, values))} somewhere, has "
                f"{listed(map(cut, dict.fromkeys(map(str, strings))), 6)}; give another value to --where"
            )
        kept_N &= matches_N
    if options.min_rating is not None:
        column = roles.get("rating", "rating")
        require_columns(table, [column], "give the column of ratings with --columns rating=...")
        kept_N &= table.numbers(column) >= options.min_rating
    if wanted or options.min_rating is not None:
        said.append(f"{kept_N.sum():,} of {len(table):,} rows count, by --where or --min-rating")
    if not kept_N.any():
        raise DataError(f"{table.path}: no row is left of {len(table)}; give other values to --where or --min-rating")
    return (table if kept_N.all() else take_rows(table, kept_N)), said


def keep_core(users: NDArray[np.int64], items: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Which rows are left when users and items with fewer than k of them are dropped until none is left.

    Args:
        users: The number of the user of each row.
        items: The number of the item of each row.
        k: Interactions of a user, and of an item, at least.

    Example:
        >>> keep_core(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1]), 2).tolist()
        [True, True, True, True, False]
    """
    kept_N = np.ones(len(users), bool)
    while True:
        fewer_N = kept_N.copy()
        for codes in (users, items):
            fewer_N &= np.bincount(codes[kept_N], minlength=codes.max() + 1)[codes] >= k
        if (fewer_N == kept_N).all():
            return kept_N
        kept_N = fewer_N
