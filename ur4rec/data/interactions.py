"""Interactions: which user used which item, in order of time, with canonical indices.

Shapes: N interactions.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from ur4rec.errors import DataError

if TYPE_CHECKING:
    from ur4rec.data.prepared import Prepared

TRAIN, VALIDATION, TEST, CONTEXT = range(4)
"""The parts of data that comes split; see `Interactions.parts_N`."""


CHUNK = 2**22
"""Rows of interactions that are looked at together: what is computed of them takes some hundred MB at most."""


class Sequences:
    """Item sequences, one row each: slices of one array, which may be a mapped file.

    Row ``u`` is ``items_N[starts_U[u] : ends_U[u]]``. Indexing, and taking rows or parts of rows, copies no items.

    Args:
        items_N: All items, row after row.
        offsets_U: Where each row starts, and the end of the last one: one entry more than there are rows.

    Attributes:
        items_N: What the rows are slices of.
        starts_U: Where each row starts.
        ends_U: Where each row ends, exclusive.

    Example:
        >>> sequences = Sequences.from_lists([[3, 1, 2], [], [5]])
        >>> len(sequences), sequences[0].tolist(), sequences.lengths.tolist()
        (3, [3, 1, 2], [3, 0, 1])
        >>> sequences.tails(2)[0].tolist()
        [1, 2]
    """

    def __init__(self, items_N: NDArray[np.int32], offsets_U: NDArray[np.int64]) -> None:
        self.items_N = items_N
        self.starts_U, self.ends_U = offsets_U[:-1], offsets_U[1:]

    @classmethod
    def slices(cls, items_N: NDArray[np.int32], starts_U: NDArray[np.int64], ends_U: NDArray[np.int64]) -> "Sequences":
        """Rows anywhere in an array, in any order; they may overlap."""
        found = cls(items_N, np.zeros(1, np.int64))
        found.starts_U, found.ends_U = starts_U, ends_U
        return found

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]]) -> "Sequences":
        """Build from one list of items per row."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        items = np.array([item for row in rows for item in row], dtype=np.int32)
        return cls(items, offsets_from_lengths(lengths))

    def __len__(self) -> int:
        return len(self.starts_U)

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row must be in 0..{len(self) - 1}, got {row}")
        return self.items_N[self.starts_U[row] : self.ends_U[row]]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The length of each row."""
        return self.ends_U - self.starts_U

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each item of `flat`."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def flat(self) -> NDArray[np.int32]:
        """The items of all rows, one row after the other: a copy, unless they lie so."""
        if not len(self):
            return self.items_N[:0]
        if (self.starts_U[1:] == self.ends_U[:-1]).all():
            return self.items_N[self.starts_U[0] : self.ends_U[-1]]
        lengths = self.lengths
        ends = np.cumsum(lengths)
        shift = np.repeat(self.starts_U - (ends - lengths), lengths)
        found: NDArray[np.int32] = self.items_N[np.arange(len(shift)) + shift]
        return found

    @property
    def positions(self) -> NDArray[np.int64]:
        """The position of each item of `flat` within its row, from 0."""
        lengths = self.lengths
        return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)

    def chunks(self) -> Iterator[tuple[int, "Sequences"]]:
        """The rows in groups of about `CHUNK` items, each with the number of its first row."""
        ends = np.cumsum(self.lengths)
        first = 0
        while first < len(self):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
            yield first, Sequences.slices(self.items_N, self.starts_U[first:last], self.ends_U[first:last])
            first = last

    def heads(self, lengths_U: NDArray[np.int64] | int) -> "Sequences":
        """The first ``lengths_U[u]`` items of each row (all of a shorter row)."""
        kept = np.minimum(self.lengths, np.maximum(lengths_U, 0))
        return Sequences.slices(self.items_N, self.starts_U, self.starts_U + kept)

    def tails(self, lengths_U: NDArray[np.int64] | int) -> "Sequences":
        """The last ``lengths_U[u]`` items of each row (all of a shorter row)."""
        kept = np.minimum(self.lengths, np.maximum(lengths_U, 0))
        return Sequences.slices(self.items_N, self.ends_U - kept, self.ends_U)

    def take(self, rows_T: NDArray[Any], lengths_T: NDArray[np.int64] | None = None) -> "Sequences":
        """The rows named, in that order; of each its first ``lengths_T`` items, or all."""
        starts = self.starts_U[rows_T]
        return Sequences.slices(self.items_N, starts, self.ends_U[rows_T] if lengths_T is None else starts + lengths_T)

    def distinct(self, num_items: int) -> "Sequences":
        """The distinct items of each row, ascending: a copy.

        Args:
            num_items: A number above all items.

        Raises:
            DataError: There is another item.
        """
        items = self.flat
        check_items(items, num_items)
        keys = np.sort(self.rows * num_items + items)
        keys = keys[np.diff(keys, prepend=-1) > 0]
        lengths = np.bincount(keys // num_items, minlength=len(self))
        return Sequences((keys % num_items).astype(np.int32), offsets_from_lengths(lengths))

    def count_items(self, num_items: int) -> NDArray[np.int64]:
        """How often each item is in the rows, (num_items,).

        Raises:
            DataError: There is another item.
        """
        counts_I = np.zeros(num_items, np.int64)
        for _, part in self.chunks():
            items = part.flat
            check_items(items, num_items)
            counts_I += np.bincount(items, minlength=num_items)
        return counts_I


def check_items(items_N: NDArray[np.int32], num_items: int) -> None:
    """Refuse items that do not exist, which a mapped file may hold: nobody has looked at all of it.

    Raises:
        DataError: There is one.
    """
    if len(items_N) and not 0 <= items_N.min() <= items_N.max() < num_items:
        wrong = items_N[(items_N < 0) | (items_N >= num_items)][0]
        raise DataError(f"items must be in 0 .. {num_items - 1}, got {wrong}; prepare the data again, or restore it")


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
    user_ids: Sequence[str]
    """The source's name of each user."""
    item_ids: Sequence[str]
    """The source's name of each item."""
    titles: Sequence[str]
    """The title of each item, for people to read."""
    texts: Sequence[str]
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
    prepared: "Prepared | None" = None
    """The prepared directory that the arrays are mapped from, whose rows are in order of user, then of time."""

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
        if self.prepared is not None:
            return self.prepared.interactions_hash
        parts = () if self.parts_N is None else (self.parts_N,)
        return hash_arrays(f"interactions {self.num_users} {self.num_items}", self.users_N, self.items_N, *parts)

    @cached_property
    def order_by_user(self) -> NDArray[np.int64]:
        """The interactions user by user, each user's in order of time: what ``sequences.items_N`` holds."""
        return np.argsort(self.users_N, kind="stable")

    @property
    def parts_by_user(self) -> NDArray[np.int8] | None:
        """The part of each item of ``sequences.items_N``, for data that came split."""
        if self.parts_N is None or self.prepared is not None:
            return self.parts_N
        return self.parts_N[self.order_by_user]

    @property
    def times_by_user(self) -> NDArray[Any]:
        """The time of each item of ``sequences.items_N``."""
        return self.timestamps_N if self.prepared is not None else self.timestamps_N[self.order_by_user]

    @cached_property
    def sequences(self) -> Sequences:
        """Each user's items in order of time."""
        if self.prepared is not None:
            return Sequences(self.items_N, self.prepared.offsets_U)
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
    user_codes, user_names = numbered(users)
    item_codes, item_names = numbered(items)
    first = first_of_equals(user_codes * len(item_names) + item_codes, times, parts_N)
    num_duplicates = len(first) - int(first.sum())
    kept = first if deduplicate else np.ones(len(times), bool)
    kept &= np.bincount(item_codes[kept], minlength=len(item_names))[item_codes] >= min_item_interactions
    if not kept.any():
        raise DataError(
            f"{name}: no interaction is left of {len(kept)} with min_item_interactions={min_item_interactions}"
        )
    item_codes, items_left = numbered(item_codes[kept])
    user_codes, users_left = numbered(user_codes[kept])
    times, parts_N = times[kept], parts_N[kept]
    item_ids = _strings(item_names.take(items_left))
    item_titles = [titles.get(item, item) for item in item_ids]
    order = np.argsort(times, kind="stable") if parts is None else np.arange(len(times))
    return Interactions(
        users_N=user_codes[order].astype(np.int32),
        items_N=item_codes[order].astype(np.int32),
        timestamps_N=times[order],
        user_ids=_strings(user_names.take(users_left)),
        item_ids=item_ids,
        titles=item_titles,
        texts=[texts.get(item, title) for item, title in zip(item_ids, item_titles, strict=True)],
        name=name,
        source=source,
        parts_N=None if parts is None else parts_N[order],
        num_duplicates=num_duplicates,
    )


def first_of_equals(pairs: NDArray[np.int64], *others: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row is the first of those with the same values."""
    first = np.ones(len(pairs), bool)
    hashes = pairs.view(np.uint64)
    for column in others:  # 0.0 and -0.0 are equal
        bits = (column + 0.0 if column.dtype.kind == "f" else column.astype(np.int64)).view(np.uint64)
        hashes = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15) + bits
    ordered = np.sort(hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return first
    places = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
    rows = np.flatnonzero(repeated[places] == hashes)  # which may be equal: the others are not
    columns = [column[rows] for column in (pairs, *others)]
    order = np.lexsort(columns)
    same = np.logical_and.reduce([np.diff(column[order]) == 0 for column in columns])
    first[rows[order[1:][same]]] = False
    return first


def numbered(values: ArrayLike | pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """The index of each value among the distinct ones, and the distinct ones in the order of first appearance.

    Example:
        >>> codes, distinct = numbered(["b", "a", "b"])
        >>> codes.tolist(), distinct.to_pylist()
        ([0, 1, 0], ['b', 'a'])
    """
    found = to_arrow(values).dictionary_encode()
    return found.indices.to_numpy(zero_copy_only=False).astype(np.int64), found.dictionary


def to_arrow(values: ArrayLike | pa.Array) -> pa.Array:
    """Strings or numbers as an array of Arrow's."""
    if isinstance(values, pa.Array):
        return values
    array = np.asarray(values)
    if array.dtype.kind in "OU":
        first = array[0] if len(array) else ""
        return pa.array(array, pa.large_string() if isinstance(first, str) else None)  # beyond 2 GB in all
    return pa.array(array)


def _strings(values: pa.Array) -> list[str]:
    return [str(value) for value in values.to_pylist()]


class ArrayHash:
    """SHA-256 of a label and of integer arrays with their lengths, the same on every machine.

    Args:
        label: What the arrays are.
    """

    def __init__(self, label: str) -> None:
        self._digest = hashlib.sha256(label.encode())

    def add(self, array: NDArray[Any]) -> None:
        """Add an array."""
        self.add_parts(len(array), (array[first : first + CHUNK] for first in range(0, len(array), CHUNK)))

    def add_parts(self, length: int, parts: Iterable[NDArray[Any]]) -> None:
        """Add an array of this length that comes in parts."""
        self._digest.update(f"|{length}|".encode())
        for part in parts:
            self._digest.update(np.ascontiguousarray(part, dtype="<i8").data)

    def add_sequences(self, sequences: Sequences) -> None:
        """Add the items of all rows, then the offsets that they have when they follow each other."""
        lengths = sequences.lengths
        self.add_parts(int(lengths.sum()), (part.flat for _, part in sequences.chunks()))
        self.add(offsets_from_lengths(lengths))

    def hexdigest(self) -> str:
        """The hash of all that was added."""
        return self._digest.hexdigest()


def hash_arrays(label: str, *arrays: NDArray[Any]) -> str:
    """SHA-256 of a label and of integer arrays with their lengths, the same on every machine."""
    digest = ArrayHash(label)
    for array in arrays:
        digest.add(array)
    return digest.hexdigest()
