"""Popularity: the baseline that recommends the most used items to every user.

Shapes: I items of the catalogue, T targets.
"""

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.interactions import Sequences
from ur4rec.data.splits import Targets


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
