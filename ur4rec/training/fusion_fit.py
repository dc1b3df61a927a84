"""Fusion weights chosen on targets that neither module trained on, by the metric that chooses epochs.

A module that has learnt its training data by heart is surer of itself there than it ought to be elsewhere, and what the
other one adds to it there is what it gets wrong by chance. So a weight learnt from training targets says little about
others. To choose one number on held-out targets risks hardly anything. Likelihood would choose another one than a
ranking wants: it asks how sure of itself a model may be, and a ranking only who comes first.

Shapes: B targets, I items, W weights.
"""

import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import DataError
from ur4rec.evaluation.metrics import ndcg, target_ranks
from ur4rec.schedule.stages import MODULES
from ur4rec.training.scorer import AnyScorer

logger = logging.getLogger(__name__)

WEIGHTS = (0.0, *(2 ** (step / 2) for step in range(-10, 5)))
"""The weights of the retriever that are tried, where SASRec has 1: none, and from 1/32 to 4 in steps of √2."""
PLACES = 10
"""The places of a ranking that count."""


def choose_weight(scorer: AnyScorer, batches: Iterable[EvaluationBatch]) -> float:
    """The weight of the retriever's scores, SASRec's having 1, under which the targets are ranked best.

    Of `WEIGHTS`, the one with the highest NDCG@10, which is averaged with that of its neighbours: it has an error, and
    does not jump. Seen items are not ranked.

    Raises:
        DataError: There is no target, or a batch cannot be fed.
        NonFiniteError: A score is NaN or infinite.
    """
    parts = [_ranks_by_weight(scorer, batch) for batch in batches if batch.num_valid]
    if not parts:
        raise DataError("a fusion weight needs at least one held-out target, got none")
    values_W = ndcg(np.concatenate(parts, axis=1), PLACES).mean(axis=1)
    best = int(np.argmax(smoothed(values_W)))
    logger.info(
        "retriever's fusion weight %.3f: NDCG@%d %.4f of held-out targets, %.4f without it",
        *(WEIGHTS[best], PLACES, values_W[best], values_W[0]),
    )
    return WEIGHTS[best]


def smoothed(values_W: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each value and its neighbours.

    Example:
        >>> smoothed(np.array([1.0, 5.0, 3.0])).tolist()
        [3.0, 3.0, 4.0]
    """
    return np.array([values_W[max(place - 1, 0) : place + 2].mean() for place in range(len(values_W))])


def _ranks_by_weight(scorer: AnyScorer, batch: EvaluationBatch) -> NDArray[np.int64]:
    """The rank of each target of a batch for each weight, (W, B); each module is run once."""
    count = batch.num_valid
    found = scorer.scores(batch.items_BL, batch.users_B, MODULES)
    sasrec_BI, retriever_BI = (found[name][:count] for name in MODULES)
    given = batch.targets_B[:count], *batch.seen
    return np.array([target_ranks(sasrec_BI + np.float32(weight) * retriever_BI, *given) for weight in WEIGHTS])
