"""Batches: sequences cut, padded and shuffled into arrays of few shapes.

Shapes: B rows of a batch, L positions (at most max_seq_len, and no more than the histories have), M coordinates of seen
items, R windows of an epoch, W = L + 1. Sequences are padded on the right with ``num_items``.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alternator.checks import check_integer
from ur4rec.data.interactions import CHUNK, Sequences
from ur4rec.data.splits import Targets
from ur4rec.errors import ConfigurationError, DataError

MAX_DRAWN = 2**24
"""Windows of an epoch whose order is held, at most; of more it is computed batch by batch."""
_ROUNDS = 6


class Batch(NamedTuple):
    """A training batch: at every position the next item is the target."""

    items_BL: NDArray[np.int32]
    """The inputs; ``num_items`` is padding."""
    targets_BL: NDArray[np.int32]
    """The item after each input; ``num_items`` where there is none."""
    users_B: NDArray[np.int32]
    """The row of the training sequences (the user); -1 for a row that only fills up the last batch."""


class EvaluationBatch(NamedTuple):
    """Histories with one target each. Rows from ``num_valid`` on only fill up the last batch."""

    items_BL: NDArray[np.int32]
    """The last L items of each history; ``num_items`` is padding."""
    targets_B: NDArray[np.int32]
    """The target of each row; 0 in rows that only fill up."""
    seen_rows_M: NDArray[np.int32]
    """Row of each seen item; from ``num_seen`` on it is B, out of range."""
    seen_items_M: NDArray[np.int32]
    """The seen items; from ``num_seen`` on 0."""
    num_valid: int
    """Rows that count."""
    num_seen: int
    """Coordinates that count."""
    users_B: NDArray[np.int32] | None = None
    """The user of each row; -1 in rows that only fill up. None: all users are unknown to the model."""

    @property
    def seen(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Row and item of each seen item, without what fills up."""
        return self.seen_rows_M[: self.num_seen], self.seen_items_M[: self.num_seen]


class TrainBatches:
    """Shuffled training batches of constant shape; any batch of any epoch can be built directly.

    All positions train at once. A batch is a function of (epoch, index): several threads may build batches of one
    object. The order of an epoch is a function of (seed, epoch) alone, so a run resumes at any
    batch. A sequence longer than ``max_seq_len + 1`` is cut into consecutive windows that overlap in one item, so that
    every item but the first of a sequence is a target exactly once an epoch; the windows are aligned to the end (the
    first one is the short one). ``windows=False`` keeps only the last window, as the original SASRec does:
    at 50 positions, that loses 60% of the targets of ML-100K and 73% of those of ML-1M. Sequences of fewer than 2 items
    hold no target and are left out. The last batch is filled up with rows of padding. All batches are as wide as the
    longest window.

    ``shifted=True`` cuts sequences that need more than one window elsewhere in every epoch: the cuts move towards the
    end by a number of positions drawn for each sequence, from (seed, epoch). The last window then has fewer targets,
    but its row still begins max_seq_len positions before its end, so that its targets have the long histories that
    evaluation has. The number of rows stays: targets at the beginning of a sequence that no row has room for wait for
    another epoch.

    Args:
        sequences: Training sequences, one per user.
        num_items: Size of the catalogue, and the padding index.
        max_seq_len: Positions of a row.
        batch_size: Rows of a batch.
        seed: Seed of the order.
        windows: Whether to train on whole sequences or only on their ends.
        shifted: Whether to cut the windows elsewhere in every epoch.

    Raises:
        ConfigurationError: A size is below 1.
        DataError: No sequence has 2 items.

    Example:
        >>> from ur4rec.data import Sequences
        >>> batches = TrainBatches(Sequences.from_lists([[0, 1, 2, 3]]), 4, max_seq_len=2, batch_size=2, seed=0)
        >>> batch = batches.batch(epoch=0, index=0)
        >>> sorted(batch.items_BL.tolist()), sorted(batch.targets_BL.tolist())
        ([[0, 4], [1, 2]], [[1, 4], [2, 3]])
    """

    def __init__(
        self,
        sequences: Sequences,
        num_items: int,
        *,
        max_seq_len: int,
        batch_size: int,
        seed: int,
        windows: bool = True,
        shifted: bool = False,
    ) -> None:
        _check_sizes(max_seq_len=max_seq_len, batch_size=batch_size, num_items=num_items)
        if not 0 <= seed < 2**63:
            raise ConfigurationError(f"seed must be in 0 .. 2**63 - 1, got {seed!r}")
        self.num_items = num_items
        self.max_seq_len = max_seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self._width = min(max_seq_len, max(int(sequences.lengths.max(initial=0)) - 1, 1))
        self._sequences = sequences
        self._counts_U = _count_windows(sequences, max_seq_len, windows)
        self._ends_U = np.cumsum(self._counts_U)
        if not self.num_rows:
            raise DataError(
                f"training needs a sequence of at least 2 items, found none among {len(sequences)}", "give longer ones"
            )
        self.shifted = shifted
        self._drawn: tuple[int, _Epoch] | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.num_batches

    @property
    def num_batches(self) -> int:
        """Batches in which all windows are."""
        return -(-self.num_rows // self.batch_size)

    @property
    def num_rows(self) -> int:
        """Windows of an epoch."""
        return int(self._ends_U[-1]) if len(self._ends_U) else 0

    @property
    def num_targets(self) -> int:
        """Targets of an epoch; with shifted windows, of the first."""
        drawn = self._draw(0)
        firsts = range(0, self.num_rows, CHUNK)
        rows = (np.arange(first, min(first + CHUNK, self.num_rows)) for first in firsts)
        return sum(int(self._cut(drawn, rows_r)[3].sum()) for rows_r in rows)

    @cached_property
    def item_counts(self) -> NDArray[np.int64]:
        """How often each item is a target in the training data, (num_items,): of all items but the first of a user."""
        sequences = self._sequences
        firsts = sequences.starts_U[sequences.lengths > 0]
        counts_I = sequences.count_items(self.num_items)
        return counts_I - np.bincount(sequences.items_N[firsts], minlength=self.num_items)

    @cached_property
    def usual_targets(self) -> int:
        """A number of targets that few batches exceed, if any: the maximum of the batches of the first 16 epochs.

        Of more than `MAX_DRAWN` windows it is what a batch can hold.
        """
        return self.usual_targets_of_part(1)

    def usual_targets_of_part(self, num_parts: int) -> int:
        """The same for the parts of batches whose rows are divided; see `ur4rec.training.processes.part_of`."""
        size = -(-self.batch_size // num_parts)
        if self.num_rows > MAX_DRAWN:
            return size * self._width
        starts_P = np.arange(0, self.batch_size, size)
        firsts = (np.arange(0, self.num_rows, self.batch_size)[:, None] + starts_P).ravel()
        firsts, rows_R = firsts[firsts < self.num_rows], np.arange(self.num_rows)
        counts = (
            np.add.reduceat(self._cut(drawn, rows_R)[3][drawn.order(rows_R)], firsts)
            for drawn in map(self._draw, range(16))
        )
        return max(int(counts_b.max()) for counts_b in counts)

    @cached_property
    def length_counts(self) -> NDArray[np.int64]:
        """How many rows of the first epoch have each number of items, (L + 1,); of more than `MAX_DRAWN`, of so many.

        So batches can be divided into groups of rows of about one length; see `ur4rec.training.length_groups`.
        """
        rows_R = np.arange(0, self.num_rows, -(-self.num_rows // MAX_DRAWN))
        _, starts_R, ends_R, _ = self._cut(self._draw(0), rows_R)
        return np.bincount(ends_R - starts_R - 1, minlength=self._width + 1)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iterating yields."""
        if epoch < 0:
            raise ConfigurationError(f"epoch must be at least 0, got {epoch}")
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        return (self.batch(epoch, index) for index in range(len(self)))

    def batch(self, epoch: int, index: int) -> Batch:
        """One batch of one epoch."""
        if not 0 <= index < self.num_batches:
            raise IndexError(f"index must be in 0..{self.num_batches - 1}, got {index}")
        drawn = self._epoch(epoch)
        first = index * self.batch_size
        rows = drawn.order(np.arange(first, min(first + self.batch_size, self.num_rows)))
        users_r, starts_r, ends_r, num_targets_r = self._cut(drawn, rows)
        window_BW = _gather(self._sequences.items_N, starts_r, ends_r, self._width + 1, self.num_items, self.batch_size)
        users_B = np.full(self.batch_size, -1, np.int32)
        users_B[: len(rows)] = users_r
        targets_BL = np.ascontiguousarray(window_BW[:, 1:])
        items_BL = np.where(targets_BL == self.num_items, np.int32(self.num_items), window_BW[:, :-1])
        contexts_r = ends_r - starts_r - 1 - num_targets_r
        targets_BL[: len(rows)][np.arange(self._width) < contexts_r[:, None]] = self.num_items
        return Batch(items_BL, targets_BL, users_B)

    def _epoch(self, epoch: int) -> "_Epoch":
        kept = self._drawn  # once: another thread may draw another epoch
        if kept is None or kept[0] != epoch:
            kept = self._drawn = (epoch, self._draw(epoch))
        return kept[1]

    def _draw(self, epoch: int) -> "_Epoch":
        shifts_U = None
        if self.shifted:
            draws_U = _draws(self.seed, epoch, len(self._counts_U), stream=1)
            shifts_U = (draws_U % np.uint64(self.max_seq_len)).astype(np.int32)
        return _Epoch(_order(self.seed, epoch, self.num_rows), shifts_U)

    def _cut(self, drawn: "_Epoch", rows_r: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """User, start and end (in the items of all sequences, exclusive) of windows, and the targets at their ends.

        Windows are counted from the end of a sequence, where the first one has fewer targets by the shift.
        """
        users_r = np.searchsorted(self._ends_U, rows_r, side="right")
        counts_r = self._counts_U[users_r]
        index_r = rows_r - (self._ends_U[users_r] - counts_r)
        shift_r = 0 if drawn.shifts_U is None else np.where(counts_r > 1, drawn.shifts_U[users_r], 0)
        begin_r, end_r = self._sequences.starts_U[users_r], self._sequences.ends_U[users_r]
        ends_r = end_r - np.maximum(index_r * self.max_seq_len - shift_r, 0)
        cuts_r = np.maximum(begin_r + 1, end_r - (index_r + 1) * self.max_seq_len + shift_r)
        return users_r, np.maximum(begin_r, ends_r - self.max_seq_len - 1), ends_r, ends_r - cuts_r


class SteppedBatches(TrainBatches):
    """The batches of other sequences, as one stream that is cut into epochs of given numbers of steps.

    So data that has grown is trained on for as many steps as it was before.

    Args:
        batches: Batches of the sequences as they were, whose sizes and order these have.
        sequences: The sequences.
        lengths: The number of steps of each epoch.

    Example:
        >>> from ur4rec.data import Sequences
        >>> before = TrainBatches(Sequences.from_lists([[0, 1], [2, 3]]), 4, max_seq_len=2, batch_size=1, seed=0)
        >>> grown = Sequences.from_lists([[0, 1], [2, 3], [1, 3]])
        >>> batches = SteppedBatches(before, grown, [2, 2, 1])
        >>> stepped = []
        >>> for epoch in range(3):
        ...     batches.set_epoch(epoch)
        ...     stepped.append([batch.users_B.tolist() for batch in batches])
        >>> [len(each) for each in stepped], sorted(sum(stepped, [])[:3])
        ([2, 2, 1], [[0], [1], [2]])
    """

    def __init__(self, batches: TrainBatches, sequences: Sequences, lengths: Sequence[int]) -> None:
        super().__init__(
            *(sequences, batches.num_items),
            max_seq_len=batches.max_seq_len,
            batch_size=batches.batch_size,
            seed=batches.seed,
            shifted=batches.shifted,
        )
        self._lengths = tuple(lengths)
        self._firsts = [0, *accumulate(self._lengths)]

    def __len__(self) -> int:
        """Batches of the epoch that was chosen."""
        return self._lengths[self.epoch]

    def __iter__(self) -> Iterator[Batch]:
        first = self._firsts[self.epoch]
        places = (divmod(step, self.num_batches) for step in range(first, first + len(self)))
        return (self.batch(epoch, index) for epoch, index in places)


class _Epoch(NamedTuple):
    """The window at each place of an epoch, and by how much those of each user are shifted, if they are."""

    order: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    shifts_U: NDArray[np.int32] | None


_MIN_WIDTH = 8


class EvaluationBatches:
    """Batches of evaluation targets, in their order, all of the same number of rows.

    A batch is about as wide as its longest history: a power of two, of at least 8, but no more than ``max_seq_len``. So
    the widths are few, as a backend that compiles wants it.

    Args:
        targets: What to evaluate.
        num_items: Size of the catalogue, and the padding index.
        max_seq_len: Positions of a row: the model is fed that number of last items of each history.
        batch_size: Rows of a batch.

    Raises:
        ConfigurationError: A size is below 1.

    Example:
        >>> from ur4rec.data import leave_one_out, synthetic
        >>> split = leave_one_out(synthetic(num_users=20, num_items=50))
        >>> batches = EvaluationBatches(split.test, split.num_items, max_seq_len=5, batch_size=8)
        >>> [(batch.items_BL.shape, batch.num_valid) for batch in batches]
        [((8, 5), 8), ((8, 5), 8), ((8, 5), 4)]
    """

    def __init__(self, targets: Targets, num_items: int, *, max_seq_len: int, batch_size: int) -> None:
        _check_sizes(max_seq_len=max_seq_len, batch_size=batch_size, num_items=num_items)
        self.targets = targets
        self.num_items = num_items
        self.max_seq_len = max_seq_len
        self.batch_size = batch_size
        firsts = np.arange(0, len(targets), batch_size)
        self._max_seen = int(np.add.reduceat(targets.seen.lengths, firsts).max(initial=0)) if len(targets) else 0

    def __len__(self) -> int:
        return -(-len(self.targets) // self.batch_size)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        return (self.batch(index) for index in range(len(self)))

    def batch(self, index: int) -> EvaluationBatch:
        """One batch."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0..{len(self) - 1}, got {index}")
        first = index * self.batch_size
        last = min(first + self.batch_size, len(self.targets))
        histories = self.targets.histories
        ends = histories.ends_U[first:last]
        starts = np.maximum(histories.starts_U[first:last], ends - self.max_seq_len)
        width = min(self.max_seq_len, max(_MIN_WIDTH, 1 << (int((ends - starts).max()) - 1).bit_length()))
        items_BL = _gather(histories.items_N, starts, ends, width, self.num_items, self.batch_size)
        targets_B, users_B = np.zeros(self.batch_size, np.int32), np.full(self.batch_size, -1, np.int32)
        targets_B[: last - first] = self.targets.items_T[first:last]
        users_B[: last - first] = self.targets.users_T[first:last]
        rows_M, seen_M, num_seen = self._seen(first, last)
        return EvaluationBatch(items_BL, targets_B, rows_M, seen_M, last - first, num_seen, users_B)

    def _seen(self, first: int, last: int) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
        seen = self.targets.seen.take(np.arange(first, last)).distinct(self.num_items)
        rows_M = np.full(self._max_seen, self.batch_size, np.int32)
        items_M = np.zeros(self._max_seen, np.int32)
        num_seen = len(seen.items_N)
        rows_M[:num_seen] = seen.rows
        items_M[:num_seen] = seen.items_N
        return rows_M, items_M, num_seen


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        check_integer(name, size, 1)


def _draws(seed: int, epoch: int, count: int, stream: int = 0) -> NDArray[np.uint64]:
    """Random integers of 64 bits; the streams of an epoch are far apart."""
    generator = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=stream << 128)
    return generator.random_raw(count)


def _order(seed: int, epoch: int, count: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """The order of an epoch: a permutation that is looked up, or computed where it would be too large to hold."""
    if count > MAX_DRAWN:
        keys = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=2 << 128).random_raw(_ROUNDS)
        return partial(permuted, count=count, keys=keys)
    order_R = np.argsort(_draws(seed, epoch, count), kind="stable")
    return order_R.__getitem__


def permuted(places: NDArray[np.int64], count: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A permutation of 0 .. count - 1 at some places, computed without the rest of it.

    A Feistel network over the next power of four, again for what falls outside (Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002): each round is one to one, so all of it is.

    Args:
        places: Of which the values are wanted.
        count: The length.
        keys: A random number for each round.

    Example:
        >>> order = permuted(np.arange(10), 10, np.random.Philox(0).random_raw(6))
        >>> sorted(order.tolist()) == list(range(10)), order.tolist() == list(range(10))
        (True, False)
    """
    half = np.uint64(max(1, (int(count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    values = places.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        values[outside] = left << half | right
        outside = values >= count
    return values.astype(np.int64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014): every bit depends on every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _count_windows(sequences: Sequences, max_seq_len: int, windows: bool) -> NDArray[np.int64]:
    """The number of windows of each sequence: as few as hold all its targets, or one."""
    counts_U = -(-np.maximum(sequences.lengths - 1, 0) // max_seq_len)
    return counts_U if windows else np.minimum(counts_U, 1)


def _gather(
    items_N: NDArray[np.int32], starts: NDArray[Any], ends: NDArray[Any], width: int, padding: int, num_rows: int
) -> NDArray[np.int32]:
    """Slices of the flat items as rows, padded on the right, and rows of padding up to num_rows."""
    positions = starts[:, None] + np.arange(width)
    inside = positions < ends[:, None]
    rows = np.full((num_rows, width), padding, np.int32)
    rows[: len(starts)][inside] = items_N[positions[inside]]
    return rows
