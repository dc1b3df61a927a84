"""Popularity: the baseline that recommends the most used items to every user, and metrics by popularity of the target.

Shapes: I items of the catalogue, T targets.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.interactions import Sequences
from ur4rec.data.splits import Targets
from ur4rec.evaluation.intervals import Interval, metric_intervals

COLD = "cold"
NUM_DECILES = 10


def popularity_scores(train: Sequences, num_items: int) -> NDArray[np.float64]:
    """How often each item was used in training: the score of every user for it.

    Example:
        >>> popularity_scores(Sequences.from_lists([[0, 1], [1]]), 3).tolist()
        [1.0, 2.0, 0.0]
    """
    return train.count_items(num_items).astype(np.float64)


def popularity_ranks(train: Sequences, targets: Targets, num_items: int) -> NDArray[np.int64]:
    """The rank that popularity gives each target; seen items are filtered, ties count against it.

    Every user has the same scores, so an item's place among all is looked up, and what the user has seen is taken off.
    """
    scores_I = popularity_scores(train, num_items)
    ranks_T = num_items - np.searchsorted(np.sort(scores_I), scores_I[targets.items_T])
    for first, part in targets.seen.chunks():
        seen = part.distinct(num_items)
        rows, items, targets_t = seen.rows, seen.items_N, targets.items_T[first : first + len(part)]
        filtered = (scores_I[items] >= scores_I[targets_t][rows]) & (items != targets_t[rows])
        ranks_T[first : first + len(part)] -= np.bincount(rows[filtered], minlength=len(part))
    return ranks_T.astype(np.int64)


class PopularityGroup(NamedTuple):
    """Targets of about the same popularity."""

    name: str
    """``cold`` (no training interactions), or a decile: ``1`` the least popular items, ``10`` the most."""
    num_items: int
    """Items of the catalogue that are so popular, whether or not they are targets."""
    least: int
    """The fewest training interactions of such an item."""
    most: int
    """The most training interactions of such an item."""
    num_targets: int
    """Targets among them."""
    scorers: Mapping[str, Mapping[str, Interval]]
    """Hit@10 and NDCG@10 of each scorer, by name of the metric; empty where there are no targets."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an interval is its estimate, lower and upper end."""
        scorers = {
            name: {metric: list(interval) for metric, interval in metrics.items()}
            for name, metrics in self.scorers.items()
        }
        return {**self._asdict(), "scorers": scorers}


def popularity_deciles(counts_I: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """The decile of each item by its training interactions, from 1 to 10; 0 for an item without any.

    A tenth of the items that have any is less popular than decile 2, and so on. Items of equal popularity are in the
    same decile, the lowest that they reach into, so of many such items some deciles are empty.

    Example:
        >>> popularity_deciles(np.array([0, 1, 1, 1, 2, 9])).tolist()
        [0, 1, 1, 1, 7, 9]
    """
    warm = np.sort(counts_I[counts_I > 0])
    if not len(warm):
        return np.zeros(len(counts_I), np.int64)
    num_below_I = np.searchsorted(warm, counts_I, side="left")
    return np.where(counts_I > 0, 1 + NUM_DECILES * num_below_I // len(warm), 0)


def by_popularity(
    ranks: Mapping[str, NDArray[Any]], targets: Targets, counts_I: NDArray[np.integer[Any]]
) -> list[PopularityGroup]:
    """Hit@10 and NDCG@10 of scorers for cold targets and for each decile of popularity, those without items left out.

    Args:
        ranks: By scorer, the rank of each target, (T,).
        targets: The targets.
        counts_I: Training interactions of each item.

    Example:
        >>> from ur4rec.data import leave_one_out, synthetic
        >>> split = leave_one_out(synthetic(num_users=50, num_items=60))
        >>> counts_I = split.train.count_items(split.num_items)
        >>> ranks_T = popularity_ranks(split.train, split.test, split.num_items)
        >>> groups = by_popularity({"popularity": ranks_T}, split.test, counts_I)
        >>> first, last = groups[0], groups[-1]
        >>> (first.name, first.num_targets, last.name, last.num_targets)
        ('1', 2, '10', 6)
        >>> last.scorers["popularity"]["hit@10"].estimate > first.scorers["popularity"]["hit@10"].estimate
        True
    """
    deciles_I = popularity_deciles(counts_I)
    deciles_T = deciles_I[targets.items_T]
    groups = []
    for decile in range(NUM_DECILES + 1):
        counts = counts_I[deciles_I == decile]
        if not len(counts):
            continue
        chosen_T = deciles_T == decile
        scorers: dict[str, dict[str, Interval]] = {}
        if chosen_T.any():
            users_T = targets.users_T[chosen_T]
            scorers = {name: metric_intervals(ranks_T[chosen_T], users_T) for name, ranks_T in ranks.items()}
        name = str(decile) if decile else COLD
        sizes = len(counts), int(counts.min()), int(counts.max()), int(chosen_T.sum())
        groups.append(PopularityGroup(name, *sizes, scorers))
    return groups


def popularity_columns(groups: Sequence[PopularityGroup]) -> dict[str, list[Any]]:
    """The groups as a table of one row for each group and scorer."""
    columns: dict[str, list[Any]] = {}
    for group in groups:
        for scorer, metrics in group.scorers.items():
            row = {
                "decile": group.name,
                "num_items": group.num_items,
                "least": group.least,
                "most": group.most,
                "num_targets": group.num_targets,
                "scorer": scorer,
            }
            for metric, interval in metrics.items():
                row |= {metric: interval.estimate, f"{metric}_low": interval.low, f"{metric}_high": interval.high}
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    return columns
