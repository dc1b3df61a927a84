"""Data that came split into training, validation and testing, as rows or as lists of items with their targets.

Shapes: N rows, in the end one for each interaction.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ur4rec.data.interactions import CONTEXT, TRAIN, numbered


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The rows of a file, or of several: who used what."""

    users_N: pa.Array
    """The user of each row."""
    items_N: pa.Array
    """The item of each row."""
    times_N: NDArray[Any]
    """The time of each row."""
    lists_N: Sequence[tuple[str, ...]] | None = None
    """What the user had before, its last items; None where each interaction has a row."""
    parts_N: NDArray[np.int8] | None = None
    """The part of each row."""


def arrange(files: Sequence[Rows]) -> tuple[Rows, list[str]]:
    """One row for each interaction, those of a user in order, with their parts; and what there is to say.

    Args:
        files: The rows of training, of validation and of testing: all with lists, or none.
    """
    if all(each.lists_N is None for each in files):
        return _arrange_rows(files), []
    return _rebuild(files)


def _arrange_rows(files: Sequence[Rows]) -> Rows:
    """In order of part and time. Of users that earlier files never saw all but the last row of a file are context."""
    users_N = pa.concat_arrays([each.users_N for each in files])
    times_N = np.concatenate([each.times_N for each in files])
    files_N = np.repeat(np.arange(len(files), dtype=np.int8), [len(each.users_N) for each in files])
    order_N = np.lexsort((times_N, files_N))
    users_N, parts_N = users_N.take(pa.array(order_N)), files_N[order_N]
    codes_N, _ = numbered(users_N)
    first_file_U = np.full(codes_N.max() + 1, len(files))
    np.minimum.at(first_file_U, codes_N, parts_N)
    last_row_U = np.zeros(len(first_file_U), np.int64)
    begins_N = (parts_N == first_file_U[codes_N]) & (parts_N != TRAIN)
    rows = np.flatnonzero(begins_N)
    last_row_U[codes_N[rows]] = rows  # rows ascend: the last one stays
    context_N = begins_N & (np.arange(len(codes_N)) != last_row_U[codes_N])
    return Rows(
        users_N=users_N,
        items_N=pa.concat_arrays([each.items_N for each in files]).take(pa.array(order_N)),
        times_N=times_N[order_N],
        parts_N=np.where(context_N, CONTEXT, parts_N).astype(np.int8),
    )


@dataclass
class _Sequence:
    """What is known of a user: items and their parts."""

    items: list[str] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)

    def add(self, items: Sequence[str], part: int) -> None:
        """Append items of one part."""
        self.items += items
        self.parts += [part] * len(items)


def _rebuild(files: Sequence[Rows]) -> tuple[Rows, list[str]]:
    """Sequences from rows of a list and a target: a row whose list is the end of a sequence continues it.

    Lists may hold the last items alone, as many as the longest list of the user. A row that continues no sequence of
    its user begins one: its list is trained on in the training file, and context in the others.
    """
    longest: dict[str, int] = defaultdict(int)
    for rows in files:
        for user, before in zip(rows.users_N.to_pylist(), rows.lists_N or (), strict=True):
            longest[user] = max(longest[user], len(before))
    sequences: dict[str, list[_Sequence]] = {}
    for part, rows in enumerate(files):
        of_user: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
        assert rows.lists_N is not None
        for user, before, item in zip(rows.users_N.to_pylist(), rows.lists_N, rows.items_N.to_pylist(), strict=True):
            of_user[user].append((before, item))
        for user, pairs in of_user.items():
            _continue(sequences.setdefault(user, []), pairs, part, longest[user])
    return _number(sequences)


def _continue(known: list[_Sequence], pairs: list[tuple[tuple[str, ...], str]], part: int, longest: int) -> None:
    """Add the rows of a user in one file to the sequences, whatever their order."""
    targets: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for before, item in pairs:
        targets[before].append(item)
    for sequence in known:
        _follow(sequence, targets, part, longest)
    made = {(*before, item)[-longest:] if longest else () for before, item in pairs}
    for before in sorted(targets, key=lambda before: (before in made, len(before))):
        while targets[before]:
            last = known[-1] if known else None
            if last is not None and part and last.items and before[: len(last.items)] == tuple(last.items):
                last.add(before[len(last.items) :], CONTEXT)
                sequence = last
            else:
                sequence = _Sequence()
                sequence.add(before, CONTEXT if part else TRAIN)
                known.append(sequence)
            sequence.add([targets[before].pop(0)], part)
            _follow(sequence, targets, part, longest)


def _follow(sequence: _Sequence, targets: dict[tuple[str, ...], list[str]], part: int, longest: int) -> None:
    """Append the targets whose lists are the end of the sequence, one after the other."""
    while left := targets.get(tuple(sequence.items[-longest:]) if longest else ()):
        sequence.add([left.pop(0)], part)


def _number(sequences: dict[str, list[_Sequence]]) -> tuple[Rows, list[str]]:
    """The rows of all sequences; the second of a user is a user of its own, ``user#2``."""
    users: list[str] = []
    items: list[str] = []
    parts: list[int] = []
    further = 0
    for user, known in sequences.items():
        for number, sequence in enumerate(known, 1):
            name = user if number == 1 else f"{user}#{number}"
            while number > 1 and name in sequences:
                name += "#"
            further += number > 1
            users += [name] * len(sequence.items)
            items += sequence.items
            parts += sequence.parts
    said = [f"{further:,} lists continue no other of their user: they are users of their own, such as {user}#2"]
    rows = Rows(
        users_N=pa.array(users, pa.large_string()),
        items_N=pa.array(items, pa.large_string()),
        times_N=np.arange(len(users)),
        parts_N=np.array(parts, np.int8),
    )
    return rows, said if further else []
