"""Ranks and negative log-likelihoods of targets, from the same scores.

Shapes: B rows of a batch, I items, T targets, P evaluation points.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.batches import EvaluationBatch
from ur4rec.evaluation.metrics import negative_log_likelihood, summarise, target_ranks
from ur4rec.training.backend import Scorer


class RankedTargets(NamedTuple):
    """What one set of targets got."""

    ranks_T: NDArray[np.int32]
    """The rank of each target among the items that its user has not seen."""
    nll_T: NDArray[np.float32]
    """Minus the log-probability of each target: a softmax of the scores over the whole catalogue."""

    def summary(self) -> dict[str, float]:
        """Hit@10, NDCG@10 and the mean NLL."""
        metrics = summarise(self.ranks_T, (10,))
        return {
            "hit@10": metrics["hit@10"],
            "ndcg@10": metrics["ndcg@10"],
            "nll": float(self.nll_T.mean(dtype=np.float64)),
        }


def evaluate(trainer: Scorer, batches: Iterable[EvaluationBatch]) -> RankedTargets:
    """Score every target's history once, fused, and take rank and likelihood from the same scores.

    Raises:
        NonFiniteError: A score that counts is NaN or infinite.
    """
    ranks, likelihoods = [], []
    for batch in batches:
        scores_BI = np.asarray(trainer.score(batch.items_BL))[: batch.num_valid]
        targets_B = batch.targets_B[: batch.num_valid]
        seen = batch.seen_rows_M[: batch.num_seen], batch.seen_items_M[: batch.num_seen]
        ranks.append(target_ranks(scores_BI, targets_B, *seen))
        likelihoods.append(negative_log_likelihood(scores_BI, targets_B))
    return RankedTargets(np.concatenate(ranks).astype(np.int32), np.concatenate(likelihoods).astype(np.float32))
