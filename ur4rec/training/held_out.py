"""What a `Payoff` or `Trial` schedule measures by: how modules as they are or were rank held-out targets.

The logarithm of a target's rank says how many halvings it is away from the first place. The likelihood, which also asks
how sure a model is of itself, gets worse while the ranking still gets better, once modules know their training data by
heart; and the mean of a metric such as NDCG@10 hangs on the few targets that are near the first places already. The
rank is smooth, so that what is nearly equal is nearly equal on every device, and no small change is lost.

Shapes: B held-out targets, L positions, I items, s items of a slice, d width, M seen items.
"""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.batches import EvaluationBatch
from ur4rec.evaluation.metrics import LogSum, SmoothRanks
from ur4rec.schedule.stages import MODULES
from ur4rec.training.arrays import ArrayT
from ur4rec.training.checkpoint import Arrays
from ur4rec.training.processes import ONE_PROCESS, Processes
from ur4rec.training.slices import Slice, slices_of

Indices: TypeAlias = NDArray[np.integer[Any]]


class Snapshot(NamedTuple, Generic[ArrayT]):
    """A module as it was; nothing of it is shared with the module."""

    weights: Mapping[str, ArrayT]
    """Its parameters."""
    outputs_Bd: ArrayT
    """What it says of the held-out histories: SASRec's states, the retriever's preference vectors."""
    table_Id: ArrayT
    """What items are compared with it by: SASRec's embeddings, the retriever's keys."""
    module: str = ""
    """Its name."""


class SnapshotScores(Protocol[ArrayT]):
    """What a backend does with snapshots."""

    def take(self, module: str, batch: EvaluationBatch, weights: Mapping[str, NDArray[Any]] | None) -> Snapshot[ArrayT]:
        """The snapshot of a module as it is, or with these weights."""

    def weights(self, snapshot: Snapshot[ArrayT]) -> Arrays:
        """Its weights, by the names in a checkpoint."""

    def score(self, module: str, snapshot: Snapshot[ArrayT], first: int, width: int) -> ArrayT:
        """Scores of a module alone for some items, (B, s)."""

    def fuse(
        self, scores: tuple[ArrayT, ...], first: int, totals: tuple[NDArray[np.float32], ...] | None
    ) -> NDArray[np.float32]:
        """Fused scores of items from the first, (B, s), given for the fusion `weighted` what normalises, (B, 1)."""


class HeldOutTargets(Generic[ArrayT]):
    """See `ur4rec.schedule.payoff_probe.HeldOut`.

    Args:
        batch: The targets, and what their users have seen, which is not ranked.
        items: The items that the backend scores: all, or where they are in parts, those of this process.
        width: The items of a slice.
        scores: The backend's.
        normalised: Whether the fusion needs all items' scores to normalise them.
        processes: Those that must decide the same: the losses of the first one are those of all.
        num_parts: Among how many of them, from the first, the items are divided.
    """

    def __init__(
        self,
        batch: EvaluationBatch,
        items: slice,
        width: int,
        scores: SnapshotScores[ArrayT],
        *,
        normalised: bool,
        processes: Processes,
        num_parts: int,
    ) -> None:
        num_items = items.stop - items.start
        self._processes, self._num_parts, self._first = processes, num_parts, items.start
        self._width = min(width, num_items)
        self._batch, self._scores = batch, scores
        self._normalised = normalised and (self._width < num_items or num_parts > 1)
        self._slices = list(slices_of(num_items, self._width))
        self._targets_B = np.asarray(batch.targets_B)
        self._rows_B = np.arange(len(self._targets_B))
        rows_M, items_M = map(np.asarray, batch.seen)
        is_other_M = items_M != self._targets_B[rows_M]
        self._seen_rows_M, self._seen_items_M = rows_M[is_other_M], items_M[is_other_M]

    def take(self, module: str, weights: Mapping[str, NDArray[Any]] | None = None) -> Snapshot[ArrayT]:
        """The snapshot of a module as it is now, or with these weights."""
        return self._scores.take(module, self._batch, weights)

    def weights(self, snapshot: Snapshot[ArrayT]) -> Arrays:
        """The weights of a snapshot."""
        return self._scores.weights(snapshot)

    def losses(self, snapshots: Mapping[str, Snapshot[ArrayT]]) -> NDArray[np.float64]:
        """The logarithm to base 2 of each target's smooth rank, (B,); see `ur4rec.evaluation.metrics.SmoothRanks`."""
        totals = tuple(self._total(name, snapshots[name]) for name in MODULES) if self._normalised else None
        fuse = lru_cache(maxsize=1)(partial(self._fused, snapshots, totals))  # one slice is scored once
        own_B = np.zeros(len(self._targets_B))
        ranks = SmoothRanks(len(own_B))
        for part in self._slices:
            fused_Bs = fuse(part)
            rows, places = self._inside(part, self._rows_B, self._targets_B)
            own_B[rows] = fused_Bs[rows, places]
            ranks.add(fused_Bs, self._candidates(part))
        ranks.measure(self._summed(own_B), self._summed(ranks.moments_3B))
        for part in self._slices:
            ranks.count(fuse(part), self._candidates(part))
        losses_B: NDArray[np.float64] = np.log2(ranks.of(self._summed(ranks.ahead_B)))
        return losses_B

    def _fused(
        self, snapshots: Mapping[str, Snapshot[ArrayT]], totals: tuple[NDArray[np.float32], ...] | None, part: Slice
    ) -> NDArray[np.float32]:
        scores = (self._score(name, snapshots[name], part) for name in MODULES)
        return self._scores.fuse(tuple(scores), part.start, totals)

    def _candidates(self, part: Slice) -> NDArray[np.bool_]:
        """Which of a slice are ranked, (B, s): what is not seen, the targets, and nothing of a slice before it."""
        candidates_Bs = np.ones((len(self._targets_B), self._width), bool)
        candidates_Bs[:, : part.skip] = False
        candidates_Bs[self._inside(part, self._seen_rows_M, self._seen_items_M)] = False
        return candidates_Bs

    def _inside(self, part: Slice, rows_M: Indices, items_M: Indices) -> tuple[Indices, Indices]:
        """Of rows and items what a slice has and no slice before it, and the places there."""
        places_M = items_M - self._first - part.start
        inside_M = (places_M >= part.skip) & (places_M < self._width)
        return rows_M[inside_M], places_M[inside_M]

    def _summed(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over all parts of the items, of the same shape."""
        summed: NDArray[np.float64] = np.sum(self._processes.gather(values)[: self._num_parts], axis=0)
        return summed

    def _score(self, name: str, snapshot: Snapshot[ArrayT], part: Slice) -> ArrayT:
        return self._scores.score(name, snapshot, part.start, self._width)

    def _total(self, name: str, snapshot: Snapshot[ArrayT]) -> NDArray[np.float32]:
        """What normalises the scores of a module, (B, 1)."""
        total = LogSum(len(self._batch.targets_B))
        for part in self._slices:
            total.add(np.asarray(self._score(name, snapshot, part))[:, part.skip :])
        return self._joined(total)[:, None].astype(np.float32)

    def _joined(self, total: LogSum) -> NDArray[np.float64]:
        """The logarithm of the sum over all parts of the items, (B,)."""
        logs_PB = self._processes.gather(total.log())[: self._num_parts]
        joined_B: NDArray[np.float64] = np.logaddexp.reduce(logs_PB)
        return joined_B


def held_out_targets(
    probe: EvaluationBatch,
    items: slice,
    width: int,
    scores: SnapshotScores[ArrayT],
    fusion: str,
    processes: Processes = ONE_PROCESS,
    num_parts: int = 1,
) -> HeldOutTargets[ArrayT]:
    """The rows of a batch that count, as a schedule measures on them."""
    num_valid = probe.num_valid
    batch = probe._replace(
        items_BL=probe.items_BL[:num_valid],
        targets_B=probe.targets_B[:num_valid],
        users_B=None if probe.users_B is None else probe.users_B[:num_valid],
    )
    is_normalised = fusion == "weighted"
    return HeldOutTargets(
        batch, items, width, scores, normalised=is_normalised, processes=processes, num_parts=num_parts
    )
