"""Metrics of full-catalogue ranking: ranks first, then Hit@k, NDCG@k and MRR from the ranks.

Shapes: B rows of a batch, I items of the catalogue, M coordinates of seen items, T targets.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import ConfigurationError, DataError, NonFiniteError


def target_ranks(
    scores_BI: ArrayLike, targets_B: ArrayLike, seen_rows_M: ArrayLike, seen_items_M: ArrayLike
) -> NDArray[np.int64]:
    """The rank of each target among the items its user has not seen, from 1.

    rank = 1 + number of *other* unseen items that score at least as much as the target. Ties count against the model,
    so that a constant scorer gains nothing and the order of the catalogue cannot help. The target is never filtered,
    even where it is among the seen items. This is the reference that the backends' versions are tested against.

    Args:
        scores_BI: Scores; column i is item i.
        targets_B: The target of each row.
        seen_rows_M: Row of each item to be filtered; rows of B and above are ignored.
        seen_items_M: The items to be filtered.

    Returns:
        Ranks, one per row, as int64.

    Raises:
        NonFiniteError: The score of a target or of an unseen item is NaN or infinite.

    Example:
        >>> target_ranks([[0.1, 0.9, 0.5, 0.5]], [2], [0], [1]).tolist()
        [2]
    """
    scores, targets = np.asarray(scores_BI), np.asarray(targets_B)
    candidates_BI = ranked_items(scores, targets, seen_rows_M, seen_items_M)
    bad_BI = candidates_BI & ~np.isfinite(scores)
    if bad_BI.any():
        row, item = np.argwhere(bad_BI)[0]
        raise NonFiniteError(
            f"scores must be finite, got {scores[row, item]} for item {item} in row {row} "
            f"({int(bad_BI.sum())} such scores in this batch); lower the learning rate or look for NaN in the weights"
        )
    target_scores_B = scores[np.arange(len(scores)), targets]
    at_least_BI = candidates_BI & (scores >= target_scores_B[:, None])
    return np.asarray(at_least_BI.sum(axis=1), np.int64)


def ranked_items(
    scores_BI: NDArray[Any], targets_B: NDArray[Any], seen_rows_M: ArrayLike, seen_items_M: ArrayLike
) -> NDArray[np.bool_]:
    """What is ranked, (B, I): what is not seen, and each target."""
    rows_M, items_M = np.asarray(seen_rows_M, np.int64), np.asarray(seen_items_M, np.int64)
    inside_M = rows_M < len(scores_BI)
    candidates_BI = np.ones(scores_BI.shape, bool)
    candidates_BI[rows_M[inside_M], items_M[inside_M]] = False
    candidates_BI[np.arange(len(scores_BI)), targets_B] = True
    return candidates_BI


def summarise(ranks_T: ArrayLike, k_list: Sequence[int] = (5, 10, 20)) -> dict[str, float]:
    """Hit@k and NDCG@k for each k, and MRR over the whole ranking, as means over targets.

    With one target per row NDCG is 1 / log2(1 + rank) where rank <= k, else 0.

    Raises:
        DataError: There are no ranks.
        ConfigurationError: A k is below 1.

    Example:
        >>> summarise([1, 3, 20], k_list=[1, 10])
        {'hit@1': 0.333..., 'ndcg@1': 0.333..., 'hit@10': 0.666..., 'ndcg@10': 0.5, 'mrr': 0.461...}
    """
    ranks = np.asarray(ranks_T, np.float64)
    if not ranks.size:
        raise DataError("metrics need at least one target, got none")
    summary: dict[str, float] = {}
    for k in k_list:
        if k < 1:
            raise ConfigurationError(f"every k must be at least 1, got {k}")
        summary[f"hit@{k}"] = float((ranks <= k).mean())
        summary[f"ndcg@{k}"] = float(ndcg(ranks, k).mean())
    summary["mrr"] = float((1 / ranks).mean())
    return summary


def ndcg(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """NDCG@k of each rank, where there is one target: 1 / log2(1 + rank) where rank <= k, else 0; of the same shape.

    Example:
        >>> ndcg([1, 3, 20], 10).tolist()
        [1.0, 0.5, 0.0]
    """
    ranks = np.asarray(ranks, np.float64)
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def rank_batches(
    score: Callable[[EvaluationBatch], NDArray[Any]], batches: Iterable[EvaluationBatch]
) -> NDArray[np.int64]:
    """The rank of every target, in order, for a scorer that works in NumPy (a baseline, a reference).

    Args:
        score: Maps a batch to its (B, I) scores.
        batches: Evaluation batches.
    """
    ranks = [
        target_ranks(
            np.asarray(score(batch))[: batch.num_valid],
            batch.targets_B[: batch.num_valid],
            *batch.seen,
        )
        for batch in batches
    ]
    return np.concatenate([np.zeros(0, np.int64), *ranks])


class LogSum:
    """The logarithm of the sum of the exponentials of rows that arrive in pieces, in float64.

    Example:
        >>> total = LogSum(1)
        >>> for piece in ([[0.0, 0.0]], [[0.0]]):
        ...     total.add(piece)
        >>> np.exp(total.log()).round(6).tolist()
        [3.0]
    """

    def __init__(self, num_rows: int) -> None:
        self._highest_B, self._sum_B = np.full(num_rows, -np.inf), np.zeros(num_rows)

    def add(self, scores_Bs: ArrayLike) -> None:
        """A piece of each row."""
        scores = np.asarray(scores_Bs, np.float64)
        highest_B = np.maximum(self._highest_B, scores.max(axis=1))
        before_B = self._sum_B * np.exp(self._highest_B - highest_B)
        self._sum_B = before_B + np.exp(scores - highest_B[:, None]).sum(axis=1)
        self._highest_B = highest_B

    def log(self) -> NDArray[np.float64]:
        """Of what has arrived, (B,)."""
        return self._highest_B + np.log(self._sum_B)


SMOOTHING = 0.1
"""By how many standard deviations of a row's scores an item must be ahead to count in full, or behind not to count."""


class SmoothRanks:
    """The smooth rank of a target: 1 + the sum of all other candidates, each of which counts as far as it is ahead.

    It counts by a logistic function of its lead, whose scale is `SMOOTHING` standard deviations of the candidates'
    scores: by half where it is level. So the rank does not depend on the unit of the scores, and is no step function of
    them. Rows arrive in pieces, twice: to be measured, and to be counted.

    Attributes:
        moments_3B: The number of candidates, the sum of their scores, and that of the squares.
        ahead_B: The number that is ahead, the target itself counted by half.

    Example:
        >>> scores, candidates = np.array([[0.0, 2.0, 2.0, 9.0]]), np.array([[True, True, True, False]])
        >>> ranks = SmoothRanks(1)
        >>> ranks.add(scores, candidates)
        >>> ranks.measure(scores[:, 1], ranks.moments_3B)
        >>> ranks.count(scores, candidates)
        >>> ranks.of(ranks.ahead_B).round(6).tolist()
        [1.5]
    """

    def __init__(self, num_rows: int) -> None:
        self.moments_3B = np.zeros((3, num_rows))
        self.ahead_B = np.zeros(num_rows)
        self._own_B = self._scale_B = self._count_B = np.zeros(num_rows)

    def add(self, scores_Bs: ArrayLike, candidates_Bs: NDArray[np.bool_]) -> None:
        """A piece of each row, to be measured."""
        scores_Bs = np.where(candidates_Bs, scores_Bs, np.zeros((), np.asarray(scores_Bs).dtype))
        squares_B = np.einsum("bs,bs->b", scores_Bs, scores_Bs, dtype=np.float64)
        self.moments_3B += [candidates_Bs.sum(axis=1), scores_Bs.sum(axis=1, dtype=np.float64), squares_B]

    def measure(self, own_B: NDArray[np.float64], moments_3B: NDArray[np.float64]) -> None:
        """The targets' own scores, and the moments of whole rows."""
        self._count_B, sum_B, squares_B = moments_3B
        mean_B = sum_B / self._count_B
        with np.errstate(invalid="ignore"):  # of what is not finite
            deviation_B = np.sqrt(np.maximum(squares_B / self._count_B - mean_B * mean_B, 0.0))
        self._own_B, self._scale_B = own_B, np.maximum(SMOOTHING * deviation_B, np.finfo(np.float32).tiny)

    def count(self, scores_Bs: ArrayLike, candidates_Bs: NDArray[np.bool_]) -> None:
        """The same pieces again, to be counted."""
        scores = np.asarray(scores_Bs)
        own_B, scale_B = (each.astype(scores.dtype) for each in (self._own_B, self._scale_B))
        with np.errstate(invalid="ignore", over="ignore"):
            counts_Bs = 1 / (1 + np.exp((own_B[:, None] - scores) / scale_B[:, None]))
        self.ahead_B += np.where(candidates_Bs, counts_Bs, 0).sum(axis=1, dtype=np.float64)

    def of(self, ahead_B: NDArray[np.float64]) -> NDArray[np.float64]:
        """The ranks, of what is ahead in whole rows; the last where a score is not finite."""
        return np.where(np.isfinite(ahead_B), ahead_B + 0.5, self._count_B)


def smooth_ranks(
    scores_BI: ArrayLike, targets_B: ArrayLike, seen_rows_M: ArrayLike, seen_items_M: ArrayLike
) -> NDArray[np.float64]:
    """The smooth rank of each target among the items its user has not seen: see `SmoothRanks` and `target_ranks`.

    Example:
        >>> smooth_ranks([[0.1, 0.9, 0.5, 0.5]], [2], [0], [1]).round(6).tolist()
        [1.5]
    """
    scores, targets = np.asarray(scores_BI), np.asarray(targets_B)
    candidates_BI = ranked_items(scores, targets, seen_rows_M, seen_items_M)
    ranks = SmoothRanks(len(scores))
    ranks.add(scores, candidates_BI)
    ranks.measure(scores[np.arange(len(scores)), targets].astype(np.float64), ranks.moments_3B)
    ranks.count(scores, candidates_BI)
    return ranks.of(ranks.ahead_B)


def negative_log_likelihood(scores_BI: ArrayLike, targets_B: ArrayLike) -> NDArray[Any]:
    """Minus the log of the softmax of the scores at the targets.

    Example:
        >>> negative_log_likelihood([[0.0, 0.0, 0.0, 0.0]], [2]).round(4).tolist()
        [1.3863]
    """
    scores = np.asarray(scores_BI, np.float64)
    total = LogSum(len(scores))
    total.add(scores)
    return np.asarray(total.log() - scores[np.arange(len(scores)), np.asarray(targets_B)])
