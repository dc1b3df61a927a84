"""Targets ranked with a model: similar histories together, ranks in the order of the targets.

Shapes: T targets.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ur4rec.config import ModelConfig
from ur4rec.data import Targets
from ur4rec.data.batches import EvaluationBatch
from ur4rec.runs.prepared import evaluation_batches
from ur4rec.training.ahead import ahead
from ur4rec.training.scorer import AnyScorer
from ur4rec.training.slices import DEFAULT_MEMORY

Ranks = dict[str, NDArray[np.int64]]
"""The rank of each target, (T,), by scorer."""


class Ranking:
    """Targets, ready to be ranked again and again.

    A batch is as wide as its longest history, so histories of about one length are ranked together.

    Args:
        targets: What to rank.
        model: The shape of the model.
        memory: Bytes that scores may take at once.
    """

    def __init__(self, targets: Targets, model: ModelConfig, memory: int = DEFAULT_MEMORY) -> None:
        self.targets = targets
        self._order_T = np.argsort(np.minimum(targets.histories.lengths, model.max_seq_len), kind="stable")
        self._batches = evaluation_batches(targets.take(self._order_T), model, memory)

    def ranks(
        self,
        scorer: AnyScorer,
        scorers: Iterable[str],
        before_batch: Callable[[int, int], object] = lambda index, count: None,
    ) -> Ranks:
        """The rank of every target by several scorers; see `ur4rec.training.scorer.BaseScorer.rank_all`.

        Args:
            scorer: A trainer or a scorer.
            scorers: Which.
            before_batch: Called with the number of batches that are done and that there are; it may raise.
        """
        with ahead(self._batches, lambda _, index: index, readers=scorer.readers) as batches:
            found = scorer.rank_all(self._told(batches, before_batch), scorers)
        return {name: self._in_order(ranks_T) for name, ranks_T in found.items()}

    def _told(
        self, batches: Iterable[tuple[EvaluationBatch, int]], before_batch: Callable[[int, int], object]
    ) -> Iterator[EvaluationBatch]:
        for batch, index in batches:
            before_batch(index, len(self._batches))
            yield batch

    def _in_order(self, sorted_T: NDArray[np.int64]) -> NDArray[np.int64]:
        ranks_T = np.empty_like(sorted_T)
        ranks_T[self._order_T] = sorted_T
        return ranks_T
