"""Splits: which interactions are for training, for validation and for testing, and whether what was seen counts.

Shapes: T targets.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alternator.checks import check_choice
from ur4rec.data.interactions import (
    TEST,
    TRAIN,
    VALIDATION,
    ArrayHash,
    Interactions,
    Sequences,
    offsets_from_lengths,
)
from ur4rec.errors import ConfigurationError, DataError
from ur4rec.files import hash_bytes
from ur4rec.options import AUTO_SHARE, REPEATS, SPLITS

_TEMPORAL = "global-temporal-"


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """What to predict: one item per row, from the history before it. A user may have several, one after the other."""

    users_T: NDArray[np.int32]
    """The user of each target, ascending."""
    items_T: NDArray[np.int32]
    """The item to be predicted."""
    histories: Sequences
    """The items before the target in order of time: what the model is fed. Never empty."""
    seen: Sequences
    """The items to filter from the ranking, in any order and perhaps repeated; none where repeats count."""
    num_excluded: int = 0
    """Targets that were left out since their users had the item before."""
    num_unfed: int = 0
    """Targets that were left out for want of a history."""
    known_repeated_T: NDArray[np.bool_] | None = None
    """What `is_repeated` is, where that is known already."""

    def __len__(self) -> int:
        return len(self.items_T)

    @cached_property
    def is_repeated(self) -> NDArray[np.bool_]:
        """Whether the user had the item before, (T,): it is in the history."""
        if self.known_repeated_T is not None:
            return self.known_repeated_T
        repeated_T = np.zeros(len(self), bool)
        for first, part in self.histories.chunks():
            targets_t = self.items_T[first : first + len(part)]
            equal = part.flat == np.repeat(targets_t, part.lengths)
            repeated_T[first + part.rows[equal]] = True
        return repeated_T

    def take(self, rows_R: NDArray[Any]) -> "Targets":
        """The targets of some rows, in that order."""
        return replace(
            self,
            users_T=self.users_T[rows_R],
            items_T=self.items_T[rows_R],
            histories=self.histories.take(rows_R),
            seen=self.seen.take(rows_R),
            known_repeated_T=None if self.known_repeated_T is None else self.known_repeated_T[rows_R],
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
    repeats: str
    """Whether items that a user had before are ranked and recommended: ``allow`` or ``exclude``."""
    known_hash: str | None = None
    """What `hash` is, where that is known already."""

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything in the split."""
        if self.known_hash is not None:
            return self.known_hash
        digest = ArrayHash(f"split {self.name} {self.num_items}")
        digest.add_sequences(self.train)
        for targets in (self.validation, self.test):
            digest.add(targets.users_T)
            digest.add(targets.items_T)
            digest.add_sequences(targets.histories)
            _add_distinct(digest, targets.seen, self.num_items)
        return digest.hexdigest()

    @property
    def usual_repeats(self) -> str:
        """What ``auto`` decides: ``allow`` or ``exclude``."""
        return "allow" if self.repeated_share >= AUTO_SHARE else "exclude"

    @property
    def repeated_share(self) -> float:
        """The share of repeated targets, those that were left out among them."""
        both = (self.validation, self.test)
        num_repeated = sum(int(targets.is_repeated.sum()) + targets.num_excluded for targets in both)
        return num_repeated / sum(len(targets) + targets.num_excluded for targets in both)


def _add_distinct(digest: ArrayHash, seen: Sequences, num_items: int) -> None:
    """Add the distinct items of each row, ascending, in two passes: their number comes first."""
    counts = [part.distinct(num_items).lengths for _, part in seen.chunks()]
    lengths = np.concatenate(counts) if counts else np.zeros(0, np.int64)
    digest.add_parts(int(lengths.sum()), (part.distinct(num_items).items_N for _, part in seen.chunks()))
    digest.add(offsets_from_lengths(lengths))


def check_trainable(split: Split, name: str) -> None:
    """Refuse data on which no model can be trained: what is learned is which item follows another one.

    Args:
        split: The split.
        name: The dataset, for the message.

    Raises:
        DataError: There is one item, or no user has two training interactions.
    """
    if split.num_items < 2:
        raise DataError(f"{name}: must have at least 2 items, got {split.num_items}", "look which column is the item's")
    if split.train.lengths.max(initial=0) < 2:
        raise DataError(
            f"{name}: some user must have at least 2 training interactions besides what the split {split.name} holds "
            f"out, of {len(split.train)} users none has",
            "look which column is the user's, or give longer histories",
        )


def make_split(interactions: Interactions, method: str = "auto", repeats: str = "auto") -> Split:
    """The split of a run: one protocol for its evaluation and its recommendations.

    Args:
        interactions: The data.
        method: ``leave-one-out``, ``temporal`` (`global_temporal`) or ``given`` (`as_given`); ``auto`` is ``given``
            where the data came split, else ``leave-one-out``.
        repeats: ``allow`` filters nothing: items that a user had before are ranked, and count as targets. ``exclude``
            filters them from rankings, and leaves out the targets that are not new to their user. ``auto`` is ``allow``
            where at least a tenth (`AUTO_SHARE`) of validation and test targets are in their histories.

    Raises:
        UnknownNameError: There is no such method, or no such protocol.
        DataError: The data has no targets for it, or came split and is to be split otherwise.

    Example:
        >>> from ur4rec.data import synthetic
        >>> split = make_split(synthetic(num_users=20, num_items=50))
        >>> split.name, split.repeats, split.repeated_share
        ('leave-one-out', 'exclude', 0.0)
    """
    check_choice("split", method, SPLITS)
    if interactions.prepared is not None:
        return interactions.prepared.split(interactions, method, repeats)
    if method == "auto":
        method = "leave-one-out" if interactions.parts_N is None else "given"
    return _METHODS[method](interactions, repeats=repeats)


def leave_one_out(interactions: Interactions, *, repeats: str = "auto") -> Split:
    """The last item of each user is the test target, the one before it the validation target.

    The validation item is part of the history that is fed at test time. Users with fewer than 3 interactions cannot be
    split: all they have is training data, and they are neither validated nor tested.

    Args:
        interactions: The data.
        repeats: As for `make_split`.

    Raises:
        DataError: No user has 3 interactions, or the data came split.

    Example:
        >>> from ur4rec.data import synthetic
        >>> split = leave_one_out(synthetic(num_users=20, num_items=50))
        >>> len(split.train), len(split.validation), len(split.test)
        (20, 20, 20)
    """
    _refuse_given(interactions, "leave-one-out")
    sequences, lengths = interactions.sequences, interactions.sequences.lengths
    users = np.flatnonzero(lengths >= 3)
    if not len(users):
        raise DataError(f"{interactions.name}: leave-one-out needs a user with at least 3 interactions, found none")
    train_lengths = lengths.copy()
    train_lengths[users] -= 2
    train = sequences.heads(train_lengths)
    validation, test = (targets_at(sequences, users, lengths[users] - back) for back in (2, 1))
    return settle("leave-one-out", interactions, train, validation, test, repeats)


def global_temporal(interactions: Interactions, q: float = 0.9, *, repeats: str = "auto") -> Split:
    """Cut the whole dataset at points in time, the same for every user, so that nothing from the future is trained on.

    The test period starts at the q-quantile of all timestamps; the validation period at the q-quantile of what is
    before it. Within a period each user's last interaction is the target, fed with everything of that user before it
    (of the same period too). Users without any earlier interaction give no target. Interactions at the very second of a
    cut are after it. Targets may be items that training never saw: they count, as they would in use.

    Args:
        interactions: The data.
        q: Where the periods are cut.
        repeats: As for `make_split`.

    Raises:
        ConfigurationError: q is not inside (0, 1).
        DataError: A period has no target, or the data came split.

    Example:
        >>> from ur4rec.data import synthetic
        >>> split = global_temporal(synthetic(num_users=50, num_items=60), q=0.8)
        >>> split.name, len(split.train)
        ('global-temporal-0.8', 50)
    """
    if not 0 < q < 1:
        raise ConfigurationError(f"q must be inside (0, 1), got {q!r}")
    _refuse_given(interactions, "temporal")
    before_validation, before_test = (_count_before(interactions, start) for start in _period_starts(interactions, q))
    return cut_at(interactions, before_validation, before_test, q, repeats)


def _period_starts(interactions: Interactions, q: float) -> tuple[int, int]:
    """The first interaction of the validation and of the test period, in order of time."""
    times = interactions.timestamps_N
    test_start = int(np.searchsorted(times, times[int(q * len(times))], side="left"))
    validation_start = 0
    if test_start:
        validation_start = int(np.searchsorted(times, times[int(q * test_start)], side="left"))
    return validation_start, test_start


def _count_before(interactions: Interactions, start: int) -> NDArray[np.int64]:
    """How many interactions each user has before one, in order of time, (U,)."""
    return np.bincount(interactions.users_N[:start], minlength=interactions.num_users)


def cut_at(
    interactions: Interactions,
    before_validation_U: NDArray[np.int64],
    before_test_U: NDArray[np.int64],
    q: float,
    repeats: str,
) -> Split:
    """The split of `global_temporal`, given how many interactions each user has before either period."""
    sequences = interactions.sequences
    validation = _last_in_period(sequences, before_validation_U, before_test_U, "validation")
    test = _last_in_period(sequences, before_test_U, sequences.lengths, "test")
    train = sequences.heads(before_validation_U)
    return settle(f"{_TEMPORAL}{q:g}", interactions, train, validation, test, repeats)


def as_given(interactions: Interactions, *, repeats: str = "auto") -> Split:
    """The split that the data came with: a target for each row of the validation and the test part.

    The history of a target is all that comes before it in its user's rows, of whatever part; a target that is its
    user's first row is left out, and counted. Training sequences are the rows of the training part.

    Args:
        interactions: The data, with ``parts_N``.
        repeats: As for `make_split`.

    Raises:
        DataError: The data did not come split, or a part has no target with a history.
    """
    if interactions.parts_N is None:
        raise DataError(
            f"{interactions.name}: the split 'given' needs data that came split, into files for training, validation "
            "and test, got one without; choose leave-one-out or temporal"
        )
    parts_N, sequences = interactions.parts_by_user, interactions.sequences
    assert parts_N is not None
    train = _trained(sequences, parts_N)
    validation = _part(interactions.name, sequences, parts_N, VALIDATION, "validation")
    test = _part(interactions.name, sequences, parts_N, TEST, "test")
    return settle("given", interactions, train, validation, test, repeats)


def with_validation(interactions: Interactions, split: Split) -> Split:
    """The split whose training sequences have the validation interactions too, for a training that is only tested.

    Those are all but the test item (leave-one-out), all before the test period (temporal), or the rows of the training
    and the validation part (given). Users without a validation target keep what they had; histories and test targets
    stay, of which none is trained on.

    Args:
        interactions: The data.
        split: What `make_split` made of it.

    Raises:
        DataError: The data was prepared with a temporal split, which does not keep where the test period begins.

    Example:
        >>> from ur4rec.data import synthetic
        >>> interactions = synthetic(num_users=20, num_items=50)
        >>> split = leave_one_out(interactions)
        >>> whole = with_validation(interactions, split)
        >>> int(whole.train.lengths.sum() - split.train.lengths.sum()), len(split.validation)
        (20, 20)
    """
    sequences, parts_N = interactions.sequences, interactions.parts_by_user
    if split.name == "leave-one-out":
        train = sequences.heads(sequences.lengths - (sequences.lengths >= 3))
    elif split.name == "given":
        assert parts_N is not None
        train = _trained(sequences, parts_N, VALIDATION)
    elif interactions.prepared is not None:
        raise DataError(
            f"{interactions.name}: to train on validation interactions too, data must not be prepared with a temporal "
            "split, got one; leave out --refit, prepare it with leave-one-out, or give the file itself"
        )
    else:
        _, test_start = _period_starts(interactions, float(split.name.removeprefix(_TEMPORAL)))
        train = sequences.heads(_count_before(interactions, test_start))
    return replace(split, train=train, known_hash=hash_bytes(f"{split.hash} with validation".encode()))


def _trained(sequences: Sequences, parts_N: NDArray[np.int8], last: int = TRAIN) -> Sequences:
    """The rows of each user of the parts up to the last one to train on: the first rows, unless context is among them.

    Args:
        sequences: The rows.
        parts_N: The part of each.
        last: `TRAIN`, or `VALIDATION` after it.
    """
    lengths = [
        np.bincount(part.rows[parts_N[part.starts_U[0] : part.ends_U[-1]] <= last], minlength=len(part))
        for _, part in sequences.chunks()
    ]
    lengths_U = np.concatenate(lengths)
    ends_U = sequences.starts_U + lengths_U
    ranges = zip(sequences.starts_U[lengths_U > 0], ends_U[lengths_U > 0], strict=True)
    if all((parts_N[start:end] <= last).all() for start, end in ranges):
        return sequences.heads(lengths_U)
    return Sequences(sequences.items_N[parts_N <= last], offsets_from_lengths(lengths_U))


_METHODS = {"leave-one-out": leave_one_out, "temporal": global_temporal, "given": as_given}


def _refuse_given(interactions: Interactions, method: str) -> None:
    if interactions.parts_N is not None:
        raise DataError(
            f"{interactions.name}: data that came split must keep its split, got {method}; choose given, or pass all "
            "of it as one file"
        )


def _last_in_period(sequences: Sequences, starts_U: NDArray[Any], ends_U: NDArray[Any], period: str) -> Targets:
    users = np.flatnonzero((ends_U > starts_U) & (ends_U >= 2))
    if not len(users):
        raise DataError(f"the {period} period holds no target: choose another q, or leave-one-out")
    return targets_at(sequences, users, ends_U[users] - 1)


def _part(name: str, sequences: Sequences, parts_N: NDArray[np.int8], number: int, part: str) -> Targets:
    """A target for each row of a part that has one before it."""
    users, positions, num_chosen = [], [], 0
    for first, each in sequences.chunks():
        chosen = np.flatnonzero(parts_N[each.starts_U[0] : each.ends_U[-1]] == number)
        places = each.positions[chosen]
        users.append(first + each.rows[chosen][places > 0])
        positions.append(places[places > 0])
        num_chosen += len(chosen)
    users_T, positions_T = np.concatenate(users), np.concatenate(positions)
    if not len(users_T):
        raise DataError(
            f"{name}: the split 'given' needs a {part} row with an earlier row of its user, found none among "
            f"{num_chosen} rows; add some, or pass all of it as one file"
        )
    return replace(targets_at(sequences, users_T, positions_T), num_unfed=num_chosen - len(users_T))


def targets_at(sequences: Sequences, users_T: NDArray[Any], positions_T: NDArray[Any]) -> Targets:
    """A target of each of these users, at the given position of the sequence; what is before it is history."""
    items_T = sequences.items_N[sequences.starts_U[users_T] + positions_T]
    histories = sequences.take(users_T, positions_T)
    seen = Sequences(np.zeros(0, np.int32), np.zeros(len(users_T) + 1, np.int64))
    return Targets(users_T=users_T.astype(np.int32), items_T=items_T, histories=histories, seen=seen)


def settle(
    name: str, interactions: Interactions, train: Sequences, validation: Targets, test: Targets, repeats: str
) -> Split:
    """The split of targets that nothing is filtered for yet, with what the protocol says of repeats.

    Args:
        name: Of the method.
        interactions: What is split.
        train: The training prefix of each user.
        validation: All targets to tune on.
        test: All targets to report.
        repeats: As for `make_split`.

    Raises:
        DataError: Repeats are excluded, and no target is left.
    """
    check_choice("repeats", repeats, REPEATS)
    num_items = interactions.num_items
    split = Split(name=name, num_items=num_items, train=train, validation=validation, test=test, repeats="allow")
    if (split.usual_repeats if repeats == "auto" else repeats) == "allow":
        return split
    return replace(
        split,
        validation=_only_new(validation, f"{interactions.name}: validation"),
        test=_only_new(test, f"{interactions.name}: test"),
        repeats="exclude",
    )


def _only_new(targets: Targets, what: str) -> Targets:
    """The targets that are new to their users, and what their users had before as seen."""
    new = targets.take(np.flatnonzero(~targets.is_repeated)) if targets.is_repeated.any() else targets
    if not len(new):
        raise DataError(
            f"{what} needs a target that is new to its user where repeats are excluded, found none among "
            f"{len(targets)}; allow repeats (--repeats allow)"
        )
    return replace(new, seen=new.histories, num_excluded=len(targets) - len(new))
