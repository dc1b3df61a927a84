"""Spill: rows that wait on the disk, as they were read or in buckets that are each sorted in memory.

Shapes: N rows of a piece.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BUCKETS = 512
"""Buckets at most, as each is an open file: with more rows, a bucket takes more memory than it was given."""


@dataclass(frozen=True)
class _Piece:
    num_rows: int
    times: np.dtype[Any]
    part: int


class Rows:
    """Rows in the order in which they were read: user, item, time and part.

    Args:
        folder: Where they wait.
        name: Of their file.
    """

    def __init__(self, folder: Path, name: str = "rows") -> None:
        self._path = folder / name
        self._path.touch()
        self._pieces: list[_Piece] = []

    def add(self, users_N: NDArray[np.int32], items_N: NDArray[np.int32], times_N: NDArray[Any], part: int) -> None:
        """Append rows of one part; times are int64 or float64."""
        if not len(users_N):
            return
        with self._path.open("ab") as file:
            for values_N in (users_N, items_N, times_N):
                np.ascontiguousarray(values_N).tofile(file)
        self._pieces.append(_Piece(len(users_N), times_N.dtype, part))

    def remove(self) -> None:
        """Free the disk of them; their number and type stay known."""
        self._path.unlink()

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return self.pieces()

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return sum(piece.num_rows for piece in self._pieces)

    @property
    def num_parts(self) -> int:
        """The number of parts."""
        return max((piece.part for piece in self._pieces), default=0) + 1

    @property
    def kind(self) -> np.dtype[Any]:
        """What `pieces` are arrays of. Times are doubles as soon as one has a fraction."""
        is_whole = all(piece.times.kind == "i" for piece in self._pieces)
        time = ("time", "<i8" if is_whole else "<f8")
        return np.dtype([("user", "<i4"), ("item", "<i4"), time, *([("part", "<i4")] if self.num_parts > 1 else [])])

    def pieces(self, part: int | None = None) -> Iterator[NDArray[Any]]:
        """The rows, of all parts or one, piece by piece."""
        kind = self.kind
        with self._path.open("rb") as file:
            for piece in self._pieces:
                if part not in (None, piece.part):
                    file.seek(piece.num_rows * (8 + piece.times.itemsize), 1)
                    continue
                rows_N = np.empty(piece.num_rows, kind)
                for name, dtype in (("user", "<i4"), ("item", "<i4"), ("time", piece.times)):
                    rows_N[name] = np.fromfile(file, dtype, piece.num_rows)
                if "part" in rows_N.dtype.names:
                    rows_N["part"] = piece.part
                yield rows_N


class Buckets:
    """Rows in buckets by ranges of a key; within a bucket they keep their order until it is sorted.

    Args:
        folder: Where they wait.
        name: Of their files.
        edges: The key at which each bucket but the first begins, ascending.
        kind: The type of the rows.
    """

    def __init__(self, folder: Path, name: str, edges: NDArray[Any], kind: np.dtype[Any]) -> None:
        self._edges, self._kind = edges, kind
        self._paths = [folder / f"{name}-{number}" for number in range(len(edges) + 1)]

    def __len__(self) -> int:
        return len(self._paths)

    def fill(self, pieces: Iterator[NDArray[Any]], key: str, told: Callable[[int], None]) -> None:
        """Put rows into their buckets.

        Args:
            pieces: The rows.
            key: The column that decides.
            told: Called with the number of rows of each piece.
        """
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in self._paths]
            for rows_N in pieces:
                numbers_N = np.searchsorted(self._edges, rows_N[key], side="right").astype(np.uint16)
                rows_N = rows_N[np.argsort(numbers_N, kind="stable")]
                ends = np.cumsum(np.bincount(numbers_N, minlength=len(files)))
                for file, first, last in zip(files, [0, *ends[:-1]], ends, strict=True):
                    rows_N[first:last].tofile(file)
                told(len(rows_N))

    def rewrite(self, change: Callable[[NDArray[Any]], NDArray[Any]], told: Callable[[int], None]) -> None:
        """Replace the rows of each bucket by what a function makes of them, in memory."""
        for path in self._paths:
            rows_N = np.fromfile(path, self._kind)
            change(rows_N).tofile(path)
            told(len(rows_N))

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """The rows of each bucket that has some."""
        for path in self._paths:
            if path.stat().st_size:
                yield np.fromfile(path, self._kind)


def even_edges(counts_K: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """The keys at which buckets of about a number of rows begin, given how many rows each key has.

    Example:
        >>> even_edges(np.array([3, 1, 4, 1, 5]), 5).tolist()
        [3]
    """
    num_buckets = min(MAX_BUCKETS, -(-int(counts_K.sum()) // num_rows))
    size = -(-int(counts_K.sum()) // max(num_buckets, 1))
    numbers_K = (np.cumsum(counts_K) - counts_K) // max(size, 1)
    return np.flatnonzero(np.diff(numbers_K)) + 1


def sampled_edges(sample: NDArray[Any], num_total: int, num_rows: int) -> NDArray[Any]:
    """The times at which buckets of about a number of rows begin, from a sample; a frequent time has its own bucket.

    Example:
        >>> sampled_edges(np.array([1, 2, 2, 2, 2, 2, 3, 4]), 8, 2).tolist()
        [2, 3]
    """
    num_buckets = min(MAX_BUCKETS // 2, -(-num_total // num_rows))
    ordered = np.sort(sample)
    edges = ordered[np.arange(1, num_buckets) * len(ordered) // num_buckets]
    again = edges[1:][edges[1:] == edges[:-1]]
    after = again + 1 if again.dtype.kind == "i" else np.nextafter(again, np.inf)
    return np.unique(np.concatenate([edges, after]))
