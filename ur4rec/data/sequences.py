"""Sequences: many item sequences of different lengths in two flat arrays.

Shapes: N items in total, U sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Sequences:
    """Item sequences, one row each, as compressed sparse rows.

    Row ``u`` is ``items_N[offsets_U[u] : offsets_U[u + 1]]``. Indexing returns a view, never a copy.

    Example:
        >>> sequences = Sequences.from_lists([[3, 1, 2], [], [5]])
        >>> len(sequences), sequences[0].tolist(), sequences.lengths.tolist()
        (3, [3, 1, 2], [3, 0, 1])
        >>> sequences.tails(2)[0].tolist()
        [1, 2]
    """

    items_N: NDArray[np.int32]
    """All items, row after row."""
    offsets_U: NDArray[np.int64]
    """Where each row starts, and the end of the last one: one entry more than there are rows."""

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]]) -> "Sequences":
        """Build from one list of items per row."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        items = np.array([item for row in rows for item in row], dtype=np.int32)
        return cls(items, offsets_from_lengths(lengths))

    def __len__(self) -> int:
        return len(self.offsets_U) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row must be in 0..{len(self) - 1}, got {row}")
        row %= len(self)
        return self.items_N[self.offsets_U[row] : self.offsets_U[row + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The length of each row."""
        return np.diff(self.offsets_U)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each item in ``items_N``."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def positions(self) -> NDArray[np.int64]:
        """The position of each item within its row, from 0."""
        return np.arange(len(self.items_N)) - np.repeat(self.offsets_U[:-1], self.lengths)

    def heads(self, lengths_U: NDArray[np.int64] | int) -> "Sequences":
        """The first ``lengths_U[u]`` items of each row (all of a shorter row)."""
        kept = np.minimum(self.lengths, np.maximum(lengths_U, 0))
        mask = self.positions < np.repeat(kept, self.lengths)
        return Sequences(self.items_N[mask], offsets_from_lengths(kept))

    def tails(self, lengths_U: NDArray[np.int64] | int) -> "Sequences":
        """The last ``lengths_U[u]`` items of each row (all of a shorter row)."""
        kept = np.minimum(self.lengths, np.maximum(lengths_U, 0))
        mask = self.positions >= np.repeat(self.lengths - kept, self.lengths)
        return Sequences(self.items_N[mask], offsets_from_lengths(kept))

    def take(self, rows_T: NDArray[Any]) -> "Sequences":
        """The rows named, in that order."""
        lengths = self.lengths[rows_T]
        offsets = offsets_from_lengths(lengths)
        shift = np.repeat(self.offsets_U[:-1][rows_T] - offsets[:-1], lengths)
        return Sequences(self.items_N[np.arange(offsets[-1]) + shift], offsets)


def offsets_from_lengths(lengths_U: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row offsets for rows of these lengths."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_U, dtype=np.int64)])
