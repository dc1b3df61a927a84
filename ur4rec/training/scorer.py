"""What a `Scorer` and a `JointTrainer` share in both backends: ranking and scoring with the model as it is.

Shapes: B rows, L positions, I items.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.config import SCORERS, ModelConfig
from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import DataError, NonFiniteError
from ur4rec.evaluation.metrics import summarise
from ur4rec.training.arrays import ArrayT
from ur4rec.training.histories import check_batch, check_histories
from ur4rec.training.memory import enough_for_scores

ScoreFunction = Callable[[ArrayLike, ArrayLike | None], Mapping[str, ArrayT]]
"""Maps histories (B, L) and their users (B,), None where nobody is named, to scores (B, I) on the device, by scorer."""


class BaseScorer(ABC, Generic[ArrayT]):
    """Ranks and scores. A backend says how its model scores, how a batch is ranked and how arrays reach the host.

    A scorer is ``fused``, or one module alone: ``sasrec``, ``retriever``.
    """

    _model_config: ModelConfig

    def evaluate(
        self, loader: Iterable[EvaluationBatch], k_list: Sequence[int] = (5, 10, 20), scorer: str = "fused"
    ) -> dict[str, float]:
        """Hit@k, NDCG@k and MRR of a ranking of the whole catalogue; see `rank`."""
        return summarise(self.rank(loader, scorer), k_list)

    def rank(self, loader: Iterable[EvaluationBatch], scorer: str = "fused") -> NDArray[np.int64]:
        """The rank of every target, in the loader's order; see `rank_all`."""
        return self.rank_all(loader, (scorer,))[scorer]

    def rank_all(
        self, loader: Iterable[EvaluationBatch], scorers: Iterable[str] = SCORERS
    ) -> dict[str, NDArray[np.int64]]:
        """The rank of every target by several scorers, in the loader's order; each module is run once.

        The rank is 1 + the number of other unseen items that score at least as much as the target. It is computed on
        the device, and the host reads all ranks at the end.

        Raises:
            NonFiniteError: A target or a candidate has a score that is NaN or infinite.
            OutOfMemoryError: The scores of a batch are too many.
            DataError: The loader is empty, or a batch cannot be fed; see `ur4rec.training.histories`.
        """
        ranks: dict[str, list[tuple[ArrayT, int]]] = {scorer: [] for scorer in scorers}
        finite: list[ArrayT] = []
        with enough_for_scores(), self._scoring(tuple(ranks)) as score:
            for batch in loader:
                check_batch(batch, self._model_config)
                scores = score(batch.items_BL, batch.users_B)
                for scorer, parts in ranks.items():
                    ranks_B, is_finite = self._rank_batch(scores[scorer], batch)
                    parts.append((ranks_B, batch.num_valid))
                    finite.append(is_finite)
        if not finite:
            raise DataError("evaluation needs at least one batch, got an empty loader")
        with enough_for_scores():  # an accelerator may find out as late as here
            _refuse_nonfinite(all(map(bool, finite)))
            return {scorer: self._concatenate(parts) for scorer, parts in ranks.items()}

    def score(
        self, items_BL: ArrayLike, scorer: str = "fused", users_B: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Scores of every item as the next one of right-padded histories, (B, I); of these users, if any are named.

        Raises:
            DataError: The histories cannot be fed: too long, padded in front, or of items that do not exist.
            NonFiniteError: A score is NaN or infinite.
        """
        return self.scores(items_BL, users_B, (scorer,))[scorer]

    def scores(
        self, items_BL: ArrayLike, users_B: ArrayLike | None = None, scorers: Iterable[str] = SCORERS
    ) -> dict[str, NDArray[np.float32]]:
        """The scores of several scorers by name, as `score` gives them; each module is run once.

        Raises:
            DataError: The histories cannot be fed.
            NonFiniteError: A score is NaN or infinite.
        """
        wanted = tuple(dict.fromkeys(scorers))
        items_BL = check_histories(items_BL, self._model_config)
        with enough_for_scores(), self._scoring(wanted) as score:
            found = score(items_BL, users_B)
            on_host = {scorer: self._to_host(found[scorer]) for scorer in wanted}
        _refuse_nonfinite(all(np.isfinite(scores_BI).all() for scores_BI in on_host.values()))
        return on_host

    @abstractmethod
    def _scoring(self, scorers: tuple[str, ...]) -> AbstractContextManager[ScoreFunction[ArrayT]]:
        """Opens the model, as it is now, for scoring by these scorers."""

    @staticmethod
    @abstractmethod
    def _rank_batch(scores_BI: ArrayT, batch: EvaluationBatch, /) -> tuple[ArrayT, ArrayT]:
        """The rank of each row's target, (B,), and whether all scores that count are finite; both on the device."""

    @staticmethod
    @abstractmethod
    def _to_host(array: ArrayT, /) -> NDArray[Any]:
        """An array of the device as one of the host."""

    def _concatenate(self, parts: Iterable[tuple[ArrayT, int]]) -> NDArray[np.int64]:
        """The ranks of all batches; only the first rows of each, as many as are given with it, count."""
        return np.concatenate([self._to_host(ranks_B)[:num_valid] for ranks_B, num_valid in parts]).astype(np.int64)


def _refuse_nonfinite(finite: bool) -> None:
    if not finite:
        raise NonFiniteError("scores must be finite, got NaN or infinite ones; lower the learning rate and train again")


AnyScorer: TypeAlias = BaseScorer[Any]
"""The scorer of one backend or the other."""
