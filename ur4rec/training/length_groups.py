"""Rows of about one length go through the model together, so that little of what it computes is padding.

Rows are padded on the right and attention is causal: the states of real positions are those of the whole batch, up to
rounding. So a batch stays what it is, and only the modules are run group by group; see `StepInputs.groups`. The shapes
of the groups are chosen once for the training data, and every batch but a rare one has them, as a backend that
compiles needs it.

Shapes: B rows of a batch, L positions of a row, R rows of a group, N positions with a target.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CPU_COST, ACCELERATOR_COST = 1 << 8, 1 << 16
"""What one more group costs, as the number of positions that are computed in that time: on an accelerator a group's
kernels have to be launched, which takes longer than to compute small ones."""
MOST = 4
"""The number of groups at most: a compiler makes a program of each."""
SPREAD = 4
"""Standard deviations of a draw from all rows by which a batch may have more long rows than the mean."""
LEAST_SAVING = 0.2
"""The share of the cost that groups have to save."""


class Divided(NamedTuple):
    """A batch, divided."""

    rows: tuple[NDArray[np.int64], ...]
    """The rows of each group, (R,)."""
    starts_B: NDArray[np.int64]
    """Where each row begins among the positions of all groups, one group after the other."""
    length: int
    """The positions of a row of the batch."""

    def places(self, positions_N: NDArray[np.integer]) -> NDArray[np.int64]:
        """Positions of the batch, row · L + position, as places among those of all groups."""
        places_N: NDArray[np.int64] = self.starts_B[positions_N // self.length] + positions_N % self.length
        return places_N


@dataclass(frozen=True)
class LengthGroups:
    """The shapes of the groups that batches of one shape are divided into: together they have as many rows.

    The longest rows are in the first group. A row is in a wider group than it needs where the narrower ones are full.

    Example:
        >>> groups = LengthGroups(((1, 4), (2, 2)))
        >>> items_BL = np.array([[1, 9, 9, 9], [1, 2, 3, 9], [4, 5, 9, 9]])
        >>> divided = groups.divide(items_BL, items_BL, 9)
        >>> [rows.tolist() for rows in divided.rows], [cut.tolist() for cut in groups.cut(items_BL, divided)]
        ([[1], [2, 0]], [[[1, 2, 3, 9]], [[4, 5], [1, 9]]])
        >>> divided.places(np.array([0, 4, 6, 8])).tolist()
        [6, 0, 2, 4]
        >>> str(groups)
        '1 × 4 and 2 × 2'
    """

    shapes: tuple[tuple[int, int], ...]
    """Of each group the number of rows, and of positions; the widest, which is as wide as a batch, first."""

    @property
    def num_rows(self) -> int:
        """The rows of a batch."""
        return sum(num_rows for num_rows, _ in self.shapes)

    @property
    def width(self) -> int:
        """The positions of a row of a batch."""
        return self.shapes[0][1]

    @property
    def num_positions(self) -> int:
        """The positions that are computed of a batch."""
        return sum(num_rows * width for num_rows, width in self.shapes)

    def divide(self, items_BL: NDArray[np.integer], targets_BL: NDArray[np.integer], padding: int) -> Divided | None:
        """Which rows each group has; None for a batch of another shape, or with too many long rows.

        Args:
            items_BL: Histories, right-padded.
            targets_BL: Their targets.
            padding: The padding index.
        """
        num_rows, length = items_BL.shape
        if (num_rows, length) != (self.num_rows, self.width):
            return None
        is_used_BL = (items_BL != padding) | (targets_BL != padding)
        lengths_B = np.where(is_used_BL.any(1), length - is_used_BL[:, ::-1].argmax(1), 0)
        order_B = np.argsort(-lengths_B, kind="stable")
        sizes, widths = np.array(self.shapes).T
        if (lengths_B[order_B] > np.repeat(widths, sizes)).any():
            return None
        starts_B = np.empty(num_rows, np.int64)
        starts_B[order_B] = np.append(0, np.repeat(widths, sizes).cumsum()[:-1])
        return Divided(tuple(np.split(order_B, sizes.cumsum()[:-1])), starts_B, length)

    def cut(self, items_BL: NDArray[Any], divided: Divided) -> list[NDArray[Any]]:
        """The items of each group, without the positions that it leaves out."""
        return [items_BL[rows, :width] for rows, (_, width) in zip(divided.rows, self.shapes, strict=True)]

    def __str__(self) -> str:
        shapes = [f"{num_rows} × {width}" for num_rows, width in self.shapes]
        return f"{', '.join(shapes[:-1])} and {shapes[-1]}"


def find_groups(loader: Iterable[Any], *, is_accelerator: bool = False) -> LengthGroups | None:
    """The groups of the batches of a loader that knows the lengths of its rows, as `TrainBatches` does.

    Returns:
        None if the lengths are not known, or if groups would save less than `LEAST_SAVING`.
    """
    counts_L, batch_size = (getattr(loader, name, None) for name in ("length_counts", "batch_size"))
    if counts_L is None or batch_size is None:
        return None
    return best_groups(counts_L, batch_size, ACCELERATOR_COST if is_accelerator else CPU_COST)


def best_groups(counts_L: NDArray[np.integer], batch_size: int, cost: int) -> LengthGroups | None:
    """The groups with which the fewest positions are computed, counting what each group costs beside its own.

    Args:
        counts_L: How many rows have each length, from 0 to the width of a batch.
        batch_size: The rows of a batch.
        cost: Of a group, in positions.

    Returns:
        None if they would save less than `LEAST_SAVING`.

    Example:
        >>> print(best_groups(np.array([0, 0, 50, 40, 0, 0, 0, 0, 10]), 100, cost=40))
        24 × 8 and 76 × 3
        >>> best_groups(np.array([0, 0, 0, 0, 0, 0, 0, 10, 90]), 100, cost=20)
    """
    width, room_L = len(counts_L) - 1, _room(counts_L, batch_size)
    # Of the groups from each width downwards: what they cost, and how wide the second of them is; one more each round.
    costs_L, seconds_L = np.arange(width + 1) * (batch_size - room_L) + cost, np.zeros(width + 1, np.int64)
    rounds = [seconds_L]
    for _ in range(MOST - 1):
        own_LL = np.arange(width + 1)[:, None] * (room_L[None] - room_L[:, None]) + costs_L[None] + cost
        own_LL = np.where(np.tri(width + 1, k=-1, dtype=bool) & (np.arange(width + 1) > 0), own_LL, np.inf)
        seconds_L = own_LL.argmin(1)
        is_less_L = own_LL.min(1) < costs_L
        costs_L = np.where(is_less_L, own_LL.min(1), costs_L)
        rounds.append(np.where(is_less_L, seconds_L, rounds[-1]))
    if costs_L[width] > (1 - LEAST_SAVING) * (width * batch_size + cost):
        return None
    return LengthGroups(tuple(_shapes(rounds, room_L, batch_size)))


def _room(counts_L: NDArray[np.integer], batch_size: int) -> NDArray[np.int64]:
    """The rows of a batch for which groups wider than each width have room, (L + 1,).

    A batch is a draw from all rows: so many of them are longer as the mean and `SPREAD` standard deviations, with
    the first term of Cornish and Fisher's expansion (1938) for the skewness of a binomial draw.
    """
    longer_L = (counts_L.sum() - counts_L.cumsum()) / counts_L.sum()
    deviation_L = np.sqrt(batch_size * longer_L * (1 - longer_L))
    skewed_L = (SPREAD**2 - 1) / 6 * (1 - 2 * longer_L)
    room_L = np.ceil(batch_size * longer_L + SPREAD * deviation_L + skewed_L)
    none_longer = longer_L == 0
    return np.where(none_longer, 0, np.clip(room_L, 0, batch_size)).astype(np.int64)


def _shapes(rounds: list[NDArray[np.int64]], room_L: NDArray[np.int64], batch_size: int) -> list[tuple[int, int]]:
    """The shapes of the best groups, the widest first."""
    shapes, width = [], len(room_L) - 1
    for seconds_L in reversed(rounds):
        second = int(seconds_L[width])
        shapes.append((int((room_L[second] if second else batch_size) - room_L[width]), width))
        if not second:
            break
        width = second
    return shapes
