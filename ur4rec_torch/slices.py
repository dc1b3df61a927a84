"""Ranks and best items of a catalogue that is scored in slices: no more than rows × width scores are held at once.

Where the catalogue is in parts (`ur4rec_torch.item_shards`), each process goes through its own items; counts are added
up, and the best of all parts joined, at the end.

Shapes: B rows, V of them that count, L positions, I items, s items of a slice, M coordinates of seen items, m of them
in a slice, S scorers, k places.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ur4rec.data.batches import EvaluationBatch
from ur4rec.schedule.stages import MODULES
from ur4rec.training.scorer import NO_ITEM
from ur4rec.training.slices import MULTIPLE, Slice, slices_of
from ur4rec_torch.device import send, to_indices
from ur4rec_torch.item_shards import ItemShard
from ur4rec_torch.retriever import Catalogue
from ur4rec_torch.ur4rec import UR4Rec, WeightedFusion

_FLOAT32_COUNTS = 2**24
"""The whole numbers that float32 adds up exactly."""


class ModelScores:
    """The scores of a model, as it is, by some scorers.

    Args:
        model: The model.
        catalogue: The retriever's.
        device: Where they are.
        scorers: Which.
    """

    def __init__(self, model: UR4Rec, catalogue: Catalogue, device: torch.device, scorers: tuple[str, ...]) -> None:
        self._model = model
        self._catalogue = catalogue
        self._device = device
        self._scorers = scorers

    def __call__(self, items_BL: ArrayLike, users_B: ArrayLike | None) -> Mapping[str, Tensor]:
        """Scores of every item by scorer, (B, I)."""
        users = None if users_B is None else to_indices(users_B, self._device)
        found = self._model.scores(to_indices(items_BL, self._device), self._scorers, self._catalogue, users)
        shard = self._model.shard
        return found if shard is None else {name: shard.columns(scores_BI) for name, scores_BI in found.items()}

    def rank(self, batch: EvaluationBatch, width: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each scorer the ranks of the targets, (V,), and whether all scores that count are finite.

        Of a catalogue in slices the target's score comes from a product of the same form as those of the slices, so
        that equal items keep equal scores.

        Args:
            batch: The histories and their targets.
            width: The items of a slice.
        """
        shard = self._model.shard
        if width == self._model.config.num_items and shard is None:
            return {name: rank_batch(each, batch) for name, each in self(batch.items_BL, batch.users_B).items()}
        score = _SliceScores(self._model, self._catalogue, batch, self._device, self._scorers, width)
        coordinates = _Coordinates.of(batch, self._device, score.first)
        targets_V = to_indices(batch.targets_B[: batch.num_valid], self._device)
        counts = {name: _Count(own_V, targets_V - score.first) for name, own_V in score.at(targets_V).items()}
        for part, scores in score.slices():
            for name, scores_Bs in scores.items():
                counts[name].add(part, scores_Bs[: batch.num_valid], *coordinates.inside(part, score.width))
        found = {name: (count.ranks_V, count.finite()) for name, count in counts.items()}
        return found if shard is None else _add_up(found, shard)

    def top(
        self, batch: EvaluationBatch, order: Sequence[str], candidates_I: NDArray[np.bool_] | None, k: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The items in the first k places by the first scorer, (B, k), and what all say of them.

        That is the probabilities that each scorer gives them, (S, B, k), and whether all scores that count are finite.

        Args:
            batch: The histories; their seen items are no candidates.
            order: The scorers.
            candidates_I: Which items are candidates at all; None is every item.
            k: The number of places.
            width: The items of a slice.
        """
        shard = self._model.shard
        if width == self._model.config.num_items and shard is None:
            scores = self(batch.items_BL, batch.users_B)
            return top_batch([scores[name] for name in order], batch, candidates_I, k)
        score = _SliceScores(self._model, self._catalogue, batch, self._device, self._scorers, width)
        coordinates = _Coordinates.of(batch, self._device, score.first)
        candidates = None if candidates_I is None else send(candidates_I[score.first :], self._device)
        best = Best.none(len(batch.items_BL), len(order), k, self._device)
        for part, scores in score.slices():
            ordered, inside = [scores[name] for name in order], score.places(part)
            _mask(ordered, *coordinates.inside(part, score.width), None if candidates is None else candidates[inside])
            first = score.first + part.start + part.skip
            best = best.join(Best.of([each[:, part.skip :] for each in ordered], first, k))
        return (best if shard is None else best.join_parts(shard)).report(batch.num_valid)


def rank_batch(scores_BI: Tensor, batch: EvaluationBatch) -> tuple[Tensor, Tensor]:
    """Ranks of the targets of the rows that count, (V,), and whether all scores that count are finite.

    The rank is 1 + the number of other unseen items that score at least as much as the target: ties count against us.
    The target is never filtered. The scores are overwritten: each copy of them would be as large as they are.
    """
    targets_V = to_indices(batch.targets_B[: batch.num_valid], scores_BI.device)
    scores_VI = scores_BI[: batch.num_valid]
    count = _Count(scores_VI.gather(1, targets_V.unsqueeze(1)).squeeze(1), targets_V)
    count.add(Slice(0, 0), scores_VI, *_seen(batch, scores_BI.device))
    return count.ranks_V, count.finite()


def top_batch(
    scores: Sequence[Tensor], batch: EvaluationBatch, candidates_I: NDArray[np.bool_] | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ModelScores.top`, of scores of all items, the deciding ones first; they are overwritten."""
    device = scores[0].device
    candidates = None if candidates_I is None else send(candidates_I, device)
    _mask(scores, *_seen(batch, device), candidates)
    return Best.of(scores, 0, k).report(batch.num_valid)


def _seen(batch: EvaluationBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and items of the seen items, (M,) each."""
    rows_M, items_M = (to_indices(each, device) for each in batch.seen)
    return rows_M, items_M


def _add_up(found: Mapping[str, tuple[Tensor, Tensor]], shard: ItemShard) -> dict[str, tuple[Tensor, Tensor]]:
    """The ranks among all items from those among the items of each part, and whether the scores of all are finite."""
    num_better = [ranks_V - 1 for ranks_V, _ in found.values()]
    num_failed = [(~finite).to(torch.int64) for _, finite in found.values()]
    shard.add_up(*num_better, *num_failed)
    return {name: (each_V + 1, count == 0) for name, each_V, count in zip(found, num_better, num_failed, strict=True)}


def _mask(scores: Sequence[Tensor], rows_m: Tensor, items_m: Tensor, candidates_s: Tensor | None) -> None:
    """Take what is no candidate out of the running."""
    for scores_Bs in scores:
        scores_Bs[rows_m, items_m] = -torch.inf
        if candidates_s is not None:
            scores_Bs.masked_fill_(~candidates_s, -torch.inf)


class _SliceScores:
    """The scores of a batch's histories, encoded once, for any of the items that this process has."""

    def __init__(
        self,
        model: UR4Rec,
        catalogue: Catalogue,
        batch: EvaluationBatch,
        device: torch.device,
        scorers: tuple[str, ...],
        width: int,
    ) -> None:
        self._model, self._catalogue, self._scorers, self._shard = model, catalogue, scorers, model.shard
        self.first, self.width, self._num_items = 0, width, model.config.num_items
        if self._shard is not None:  # of one width in all parts, so that equal items have equal scores
            self.first, stop = self._shard.items.start, self._shard.items.stop
            self.width, self._num_items = min(width, -(-self._shard.size // MULTIPLE) * MULTIPLE), stop - self.first
        self._device = device
        users = None if batch.users_B is None else to_indices(batch.users_B, device)
        self._encoded = model.encode(to_indices(batch.items_BL, device), scorers, catalogue, users)
        self._totals = None
        if "fused" in scorers and isinstance(model.fusion, WeightedFusion):
            self._totals = self._sum_up()

    def __call__(self, items: slice | Tensor) -> dict[str, Tensor]:
        return self._model.score_items(self._encoded, self._scorers, self._catalogue, items, self._totals)

    def at(self, items_V: Tensor) -> dict[str, Tensor]:
        """Of each of the first rows, the scores of one item, (V,), from the same products as those of the slices."""
        rows_V = torch.arange(len(items_V), device=items_V.device)
        is_own_V = None
        if self._shard is not None:
            items_V, is_own_V = self._shard.find(items_V)
            items_V = items_V.clamp(max=self._num_items - 1)
        found: dict[str, list[Tensor]] = {name: [] for name in self._scorers}
        for rows_s in torch.split(rows_V, self.width):
            filled_s = items_V[rows_s].repeat(-(-self.width // len(rows_s)))[: self.width]
            for name, scores_Bs in self(filled_s).items():
                found[name].append(scores_Bs[rows_s, rows_V[: len(rows_s)]])
        own = {name: torch.cat(parts) for name, parts in found.items()}
        if self._shard is not None and is_own_V is not None:
            own = {name: each_V.masked_fill(~is_own_V, 0) for name, each_V in own.items()}
            self._shard.add_up(*own.values())
        return own

    def slices(self) -> Iterator[tuple[Slice, dict[str, Tensor]]]:
        """The scores of each slice in turn, (B, s) by scorer."""
        for part in slices_of(self._num_items, self.width):
            yield part, self(self.places(part))

    def places(self, part: Slice) -> slice | Tensor:
        """The places of a slice's items among those of this process; of fewer than a slice, the first fills it up."""
        if part.start >= 0:
            return slice(part.start, part.start + self.width)
        return torch.arange(part.start, part.start + self.width, device=self._device).clamp(min=0)

    def _sum_up(self) -> list[Tensor]:
        """What normalises each module's scores, (B, 1)."""
        logs: list[Tensor | None] = [None, None]
        for part in slices_of(self._num_items, self.width):
            items = slice(part.start + part.skip, part.start + self.width)
            scores = self._model.score_items(self._encoded, MODULES, self._catalogue, items)
            parts = [scores[name].logsumexp(1, keepdim=True) for name in MODULES]
            logs = [each if log is None else torch.logaddexp(log, each) for log, each in zip(logs, parts, strict=True)]
        found = [log for log in logs if log is not None]
        return found if self._shard is None else [self._shard.logsumexp(log_B1) for log_B1 in found]


class _Coordinates(NamedTuple):
    """The seen items of a batch in the order of items, so that those of a slice lie together."""

    rows_M: Tensor
    items_M: Tensor
    sorted_M: NDArray[np.int32]
    """The items again, on the host."""

    @classmethod
    def of(cls, batch: EvaluationBatch, device: torch.device, first: int) -> "_Coordinates":
        """Those of a batch; items are counted from ``first``."""
        rows_M, items_M = batch.seen
        order_M = np.argsort(items_M, kind="stable")
        sorted_M = items_M[order_M] - first
        return cls(to_indices(rows_M[order_M], device), to_indices(sorted_M, device), sorted_M)

    def inside(self, part: Slice, width: int) -> tuple[Tensor, Tensor]:
        """Rows and places of those in a slice, (m,) each."""
        first, last = np.searchsorted(self.sorted_M, [part.start, part.start + width])
        return self.rows_M[first:last], self.items_M[first:last] - part.start


class _Count:
    """Counts the items that are ranked before targets, one slice after the other."""

    def __init__(self, own_V: Tensor, targets_V: Tensor) -> None:
        self.ranks_V = torch.ones_like(targets_V)
        self._own_V, self._targets_V = own_V, targets_V
        self._below_V = torch.nextafter(own_V, torch.full_like(own_V, -torch.inf))  # counts for nothing
        self._lowest_V, self._highest_V = own_V.clone(), own_V.clone()

    def add(self, part: Slice, scores_Vs: Tensor, rows_m: Tensor, items_m: Tensor) -> None:
        """Count a slice, whose scores are overwritten, without the seen items in it."""
        scores_Vs[rows_m, items_m] = self._below_V[rows_m]
        width = scores_Vs.shape[1]
        places_V1 = (self._targets_V - part.start).unsqueeze(1)
        inside_V1 = (places_V1 >= 0) & (places_V1 < width)
        places_V1 = places_V1.clamp(0, width - 1)
        kept_V1 = self._below_V.unsqueeze(1).where(inside_V1, scores_Vs.gather(1, places_V1))
        scores_Vs = scores_Vs.scatter_(1, places_V1, kept_V1)[:, part.skip :]
        self._lowest_V = torch.minimum(self._lowest_V, scores_Vs.amin(1))  # NaN if any score is
        self._highest_V = torch.maximum(self._highest_V, scores_Vs.amax(1))
        counting = torch.float32 if width <= _FLOAT32_COUNTS else torch.float64  # the former is much faster
        self.ranks_V += scores_Vs.ge_(self._own_V.unsqueeze(1)).sum(1, dtype=counting).long()

    def finite(self) -> Tensor:
        """Whether all scores that count are."""
        return (torch.isfinite(self._lowest_V) & torch.isfinite(self._highest_V)).all()


class Best(NamedTuple):
    """The best items so far of each row, best first, what all scorers give them, and the sums of what they give all."""

    items_Bk: Tensor
    values_SBk: Tensor
    logs_SB: Tensor

    @classmethod
    def none(cls, num_rows: int, num_scorers: int, k: int, device: torch.device) -> "Best":
        """Before the first slice."""
        lowest_SBk = torch.full((num_scorers, num_rows, k), -torch.inf, device=device)
        return cls(torch.full((num_rows, k), NO_ITEM, device=device), lowest_SBk, lowest_SBk[:, :, 0])

    @classmethod
    def of(cls, scores: Sequence[Tensor], first: int, k: int) -> "Best":
        """Of items that begin with ``first``."""
        items_Bk = _first(scores[0], min(k, scores[0].shape[1]))
        values_SBk = torch.stack([scores_Bs.gather(1, items_Bk) for scores_Bs in scores])
        return cls(items_Bk + first, values_SBk, torch.stack([scores_Bs.logsumexp(1) for scores_Bs in scores]))

    def join(self, later: "Best") -> "Best":
        """Together with those of items with higher numbers."""
        values_SBj = torch.cat([self.values_SBk, later.values_SBk], 2)
        k = self.items_Bk.shape[1]
        places_Bk = values_SBj[0].argsort(dim=1, descending=True, stable=True)[:, :k]
        return Best(
            torch.cat([self.items_Bk, later.items_Bk], 1).gather(1, places_Bk),
            values_SBj.gather(2, places_Bk.expand(len(values_SBj), -1, -1)),
            torch.logaddexp(self.logs_SB, later.logs_SB),
        )

    def join_parts(self, shard: ItemShard) -> "Best":
        """Together with those of the other parts of the catalogue."""
        first, *others = (Best(*parts) for parts in zip(*(shard.gather(each) for each in self), strict=True))
        return reduce(Best.join, others, first)

    def report(self, num_valid: int) -> tuple[Tensor, Tensor, Tensor]:
        """The items, their probabilities by all scorers, and whether the scores of the rows that count are finite."""
        is_item_Bk = self.values_SBk[0] > -torch.inf
        shares_SBk = (self.values_SBk - self.logs_SB.unsqueeze(2)).exp()
        logs_SV = self.logs_SB[:, :num_valid]
        finite = (torch.isfinite(logs_SV) | torch.isneginf(logs_SV)).all()  # the logarithm of no candidates
        return self.items_Bk.where(is_item_Bk, NO_ITEM), shares_SBk.where(is_item_Bk, 0.0), finite


def _first(scores_BI: Tensor, k: int) -> Tensor:
    """The items of the k largest scores, (B, k); of equal scores, those with the lower numbers."""
    values_Bj, items_Bj = scores_BI.topk(min(k + 1, scores_BI.shape[1]))
    items_Bk = items_Bj[:, :k].sort(1).values
    items_Bk = items_Bk.gather(1, scores_BI.gather(1, items_Bk).argsort(dim=1, descending=True, stable=True))
    last_B, next_B = values_Bj[:, k - 1], values_Bj[:, -1]
    are_tied_B = (last_B == next_B) & (last_B > -torch.inf)  # topk leaves open which of equal scores it takes
    if values_Bj.shape[1] > k and are_tied_B.any():
        items_Bk[are_tied_B] = scores_BI[are_tied_B].argsort(dim=1, descending=True, stable=True)[:, :k]
    return items_Bk
