"""Filters: which rows of the interactions count.

Shapes: N rows.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from alternator.checks import cut, listed
from ur4rec.data.reading.tables import Table, require_columns, take_rows
from ur4rec.errors import DataError
from ur4rec.options import DataOptions

_MAX_SHOWN = 6
"""The values of a column that a message lists."""


def keep_rows(table: Table, options: DataOptions, roles: Mapping[str, str]) -> tuple[Table, list[str]]:
    """The rows that ``where`` and ``min_rating`` keep, and what there is to say of it.

    Raises:
        DataError: A column is missing, a rating is no number, or no row is left.
    """
    filters = Filters(options, roles)
    kept_N = filters.matching(table)
    said = filters.check(table.path)
    return (table if kept_N.all() else take_rows(table, kept_N)), said


class Filters:
    """What ``where`` and ``min_rating`` keep of tables that come one after the other.

    Args:
        options: What was given.
        roles: The columns by role.
    """

    def __init__(self, options: DataOptions, roles: Mapping[str, str]) -> None:
        self.wanted: dict[str, list[str]] = {}
        for each in options.where:
            column, _, value = each.partition("=")
            self.wanted.setdefault(column, []).append(value)
        self.rating = None if options.min_rating is None else roles.get("rating", "rating")
        self._least = options.min_rating
        self._matches = dict.fromkeys(self.wanted, False)
        self._values: dict[str, dict[str, None]] = {column: {} for column in self.wanted}
        self._kept = self._rows = 0

    def matching(self, table: Table) -> NDArray[np.bool_]:
        """Which rows of a table are kept.

        Raises:
            DataError: A column is missing, or a rating is no number.
        """
        kept_N = np.ones(len(table), bool)
        for column, values in self.wanted.items():
            require_columns(table, [column], option="give another column to --where")
            strings = table.arrow_strings(column)
            matches_N = pc.is_in(strings, pa.array(values, strings.type)).to_numpy(zero_copy_only=False)
            self._matches[column] |= bool(matches_N.any())
            if len(self._values[column]) <= _MAX_SHOWN:
                self._values[column] |= dict.fromkeys(pc.unique(strings).slice(0, _MAX_SHOWN + 1).to_pylist())
            kept_N &= matches_N
        if self._least is not None:
            assert self.rating is not None
            require_columns(table, [self.rating], option="give the column of ratings with --columns rating=...")
            kept_N &= table.numbers(self.rating) >= self._least
        self._kept += int(kept_N.sum())
        self._rows += len(table)
        return kept_N

    def check(self, path: Path) -> list[str]:
        """What there is to say of all tables.

        Raises:
            DataError: No row was kept.
        """
        for column, values in self.wanted.items():
            if not self._matches[column]:
                raise DataError(
                    f"{path}, column {column!r}: must be {' or '.join(map(repr, values))} somewhere, has "
                    f"{listed(map(cut, self._values[column]), _MAX_SHOWN)}",
                    option="give another value to --where",
                )
        if not self._kept:
            raise DataError(
                f"{path}: no row is left of {self._rows}", option="give other values to --where or --min-rating"
            )
        if not self.wanted and self._least is None:
            return []
        return [f"{self._kept:,} of {self._rows:,} rows count, by --where or --min-rating"]


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
