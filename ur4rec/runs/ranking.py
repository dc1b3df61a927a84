"""Targets ranked with a model: similar histories together, ranks in the order of the targets.

Shapes: T targets.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ur4rec.config import ModelConfig
from ur4rec.data import Targets
from ur4rec.data.batches import EvaluationBatch
from ur4rec.runs.prepared import evaluation_batches
from ur4rec.training.ahead import ahead
from ur4rec.training.processes import ONE_PROCESS, Processes
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
        processes: Those among which the batches are divided, as far as a scorer says so with its ``part``.
    """

    def __init__(
        self,
        targets: Targets,
        model: ModelConfig,
        memory: int = DEFAULT_MEMORY,
        processes: Processes = ONE_PROCESS,
    ) -> None:
        self.targets = targets
        self._processes = processes
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
            before_batch: Called with the number of batches that are done and that there are; it may raise. All
                processes call it equally often.
        """
        names, (part, num_parts) = tuple(scorers), scorer.part
        own = (self._batches.batch(index) for index in range(part, len(self._batches), num_parts))
        with ahead(own, lambda _, number: number, readers=scorer.readers) as batches:
            told = self._told(iter(batches), before_batch, num_parts)
            if part < len(self._batches):
                found = scorer.rank_all(told, names)
            else:
                scorer.rank_nothing()
                found = dict.fromkeys(names, np.zeros(sum(1 for _ in told), np.int64))
        if num_parts > 1:
            found = {name: self._join(ranks_T, num_parts) for name, ranks_T in found.items()}
        return {name: self._in_order(ranks_T) for name, ranks_T in found.items()}

    def _told(
        self,
        batches: Iterator[tuple[EvaluationBatch, int]],
        before_batch: Callable[[int, int], object],
        num_parts: int,
    ) -> Iterator[EvaluationBatch]:
        for first in range(0, len(self._batches), num_parts):
            before_batch(first, len(self._batches))
            for batch, _ in islice(batches, 1):  # the last round may have none for this process
                yield batch

    def _join(self, own_T: NDArray[np.int64], num_parts: int) -> NDArray[np.int64]:
        """The ranks of all batches in their order, from those of this process's batches.

        Processes that have one part of a batch, each with other items, have the same ranks.
        """
        step = self._processes.count // num_parts
        parts = self._processes.gather(own_T)[::step]
        size = self._batches.batch_size
        split = [np.split(ranks_T, range(size, len(ranks_T), size)) for ranks_T in parts]
        order = range(len(self._batches))
        return np.concatenate([split[index % num_parts][index // num_parts] for index in order])

    def _in_order(self, sorted_T: NDArray[np.int64]) -> NDArray[np.int64]:
        ranks_T = np.empty_like(sorted_T)
        ranks_T[self._order_T] = sorted_T
        return ranks_T
