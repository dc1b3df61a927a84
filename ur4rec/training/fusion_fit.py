"""Fusion weights chosen on targets that no module trained on, by the metric that chooses epochs.

A module that has learnt its training data by heart is surer of itself there than it ought to be elsewhere, and what the
other one adds to it there is what it gets wrong by chance. So a weight learnt from training targets says little about
others. To choose one or two numbers on held-out targets risks hardly anything. Likelihood would choose others than a
ranking wants: it asks how sure of itself a model may be, and a ranking only who comes first. So it chooses that alone,
one factor of all scores (temperature scaling: Guo et al., ICML 2017), with which probabilities made of them are honest.

Shapes: b targets that are looked at together, I items, W weights of the retriever, A of popularity, C factors.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import DataError
from ur4rec.evaluation.metrics import ndcg, negative_log_likelihood, ranked_items
from ur4rec.schedule.stages import MODULES
from ur4rec.training.scorer import AnyScorer

logger = logging.getLogger(__name__)

WEIGHTS = (0.0, *(2 ** (step / 2) for step in range(-10, 9)))
"""The weights of the retriever that are tried, where SASRec has 1: none, and from 1/32 to 16 in steps of √2."""
POPULARITY_WEIGHTS = (0.0, *(2.0**step for step in range(-3, 5)))
"""The weights of popularity that are tried with each of them, where it is fused: none, and from 1/8 to 16."""
SCALES = tuple(2 ** (step / 2) for step in range(-16, 5))
"""The factors that are tried of all scores: from 1/256 to 4 in steps of √2."""
SCALE_TARGETS = 1024
"""The targets whose likelihood chooses one: it is a mean of many scores for each."""
PLACES = 10
"""The places of a ranking that count."""
_SCORES_AT_ONCE = 2**16
"""Scores of which a few copies stay in a processor's cache."""


class FusionWeights(NamedTuple):
    """What decides the fused scores: ``scale`` times SASRec's plus ``retriever`` times the retriever's, and so on."""

    retriever: float
    """The weight of the retriever, where SASRec's is 1."""
    popularity: float = 0.0
    """That of the popularity of items, with ``fusion_popularity``."""
    scale: float = 1.0
    """The factor of all of them, which changes no ranking, but how sure the fused model is of it."""

    @classmethod
    def of(cls, weights: ArrayLike) -> "FusionWeights":
        """What the weights of a model are, SASRec's first, which must not be 0.

        Example:
            >>> FusionWeights.of([0.5, 1.0, 2.0])
            FusionWeights(retriever=2.0, popularity=4.0, scale=0.5)
        """
        scale, retriever, popularity = np.append(np.asarray(weights, np.float64), 0.0)[:3].tolist()
        return cls(retriever / scale, popularity / scale, scale)

    def terms(self, count: int) -> NDArray[np.float32]:
        """The weights of this number of terms, SASRec's first.

        Example:
            >>> FusionWeights(retriever=2.0, scale=0.5).terms(2).tolist()
            [0.5, 1.0]
        """
        ratios = np.array([1.0, self.retriever, self.popularity])
        return (self.scale * ratios[:count]).astype(np.float32)


def choose_weights(
    scorer: AnyScorer, batches: Iterable[EvaluationBatch], popularity_I: NDArray[np.float32] | None = None
) -> FusionWeights:
    """The weights, SASRec's being 1, under which the targets are ranked best.

    Of `WEIGHTS`, and of all pairs with `POPULARITY_WEIGHTS`, those with the highest NDCG@10, which is averaged with
    that of their neighbours: it has an error, and does not jump. Seen items are not ranked. Then of `SCALES` the one
    with the highest likelihood of `SCALE_TARGETS` of the targets among what is ranked.

    Args:
        scorer: The modules as they are.
        batches: The targets.
        popularity_I: The popularity of each item; None where it is not fused.

    Raises:
        DataError: There is no target, or a batch cannot be fed.
        NonFiniteError: A score is NaN or infinite.
    """
    values: list[NDArray[np.float64]] = []
    some: list[EvaluationBatch] = []
    for batch in batches:
        if batch.num_valid:
            values += [ndcg(_ranks_by_weights(part, popularity_I), PLACES) for part in _parts(scorer, batch)]
            if sum(each.num_valid for each in some) < SCALE_TARGETS:
                some.append(batch)
    if not values:
        raise DataError("a fusion weight needs at least one held-out target, got none")
    values_AW = np.concatenate(values, axis=-1).mean(axis=-1)
    at_popularity, at_retriever = np.unravel_index(np.argmax(smoothed(values_AW)), values_AW.shape)
    found = FusionWeights(WEIGHTS[at_retriever], POPULARITY_WEIGHTS[at_popularity])
    likelihoods = [_likelihoods_by_scale(part, found, popularity_I) for batch in some for part in _parts(scorer, batch)]
    found = found._replace(scale=SCALES[int(np.concatenate(likelihoods, axis=-1).mean(axis=-1).argmax())])
    logger.info(
        "fusion weights %.3f of the retriever%s: NDCG@%d %.4f of held-out targets, %.4f of SASRec alone; times %.3f",
        *(found.retriever, "" if popularity_I is None else f", {found.popularity:g} of popularity"),
        *(PLACES, values_AW[at_popularity, at_retriever], values_AW[0, 0], found.scale),
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


class _Part(NamedTuple):
    """Some held-out targets and the scores of both modules, for which each was run once."""

    sasrec_bI: NDArray[np.float32]
    """SASRec's scores; -inf for what the user has seen, other than the target."""
    retriever_bI: NDArray[np.float32]
    """The retriever's."""
    targets_b: NDArray[np.int32]
    """The targets."""

    @property
    def own(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Rows and places of the targets."""
        return np.arange(len(self.targets_b)), self.targets_b


def _parts(scorer: AnyScorer, batch: EvaluationBatch) -> Iterator[_Part]:
    """The targets of a batch, as many at a time as a processor's cache has room for."""
    count = batch.num_valid
    found = scorer.scores(batch.items_BL, batch.users_B, MODULES)
    sasrec_BI, retriever_BI, targets_B = found["sasrec"][:count], found["retriever"][:count], batch.targets_B[:count]
    sasrec_BI = np.where(ranked_items(sasrec_BI, targets_B, *batch.seen), sasrec_BI, np.float32(-np.inf))
    size = max(_SCORES_AT_ONCE // sasrec_BI.shape[1], 1)
    for first in range(0, count, size):
        rows = slice(first, min(first + size, count))
        yield _Part(sasrec_BI[rows], retriever_BI[rows], targets_B[rows])


def _ranks_by_weights(part: _Part, popularity_I: NDArray[np.float32] | None) -> NDArray[np.int64]:
    """The ranks of some targets for each pair of weights, (A, W, b), as `ur4rec.evaluation.metrics.target_ranks`."""
    pairs = POPULARITY_WEIGHTS if popularity_I is not None else (0.0,)
    ranks_AWb = np.empty((len(pairs), len(WEIGHTS), len(part.targets_b)), np.int64)
    for row, popularity in enumerate(pairs):
        base_bI = part.sasrec_bI if popularity_I is None else part.sasrec_bI + np.float32(popularity) * popularity_I
        for column, retriever in enumerate(WEIGHTS):
            fused_bI = np.float32(retriever) * part.retriever_bI
            fused_bI += base_bI
            ranks_AWb[row, column] = np.count_nonzero(fused_bI >= fused_bI[part.own][:, None], axis=1)
    return ranks_AWb


def _likelihoods_by_scale(
    part: _Part, weights: FusionWeights, popularity_I: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """The log-likelihood of some targets among what is ranked for each of `SCALES`, (C, b)."""
    fused_bI = part.sasrec_bI + np.float32(weights.retriever) * part.retriever_bI
    if popularity_I is not None:
        fused_bI += np.float32(weights.popularity) * popularity_I
    return np.array([-negative_log_likelihood(np.float32(scale) * fused_bI, part.targets_b) for scale in SCALES])
