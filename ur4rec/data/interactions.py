"""Interactions: which user used which item, in order of time, with canonical indices.

Shapes: N interactions.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.errors import DataError

TRAIN, VALIDATION, TEST, CONTEXT = range(4)
"""The parts of data that comes split; see `Interactions.parts_N`."""


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

    def take(self, rows_T: NDArray[Any], lengths_T: NDArray[np.int64] | None = None) -> "Sequences":
        """The rows named, in that order; of each its first ``lengths_T`` items, or all."""
        lengths = self.lengths[rows_T] if lengths_T is None else lengths_T
        offsets = offsets_from_lengths(lengths)
        shift = np.repeat(self.offsets_U[:-1][rows_T] - offsets[:-1], lengths)
        return Sequences(self.items_N[np.arange(offsets[-1]) + shift], offsets)


def offsets_from_lengths(lengths_U: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row offsets for rows of these lengths."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_U, dtype=np.int64)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """A dataset of implicit feedback, its rows in (stable) order of time.

    Users and items have canonical indices ``0 .. num - 1``: the order of first appearance in the interactions file,
    among the rows that are kept. Every copy of a dataset shares that order, whatever it calls its users and items.
    """

    users_N: NDArray[np.int32]
    """User of each interaction."""
    items_N: NDArray[np.int32]
    """Item of each interaction."""
    timestamps_N: NDArray[Any]
    """Time of each interaction (int64 or float64), never decreasing unless the data came split."""
    user_ids: list[str]
    """The source's name of each user."""
    item_ids: list[str]
    """The source's name of each item."""
    titles: list[str]
    """The title of each item, for people to read."""
    texts: list[str]
    """The text of each item that the encoder reads: title, year, genres."""
    name: str
    """Name of the dataset."""
    source: str
    """Where the data came from."""
    parts_N: NDArray[np.int8] | None = None
    """The part of each interaction, for data that came split; None for data that did not. 0 is trained on, 1 is a
    validation target, 2 a test target, 3 is context: part of histories, but neither trained on nor ranked. The rows of
    a user are then in the order of part before time, and context stands before the target that it leads to."""
    num_duplicates: int = 0
    """Rows that repeat another one, with user, item and time: left out if the data was deduplicated."""
    notes: tuple[str, ...] = ()
    """What was found when it was read, for people: format, columns, times, titles."""

    @property
    def num_users(self) -> int:
        """The number of users."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """The number of items; also the index that stands for padding."""
        return len(self.item_ids)

    def __len__(self) -> int:
        return len(self.users_N)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical indices in order of time: equal for every copy of the same data."""
        parts = () if self.parts_N is None else (self.parts_N,)
        return hash_arrays(f"interactions {self.num_users} {self.num_items}", self.users_N, self.items_N, *parts)

    @cached_property
    def order_by_user(self) -> NDArray[np.int64]:
        """The interactions user by user, each user's in order of time: what ``sequences.items_N`` holds."""
        return np.argsort(self.users_N, kind="stable")

    @cached_property
    def sequences(self) -> Sequences:
        """Each user's items in order of time."""
        lengths = np.bincount(self.users_N, minlength=self.num_users).astype(np.int64)
        return Sequences(self.items_N[self.order_by_user], offsets_from_lengths(lengths))


def build_interactions(
    *,
    users: ArrayLike,
    items: ArrayLike,
    timestamps: NDArray[Any],
    titles: Mapping[str, str],
    texts: Mapping[str, str],
    name: str,
    source: str,
    min_item_interactions: int = 1,
    parts: NDArray[np.int8] | None = None,
    deduplicate: bool = False,
) -> Interactions:
    """Number users and items, drop rare items, sort by time.

    Args:
        users: The source's user name of each interaction, in file order.
        items: The source's item name of each interaction.
        timestamps: Finite numbers. Ties keep the order of the file.
        titles: Item name → title; by default, the name.
        texts: Item name → text; by default, the title.
        name: Name of the dataset.
        source: Where the data came from, for reports.
        min_item_interactions: Items with fewer interactions are dropped, once (no k-core iteration).
        parts: The part of each interaction, for data that came split, in the order that `Interactions.parts_N` says;
            the rows keep it.
        deduplicate: Drop every row whose user, item and time (and part) another one had before it. They are counted in
            any case.

    Raises:
        DataError: No interaction is left.

    Example:
        >>> data = build_interactions(
        ...     users=["u2", "u1", "u2"], items=["b", "b", "a"], timestamps=np.array([3, 1, 2]),
        ...     titles={"a": "Apple"}, texts={}, name="shop", source="by hand",
        ... )
        >>> data.user_ids, data.item_ids, data.titles, [row.tolist() for row in data.sequences]
        (['u2', 'u1'], ['b', 'a'], ['b', 'Apple'], [[1, 0], [0]])
    """
    times = np.asarray(timestamps)
    parts_N = np.zeros(len(times), np.int8) if parts is None else np.asarray(parts, np.int8)
    user_codes, user_names = _number(np.asarray(users, dtype=object))
    item_codes, item_names = _number(np.asarray(items, dtype=object))
    first = _first_of_equals(user_codes * len(item_names) + item_codes, times, parts_N)
    num_duplicates = len(first) - int(first.sum())
    kept = first if deduplicate else np.ones(len(times), bool)
    kept &= np.bincount(item_codes[kept], minlength=len(item_names))[item_codes] >= min_item_interactions
    if not kept.any():
        raise DataError(
            f"{name}: no interaction is left of {len(kept)} with min_item_interactions={min_item_interactions}"
        )
    item_codes, items_left = _number(item_codes[kept])
    user_codes, users_left = _number(user_codes[kept])
    times, parts_N = times[kept], parts_N[kept]
    item_ids = [str(item_names[code]) for code in items_left]
    item_titles = [titles.get(item, item) for item in item_ids]
    order = np.argsort(times, kind="stable") if parts is None else np.arange(len(times))
    return Interactions(
        users_N=user_codes[order].astype(np.int32),
        items_N=item_codes[order].astype(np.int32),
        timestamps_N=times[order],
        user_ids=[str(user_names[code]) for code in users_left],
        item_ids=item_ids,
        titles=item_titles,
        texts=[texts.get(item, title) for item, title in zip(item_ids, item_titles, strict=True)],
        name=name,
        source=source,
        parts_N=None if parts is None else parts_N[order],
        num_duplicates=num_duplicates,
    )


def _first_of_equals(pairs: NDArray[np.int64], *others: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row is the first of those with the same values."""
    first = np.ones(len(pairs), bool)
    if (np.diff(np.sort(pairs)) > 0).all():  # one sort, where nobody has an item twice
        return first
    order = np.lexsort((pairs, *others))
    same = np.logical_and.reduce([np.diff(column[order]) == 0 for column in (pairs, *others)])
    first[order[1:][same]] = False
    return first


def _number(values: NDArray[Any]) -> tuple[NDArray[np.int64], list[Any]]:
    """The index of each value among the distinct ones, and the distinct ones in the order of first appearance."""
    numbers: dict[Any, int] = {}
    codes = np.fromiter((numbers.setdefault(value, len(numbers)) for value in values.tolist()), np.int64, len(values))
    return codes, list(numbers)


def hash_arrays(label: str, *arrays: NDArray[Any]) -> str:
    """SHA-256 of a label and of integer arrays with their lengths, the same on every machine."""
    digest = hashlib.sha256(label.encode())
    for array in arrays:
        digest.update(f"|{len(array)}|".encode())
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()
