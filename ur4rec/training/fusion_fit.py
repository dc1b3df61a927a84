"""Fusion weights chosen on targets that neither module trained on, by the metric that chooses epochs.

A module that has learnt its training data by heart is surer of itself there than it ought to be elsewhere, and what the
other one adds to it there is what it gets wrong by chance. So a weight learnt from training targets says little about
others. To choose one number on held-out targets risks hardly anything. Likelihood would choose another one than a
ranking wants: it asks how sure of itself a model may be, and a ranking only who comes first.

Shapes: B targets, I items, M seen items, W weights.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import DataError
from ur4rec.evaluation.metrics import ndcg
from ur4rec.schedule.stages import MODULES
from ur4rec.training.scorer import AnyScorer

logger = logging.getLogger(__name__)

WEIGHTS = (0.0, *(2 ** (step / 2) for step in range(-10, 5)))
"""The weights of the retriever that are tried, where SASRec has 1: none, and from 1/32 to 4 in steps of √2."""
PLACES = 10
"""The places of a ranking that count."""


class ScoredTargets(NamedTuple):
    """Some targets with what each module says of all items."""

    sasrec_BI: NDArray[np.float32]
    """SASRec's scores."""
    retriever_BI: NDArray[np.float32]
    """The retriever's scores."""
    targets_B: NDArray[np.int32]
    """The targets."""
    seen_M: tuple[NDArray[np.int32], NDArray[np.int32]]
    """Rows and items that are not ranked."""


def choose_weight(scorer: AnyScorer, batches: Iterable[EvaluationBatch]) -> float:
    """The weight of the retriever's scores, SASRec's having 1, under which the targets are ranked best.

    Of `WEIGHTS`, the one with the highest NDCG@10, which is averaged with that of its neighbours: it has an error, and
    does not jump. Seen items are not ranked.

    Raises:
        DataError: There is no target, or a batch cannot be fed.
        NonFiniteError: A score is NaN or infinite.
    """
    parts = [ranks_by_weight(each, WEIGHTS) for each in _score(scorer, batches)]
    if not parts:
        raise DataError("a fusion weight needs at least one held-out target, got none")
    values_W = ndcg(np.concatenate(parts, axis=1), PLACES).mean(axis=1)
    best = int(np.argmax(smoothed(values_W)))
    logger.info(
        "retriever's fusion weight %.3f: NDCG@%d %.4f of held-out targets, %.4f without it",
        *(WEIGHTS[best], PLACES, values_W[best], values_W[0]),
    )
    return WEIGHTS[best]


def ranks_by_weight(block: ScoredTargets, weights: Sequence[float]) -> NDArray[np.int64]:
    """The rank of each target for each weight of the retriever, (W, B): ties count against it.

    Example:
        >>> scores = np.array([[[3, 2, 1]], [[0, 0, 3]]], np.float32)
        >>> nothing = np.zeros(0, np.int32)
        >>> block = ScoredTargets(*scores, np.array([2]), (nothing, nothing))
        >>> ranks_by_weight(block, (0, 0.5, 1)).tolist()
        [[3], [2], [1]]
    """
    rows_B, ranks = np.arange(len(block.targets_B)), []
    for weight in weights:
        fused_BI = block.sasrec_BI + np.float32(weight) * block.retriever_BI
        own_B1 = fused_BI[rows_B, block.targets_B, None]
        fused_BI[block.seen_M] = -np.inf
        fused_BI[rows_B, block.targets_B] = -np.inf
        ranks.append(1 + np.count_nonzero(fused_BI >= own_B1, axis=1))
    return np.array(ranks)


def smoothed(values_W: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each value and its neighbours.

    Example:
        >>> smoothed(np.array([1.0, 5.0, 3.0])).tolist()
        [3.0, 3.0, 4.0]
    """
    return np.array([values_W[max(place - 1, 0) : place + 2].mean() for place in range(len(values_W))])


def _score(scorer: AnyScorer, batches: Iterable[EvaluationBatch]) -> Iterator[ScoredTargets]:
    """The rows of batches that count, scored by both modules."""
    for batch in batches:
        count, seen = batch.num_valid, slice(batch.num_seen)
        if not count:
            continue
        found = scorer.scores(batch.items_BL, batch.users_B, MODULES)
        sasrec_BI, retriever_BI = (found[name][:count] for name in MODULES)
        yield ScoredTargets(
            *(sasrec_BI, retriever_BI, batch.targets_B[:count]),
            (batch.seen_rows_M[seen], batch.seen_items_M[seen]),
        )
