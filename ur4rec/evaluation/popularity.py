"""Popularity: the baseline that recommends the most used items to every user.

Shapes: I items of the catalogue, T targets.
"""

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.batches import EvaluationBatches
from ur4rec.data.interactions import Sequences
from ur4rec.data.splits import Targets
from ur4rec.evaluation.metrics import rank_batches


def popularity_scores(train: Sequences, num_items: int) -> NDArray[np.float64]:
    """How often each item was used in training: the score of every user for it.

    Example:
        >>> popularity_scores(Sequences.from_lists([[0, 1], [1]]), 3).tolist()
        [1.0, 2.0, 0.0]
    """
    return np.bincount(train.items_N, minlength=num_items).astype(np.float64)


def popularity_ranks(train: Sequences, targets: Targets, num_items: int, batch_size: int = 512) -> NDArray[np.int64]:
    """The rank that popularity gives each target; seen items are filtered, ties count against it."""
    scores_I = popularity_scores(train, num_items)
    batches = EvaluationBatches(targets, num_items, max_seq_len=1, batch_size=batch_size)
    return rank_batches(lambda batch: np.broadcast_to(scores_I, (len(batch.targets_B), num_items)), batches)
