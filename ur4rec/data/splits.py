"""Splits: which interactions are for training, for validation and for testing.

Shapes: T targets.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.interactions import Interactions, Sequences, hash_arrays, offsets_from_lengths
from ur4rec.errors import ConfigurationError, DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """What to predict: one item per row, from the history before it."""

    users_T: NDArray[np.int32]
    """The user of each target."""
    items_T: NDArray[np.int32]
    """The item to be predicted."""
    histories: Sequences
    """The items before the target in order of time: what the model is fed. Never empty."""
    seen: Sequences
    """The distinct items to filter from the ranking, ascending; never holds the target itself."""

    def __len__(self) -> int:
        return len(self.items_T)

    def take(self, rows_T: NDArray[Any]) -> "Targets":
        """The targets of these rows, in that order."""
        return Targets(
            users_T=self.users_T[rows_T],
            items_T=self.items_T[rows_T],
            histories=self.histories.take(rows_T),
            seen=self.seen.take(rows_T),
        )

    def sample(self, count: int) -> "Targets":
        """This number of targets, in their order, the same whenever it is asked for; all if there are no more."""
        return self.take(np.sort(np.random.default_rng(0).permutation(len(self))[:count]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Training sequences (one per user), validation targets and test targets."""

    name: str
    """The name of the method."""
    num_items: int
    """The number of items of the catalogue."""
    train: Sequences
    """Each user's training prefix; empty where a user has none."""
    validation: Targets
    """Targets to tune on."""
    test: Targets
    """Targets to report."""

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything in the split."""
        arrays: list[NDArray[Any]] = [self.train.items_N, self.train.offsets_U]
        for targets in (self.validation, self.test):
            arrays += [targets.users_T, targets.items_T, targets.histories.items_N, targets.histories.offsets_U]
            arrays += [targets.seen.items_N, targets.seen.offsets_U]
        return hash_arrays(f"split {self.name} {self.num_items}", *arrays)


def leave_one_out(interactions: Interactions) -> Split:
    """The last item of each user is the test target, the one before it the validation target.

    The validation item is part of the history that is fed at test time. Users with fewer than 3 interactions cannot be
    split: all they have is training data, and they are neither validated nor tested.

    Raises:
        DataError: No user has 3 interactions.

    Example:
        >>> from ur4rec.data import synthetic
        >>> split = leave_one_out(synthetic(num_users=20, num_items=50))
        >>> len(split.train), len(split.validation), len(split.test)
        (20, 20, 20)
    """
    sequences, num_items = interactions.sequences, interactions.num_items
    users = np.flatnonzero(sequences.lengths >= 3)
    if not len(users):
        raise DataError(f"{interactions.name}: leave-one-out needs a user with at least 3 interactions, found none")
    train_lengths = sequences.lengths.copy()
    train_lengths[users] -= 2
    return Split(
        name="leave-one-out",
        num_items=num_items,
        train=sequences.heads(train_lengths),
        validation=_targets(sequences, users, sequences.lengths[users] - 2, num_items),
        test=_targets(sequences, users, sequences.lengths[users] - 1, num_items),
    )


def global_temporal(interactions: Interactions, q: float = 0.9) -> Split:
    """Cut the whole dataset at points in time, the same for every user, so that nothing from the future is trained on.

    The test period starts at the q-quantile of all timestamps; the validation period at the q-quantile of what is
    before it. Within a period each user's last interaction is the target, fed with everything of that user before it
    (of the same period too). Users without any earlier interaction give no target. Interactions at the very second of a
    cut are after it. Targets may be items that training never saw: they count, as they would in use.

    Raises:
        ConfigurationError: q is not inside (0, 1).
        DataError: A period has no target.

    Example:
        >>> from ur4rec.data import synthetic
        >>> split = global_temporal(synthetic(num_users=50, num_items=60), q=0.8)
        >>> split.name, len(split.train)
        ('global-temporal-0.8', 50)
    """
    if not 0 < q < 1:
        raise ConfigurationError(f"q must be inside (0, 1), got {q!r}")
    times, sequences, num_items = interactions.timestamps_N, interactions.sequences, interactions.num_items
    test_start = int(np.searchsorted(times, times[int(q * len(times))], side="left"))
    validation_start = 0
    if test_start:
        validation_start = int(np.searchsorted(times, times[int(q * test_start)], side="left"))
    before_validation = np.bincount(interactions.users_N[:validation_start], minlength=interactions.num_users)
    before_test = np.bincount(interactions.users_N[:test_start], minlength=interactions.num_users)
    return Split(
        name=f"global-temporal-{q:g}",
        num_items=num_items,
        train=sequences.heads(before_validation),
        validation=_last_in_period(sequences, before_validation, before_test, num_items, "validation"),
        test=_last_in_period(sequences, before_test, sequences.lengths, num_items, "test"),
    )


def _last_in_period(
    sequences: Sequences, starts_U: NDArray[Any], ends_U: NDArray[Any], num_items: int, period: str
) -> Targets:
    users = np.flatnonzero((ends_U > starts_U) & (ends_U >= 2))
    if not len(users):
        raise DataError(f"the {period} period holds no target: choose another q, or leave-one-out")
    return _targets(sequences, users, ends_U[users] - 1, num_items)


def _targets(sequences: Sequences, users_T: NDArray[Any], positions_T: NDArray[Any], num_items: int) -> Targets:
    """The target of each user is at the given position of the sequence; what is before it is history."""
    items_T = sequences.items_N[sequences.offsets_U[users_T] + positions_T]
    histories = sequences.take(users_T).heads(positions_T)
    keys = np.sort(histories.rows * num_items + histories.items_N)
    keys = keys[np.diff(keys, prepend=-1) > 0]
    rows, items = keys // num_items, (keys % num_items).astype(np.int32)
    other = items != items_T[rows]
    lengths = np.bincount(rows[other], minlength=len(users_T)).astype(np.int64)
    seen = Sequences(items[other], offsets_from_lengths(lengths))
    return Targets(users_T=users_T.astype(np.int32), items_T=items_T, histories=histories, seen=seen)
