"""Names: strings that come table by table, numbered in the order of first appearance."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ur4rec.data.columns import find_strings
from ur4rec.data.interactions import numbered
from ur4rec.data.reading.tables import Table, whole_numbers
from ur4rec.errors import DataError

_LOOKED_UP = 2**26
"""Integers below this are looked up in an array."""


class Names:
    """The users or the items of tables that come one after the other. No string is made for a row.

    Attributes:
        values: The distinct ones so far.
    """

    def __init__(self) -> None:
        self._is_whole: bool | None = None
        self._of_integer_K = np.zeros(0, np.int32)
        self.values = pa.array([], pa.large_string())

    def __len__(self) -> int:
        return len(self.values)

    def number(self, table: Table, name: str) -> NDArray[np.int32]:
        """The number of each row's name, in the column of that name.

        Raises:
            DataError: A name is empty, or a column of fractions began with whole numbers or the other way round.
        """
        column = table.columns[name]
        if column.null_count:
            table.names(name)
        if pa.types.is_integer(column.type):
            least, most = pc.min_max(column).as_py().values()
            if least >= 0 and most < _LOOKED_UP:
                return self._look_up(table, name, column.to_numpy(zero_copy_only=False), most)
        return self._number(table, name, column)

    def _look_up(self, table: Table, name: str, integers_N: NDArray[Any], most: int) -> NDArray[np.int32]:
        """The numbers of names that are small integers, of which most have come before."""
        if (missing := most + 1 - len(self._of_integer_K)) > 0:
            self._of_integer_K = np.append(self._of_integer_K, np.full(missing, -1, np.int32))
        found_N: NDArray[np.int32] = self._of_integer_K[integers_N]
        new_N = integers_N[found_N < 0]
        if len(new_N):
            self._of_integer_K[new_N] = self._number(table, name, pa.array(new_N))
            found_N = self._of_integer_K[integers_N]
        return found_N

    def _number(self, table: Table, name: str, column: pa.Array) -> NDArray[np.int32]:
        codes_N, distinct = numbered(column)
        names = Table(table.path, {name: distinct}, ()).arrow_strings(name)
        if pc.any(pc.equal(names, "")).as_py():
            table.names(name)
        self._check_whole(table, name, distinct)
        return self._find(names.cast(pa.large_string()))[codes_N]

    def _find(self, names: pa.Array) -> NDArray[np.int32]:
        codes_K, distinct = numbered(names)  # 0.0 and -0.0 are two numbers of one name
        found_K = find_strings(self.values, distinct)
        is_new_K = found_K < 0
        found_K[is_new_K] = len(self.values) + np.arange(is_new_K.sum())
        if is_new_K.any():
            self.values = pa.concat_arrays([self.values, distinct.filter(pa.array(is_new_K))])
        return found_K[codes_K].astype(np.int32)

    def _check_whole(self, table: Table, name: str, distinct: pa.Array) -> None:
        """Refuse names that a file read whole would write otherwise: 1e16 is one if all are whole, else the other."""
        if not (pa.types.is_floating(distinct.type) or pa.types.is_decimal(distinct.type)):
            return
        is_whole = pa.types.is_integer(whole_numbers(distinct).type)
        if self._is_whole not in (None, is_whole):
            raise DataError(
                f"{table.path}, column {name!r}: names must be all whole numbers or none, to be read piece by "
                "piece, got both; write them as strings"
            )
        self._is_whole = is_whole
