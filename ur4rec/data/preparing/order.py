"""Order: rows that wait on the disk put in order of time, and the order of first appearance found.

Shapes: N rows of a piece, U users, I items.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.interactions import CONTEXT, TRAIN, first_of_equals
from ur4rec.data.preparing.spill import Buckets, Rows, sampled_edges

_SAMPLE = 2**16
"""Times from which the buckets are found."""


class InTime:
    """Rows in order of part, then of time, then as they were read.

    Args:
        rows: The rows.
        num_items: The number of items among them.
        folder: Where they wait.
        bucket_rows: Rows that are sorted in memory at once.
        deduplicate: Whether rows that repeat another one are left out.
        told: Called with the share that is done.

    Attributes:
        num_duplicates: Rows that repeat another one: user, item and time.
    """

    def __init__(
        self,
        rows: Rows,
        num_items: int,
        folder: Path,
        bucket_rows: int,
        *,
        deduplicate: bool,
        told: Callable[[float], None],
    ) -> None:
        self.num_duplicates = 0
        self._num_items, self._deduplicate = num_items, deduplicate
        self._done, self._total, self._told = 0, 2 * rows.num_rows, told
        self._parts: list[Buckets] = []
        for part in range(rows.num_parts):
            sample = _sample_times(rows, part)
            edges = sampled_edges(sample, sum(map(len, rows.pieces(part))), bucket_rows)
            buckets = Buckets(folder, f"times-{part}", edges, rows.kind)
            buckets.fill(rows.pieces(part), "time", self._count)
            buckets.rewrite(self._sort, self._count)
            self._parts.append(buckets)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (rows_N for buckets in self._parts for rows_N in buckets)

    def rewrite(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Replace the rows of each bucket by what a function makes of them."""
        for buckets in self._parts:
            buckets.rewrite(change, lambda num_rows: None)

    def _count(self, num_rows: int) -> None:
        self._done += num_rows
        self._told(self._done / self._total)

    def _sort(self, rows_N: NDArray[Any]) -> NDArray[Any]:
        times_N = np.ascontiguousarray(rows_N["time"])
        if not (times_N[1:] >= times_N[:-1]).all():
            order_N = np.argsort(times_N, kind="stable")
            rows_N, times_N = rows_N[order_N], times_N[order_N]
        is_tied_N = np.zeros(len(rows_N) + 1, bool)
        is_tied_N[1:-1] = times_N[1:] == times_N[:-1]
        tied = np.flatnonzero(is_tied_N[1:] | is_tied_N[:-1])
        pairs = rows_N["user"][tied].astype(np.int64) * self._num_items + rows_N["item"][tied]
        again = tied[~first_of_equals(pairs, times_N[tied])]
        self.num_duplicates += len(again)
        return np.delete(rows_N, again) if self._deduplicate else rows_N


def _sample_times(rows: Rows, part: int) -> NDArray[Any]:
    every = max(1, rows.num_rows // _SAMPLE)
    return np.concatenate([rows_N["time"][::every] for rows_N in rows.pieces(part)])


def first_appearances(codes: Iterable[NDArray[np.int32]], num_codes: int) -> NDArray[np.int64]:
    """The codes in the order in which they first appear in pieces.

    Example:
        >>> first_appearances([np.array([3, 1]), np.array([1, 0])], 4).tolist()
        [3, 1, 0]
    """
    is_known, found = np.zeros(num_codes, bool), []
    for codes_N in codes:
        new_N = codes_N[~is_known[codes_N]]
        distinct, firsts = np.unique(new_N, return_index=True)
        is_known[distinct] = True
        found.append(distinct[np.argsort(firsts)])
    return np.concatenate(found).astype(np.int64)


def mark_contexts(in_time: InTime, num_users: int) -> None:
    """Say of rows of data that came split which are context.

    Of users whom earlier files never saw, all but the last row of their first file are fed and nothing else; see
    `ur4rec.data.reading.presplit`.
    """
    first_U = np.full(num_users, CONTEXT, np.int64)
    for rows_N in in_time:
        np.minimum.at(first_U, rows_N["user"], rows_N["part"])
    left_U = np.zeros(num_users, np.int64)
    for rows_N in in_time:
        left_U += np.bincount(rows_N["user"][_begin(rows_N, first_U)], minlength=num_users)

    def mark(rows_N: NDArray[Any]) -> NDArray[Any]:
        places = np.flatnonzero(_begin(rows_N, first_U))
        places = places[np.argsort(rows_N["user"][places], kind="stable")]
        users = rows_N["user"][places]
        starts = np.flatnonzero(np.diff(users, prepend=-1))
        lengths = np.diff(starts, append=len(users))
        nth = np.arange(len(users)) - np.repeat(starts, lengths)
        rows_N["part"][places[nth < left_U[users] - 1]] = CONTEXT
        left_U[users[starts]] -= lengths
        return rows_N

    in_time.rewrite(mark)


def _begin(rows_N: NDArray[Any], first_U: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows are in the first file of their user, and that is none for training."""
    begins_N: NDArray[np.bool_] = (rows_N["part"] != TRAIN) & (rows_N["part"] == first_U[rows_N["user"]])
    return begins_N
