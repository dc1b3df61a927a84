"""What a `Scorer` and a `JointTrainer` share in both backends: ranking and scoring with the model as it is.

Shapes: B rows, L positions, I items, S scorers, k places, R histories.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.config import SCORERS, ModelConfig
from ur4rec.data.batches import EvaluationBatch, EvaluationBatches
from ur4rec.data.interactions import Sequences
from ur4rec.data.splits import Targets
from ur4rec.errors import DataError, NonFiniteError
from ur4rec.evaluation.metrics import summarise
from ur4rec.training.ahead import ahead
from ur4rec.training.arrays import ArrayT
from ur4rec.training.histories import check_batch, check_histories
from ur4rec.training.memory import enough_for_scores
from ur4rec.training.slices import DEFAULT_MEMORY, count_rows, slice_width

ArrayOutT = TypeVar("ArrayOutT", covariant=True)


class Scores(Protocol[ArrayOutT]):
    """The scores of a model, as it is, by some scorers; all arrays are on the device."""

    def __call__(self, items_BL: ArrayLike, users_B: ArrayLike | None, /) -> Mapping[str, ArrayOutT]:
        """Maps histories (B, L) and their users (B,), None where nobody is named, to scores (B, I) by scorer."""

    def rank(self, batch: EvaluationBatch, width: int, /) -> Mapping[str, tuple[ArrayOutT, ArrayOutT]]:
        """By scorer the ranks of the targets, and whether all scores that count are finite; in slices of ``width``."""

    def top(
        self,
        batch: EvaluationBatch,
        order: Sequence[str],
        candidates_I: NDArray[np.bool_] | None,
        k: int,
        width: int,
        /,
    ) -> tuple[ArrayOutT, ArrayOutT, ArrayOutT]:
        """The items in the first k places by the first of the scorers, (B, k), and what all say of them.

        That is the probabilities that each scorer gives them, (S, B, k), and whether all scores that count are finite.
        The items are scored in slices of ``width``.
        """


MAX_ROWS = 4096
"""Histories of which the best items are found at once, at most."""
NO_ITEM = -1
"""What stands in a place for which no candidate is left."""


class Top(NamedTuple):
    """The best items of some histories, the best first, and what each scorer gives them."""

    items_Bk: NDArray[np.int32]
    """The items; `NO_ITEM` where there are fewer candidates."""
    probabilities: dict[str, NDArray[np.float32]]
    """Of each item, (B, k), by scorer: that it is the next one, among the candidates of its history."""


class BaseScorer(ABC, Generic[ArrayT]):
    """Ranks and scores. A backend says how its model scores, how a batch is ranked and how arrays reach the host.

    A scorer is ``fused``, or one module alone: ``sasrec``, ``retriever``.
    """

    device: Any
    """Where the model is."""
    memory: int = DEFAULT_MEMORY
    """Bytes that scores may take at once; see `ur4rec.training.slices`."""
    part: tuple[int, int] = (0, 1)
    """Which part of what is to be ranked this process ranks, and of how many: see `ur4rec.runs.ranking.Ranking`."""

    _model_config: ModelConfig
    _given_readers: int | None = None

    @property
    def readers(self) -> int:
        """The threads that prepare batches ahead: by default one for an accelerator, and none on the CPU."""
        return int("cpu" not in str(self.device).lower()) if self._given_readers is None else self._given_readers

    @property
    def num_items(self) -> int:
        """The number of items that are scored."""
        return self._model_config.num_items

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
        with enough_for_scores(), self._scoring(tuple(ranks)) as score, self._read(loader) as batches:
            for batch, _ in batches:
                width = self._width(len(batch.items_BL), ranks)
                for scorer, (ranks_B, is_finite) in score.rank(batch, width).items():
                    ranks[scorer].append((ranks_B, batch.num_valid))
                    finite.append(is_finite)
        if not finite:
            raise DataError("evaluation needs at least one batch, got an empty loader")
        with enough_for_scores():  # an accelerator may find out as late as here
            _refuse_nonfinite(all(map(bool, finite)))
            return {scorer: self._concatenate(parts) for scorer, parts in ranks.items()}

    def rank_nothing(self) -> None:
        """Take part in a ranking in which other processes have batches and this one has none."""
        with self._scoring(SCORERS):
            pass

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

    def top(
        self,
        histories: Sequences,
        k: int,
        *,
        scorer: str = "fused",
        excluded: Sequences | None = None,
        candidates_I: NDArray[np.bool_] | None = None,
        users_R: NDArray[np.int32] | None = None,
    ) -> Iterator[Top]:
        """The k best items of each history, in slices of histories and of items that bound what is held.

        Of equal scores, the item with the lower number comes first.

        Args:
            histories: The histories, of any length; the model reads the end of each. None may be empty.
            k: The number of places; there are no more than items.
            scorer: Whose order it is.
            excluded: Per history, the items that are no candidates; None is no item.
            candidates_I: Which items are candidates at all; None is every item.
            users_R: Whose histories they are; None is nobody that the model knows.

        Raises:
            NonFiniteError: A score is NaN or infinite.
            OutOfMemoryError: The scores of a slice are too many.
        """
        num_items, num_rows = self.num_items, len(histories)
        nothing = Sequences(np.zeros(0, np.int32), np.zeros(num_rows + 1, np.int64))
        targets = Targets(
            users_T=np.full(num_rows, -1, np.int32) if users_R is None else users_R,
            items_T=np.zeros(num_rows, np.int32),
            histories=histories,
            seen=nothing if excluded is None else excluded,
        )
        rows = self.rows_at_once(num_rows)
        length = self._model_config.max_seq_len
        order = (scorer, *(each for each in SCORERS if each != scorer))
        for batch in EvaluationBatches(targets, num_items, max_seq_len=length, batch_size=rows):
            with enough_for_scores(), self._scoring(SCORERS) as score:
                best = score.top(batch, order, candidates_I, min(k, num_items), self._width(rows, SCORERS))
                items_Bk, shares_SBk, finite = (self._to_host(each) for each in best)
            _refuse_nonfinite(bool(finite))
            shares = dict(zip(order, shares_SBk[:, : batch.num_valid], strict=True))
            yield Top(items_Bk[: batch.num_valid].astype(np.int32), shares)

    def rows_at_once(self, num_rows: int) -> int:
        """The histories of a slice, of this number in all; a number of no more than that is one slice."""
        return count_rows(self._model_config, num_rows, self.memory, device=self.device, max_rows=MAX_ROWS)

    def no_top(self, k: int) -> Top:
        """The best items of no history."""
        shape = 0, min(k, self.num_items)
        return Top(np.zeros(shape, np.int32), {scorer: np.zeros(shape, np.float32) for scorer in SCORERS})

    def _read(
        self, loader: Iterable[EvaluationBatch]
    ) -> AbstractContextManager[Iterator[tuple[EvaluationBatch, None]]]:
        """The batches of a loader, checked."""
        return ahead(loader, lambda batch, _: check_batch(batch, self._model_config), readers=self._readers_of(loader))

    def _readers_of(self, loader: Iterable[Any]) -> int:
        """The threads that read a loader ahead: none if it has no length, as a generator may do more than read."""
        return self.readers if isinstance(loader, Sized) else 0

    @abstractmethod
    def _scoring(self, scorers: tuple[str, ...]) -> AbstractContextManager[Scores[ArrayT]]:
        """Opens the model, as it is now, for scoring by these scorers."""

    @staticmethod
    @abstractmethod
    def _to_host(array: ArrayT, /) -> NDArray[Any]:
        """An array of the device as one of the host."""

    def _width(self, num_rows: int, scorers: Collection[str]) -> int:
        """The items that are scored at once for this number of histories."""
        return slice_width(self._model_config, num_rows, scorers, self.memory, device=self.device)

    def _concatenate(self, parts: Iterable[tuple[ArrayT, int]]) -> NDArray[np.int64]:
        """The ranks of all batches; only the first rows of each, as many as are given with it, count."""
        return np.concatenate([self._to_host(ranks_B)[:num_valid] for ranks_B, num_valid in parts]).astype(np.int64)


class ModelScorer(BaseScorer[ArrayT]):
    """The scorer of a model that is not trained any more: it also says why."""

    def explain(
        self, items_BL: ArrayLike, candidates_BC: ArrayLike, users_B: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """By which parts of a history the retriever finds the candidates, (B, C, M): weights that sum to 1 for each.

        M are the positions of the history, of which padding has none of the weight, and in a model with user texts,
        where users are named, last the user's own text.

        Args:
            items_BL: Histories, right-padded.
            candidates_BC: The items that were found.
            users_B: Whose histories they are, if anybody's.
        """
        with enough_for_scores():
            return self._to_host(self._explain(items_BL, candidates_BC, users_B))

    @abstractmethod
    def _explain(self, items_BL: ArrayLike, candidates_BC: ArrayLike, users_B: ArrayLike | None) -> ArrayT:
        """What `explain` returns, on the device."""


def _refuse_nonfinite(finite: bool) -> None:
    if not finite:
        raise NonFiniteError("scores must be finite, got NaN or infinite ones; lower the learning rate and train again")


AnyScorer: TypeAlias = BaseScorer[Any]
"""The scorer or trainer of one backend or the other."""
AnyModelScorer: TypeAlias = ModelScorer[Any]
"""The scorer of one backend or the other."""
