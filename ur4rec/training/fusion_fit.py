"""Fusion weights chosen on targets that no module trained on, by the metric that chooses epochs.

A module that has learnt its training data by heart is surer of itself there than it ought to be elsewhere, and what the
other one adds to it there is what it gets wrong by chance. So a weight learnt from training targets says little about
others. To choose one or two numbers on held-out targets risks hardly anything. Likelihood would choose others than a
ranking wants: it asks how sure of itself a model may be, and a ranking only who comes first.

Shapes: B targets, b of them that are looked at together, I items, W weights of the retriever, A of popularity.
"""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import DataError
from ur4rec.evaluation.metrics import ndcg
from ur4rec.schedule.stages import MODULES
from ur4rec.training.scorer import AnyScorer

logger = logging.getLogger(__name__)

WEIGHTS = (0.0, *(2 ** (step / 2) for step in range(-10, 9)))
"""The weights of the retriever that are tried, where SASRec has 1: none, and from 1/32 to 16 in steps of √2."""
POPULARITY_WEIGHTS = (0.0, *(2.0**step for step in range(-3, 5)))
"""The weights of popularity that are tried with each of them, where it is fused: none, and from 1/8 to 16."""
PLACES = 10
"""The places of a ranking that count."""
_SCORES_AT_ONCE = 2**16
"""Scores of which a few copies stay in a processor's cache."""


class FusionWeights(NamedTuple):
    """The weights of the terms of the fused scores, where SASRec's is 1."""

    retriever: float
    """The retriever's."""
    popularity: float = 0.0
    """That of the popularity of items, with ``fusion_popularity``."""


def choose_weights(
    scorer: AnyScorer, batches: Iterable[EvaluationBatch], popularity_I: NDArray[np.float32] | None = None
) -> FusionWeights:
    """The weights, SASRec's being 1, under which the targets are ranked best.

    Of `WEIGHTS`, and of all pairs with `POPULARITY_WEIGHTS`, those with the highest NDCG@10, which is averaged with
    that of their neighbours: it has an error, and does not jump. Seen items are not ranked.

    Args:
        scorer: The modules as they are.
        batches: The targets.
        popularity_I: The popularity of each item; None where it is not fused.

    Raises:
        DataError: There is no target, or a batch cannot be fed.
        NonFiniteError: A score is NaN or infinite.
    """
    parts = [_values_by_weights(scorer, batch, popularity_I) for batch in batches if batch.num_valid]
    if not parts:
        raise DataError("a fusion weight needs at least one held-out target, got none")
    values_AW = np.concatenate(parts, axis=-1).mean(axis=-1)
    at_popularity, at_retriever = np.unravel_index(np.argmax(smoothed(values_AW)), values_AW.shape)
    found = FusionWeights(WEIGHTS[at_retriever], POPULARITY_WEIGHTS[at_popularity])
    logger.info(
        "fusion weights %.3f of the retriever%s: NDCG@%d %.4f of held-out targets, %.4f of SASRec alone",
        *(found.retriever, "" if popularity_I is None else f", {found.popularity:g} of popularity"),
        *(PLACES, values_AW[at_popularity, at_retriever], values_AW[0, 0]),
    )
    return found


def smoothed(values_AW: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each value and its neighbours, in both directions.

    Example:
        >>> smoothed(np.array([[1.0, 5.0, 3.0]])).tolist(), smoothed(np.array([[1.0, 2.0], [3.0, 6.0]])).tolist()
        ([[3.0, 3.0, 4.0]], [[3.0, 3.0], [3.0, 3.0]])
    """
    means_AW = np.empty_like(values_AW)
    for row, column in np.ndindex(*values_AW.shape):
        means_AW[row, column] = values_AW[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean()
    return means_AW


def _values_by_weights(
    scorer: AnyScorer, batch: EvaluationBatch, popularity_I: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """NDCG of each target of a batch for each pair of weights, (A, W, B); each module is run once."""
    count = batch.num_valid
    found = scorer.scores(batch.items_BL, batch.users_B, MODULES)
    sasrec_BI, retriever_BI, targets_B = found["sasrec"][:count].copy(), found["retriever"], batch.targets_B[:count]
    own_B = sasrec_BI[np.arange(count), targets_B]
    sasrec_BI[batch.seen] = -np.inf
    sasrec_BI[np.arange(count), targets_B] = own_B  # a target is ranked whatever its user has seen
    size = max(_SCORES_AT_ONCE // sasrec_BI.shape[1], 1)
    ranks = [
        _ranks_by_weights(sasrec_BI[rows], retriever_BI[:count][rows], targets_B[rows], popularity_I)
        for rows in (slice(first, first + size) for first in range(0, count, size))
    ]
    return ndcg(np.concatenate(ranks, axis=-1), PLACES)


def _ranks_by_weights(
    sasrec_bI: NDArray[np.float32],
    retriever_bI: NDArray[np.float32],
    targets_b: NDArray[np.int32],
    popularity_I: NDArray[np.float32] | None,
) -> NDArray[np.int64]:
    """The ranks of some targets for each pair of weights, (A, W, b), as `ur4rec.evaluation.metrics.target_ranks`."""
    rows_b = np.arange(len(targets_b))
    pairs = POPULARITY_WEIGHTS if popularity_I is not None else (0.0,)
    ranks_AWb = np.empty((len(pairs), len(WEIGHTS), len(targets_b)), np.int64)
    for row, popularity in enumerate(pairs):
        base_bI = sasrec_bI if popularity_I is None else sasrec_bI + np.float32(popularity) * popularity_I
        for column, retriever in enumerate(WEIGHTS):
            fused_bI = np.float32(retriever) * retriever_bI
            fused_bI += base_bI
            own_b1 = fused_bI[rows_b, targets_b][:, None]
            ranks_AWb[row, column] = np.count_nonzero(fused_bI >= own_b1, axis=1)
    return ranks_AWb
