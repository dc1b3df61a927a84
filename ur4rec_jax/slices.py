"""Ranks and best items of a catalogue that is scored in slices: no more than rows × width scores are held at once.

A loop over the slices, which are all of one shape, is compiled once. On a mesh each device loops over its part of the
items for its part of the histories, and what it found is put together at the end.

Shapes: B rows, L positions, I items, s items of a slice, M coordinates of seen items, S scorers, k places.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from ur4rec.config import FUSIONS_WITH_GRADIENTS, ModelConfig
from ur4rec.data.batches import EvaluationBatch
from ur4rec.schedule.stages import MODULES
from ur4rec.training.scorer import NO_ITEM
from ur4rec_jax.device import send, to_indices
from ur4rec_jax.layout import BATCH, BATCH_SECOND, ITEMS, ONE_DEVICE, Layout
from ur4rec_jax.retriever import Catalogue
from ur4rec_jax.ur4rec import Outputs, UR4Rec, WeightedFusion

if TYPE_CHECKING:
    from ur4rec_jax.compiled import Functions


class ModelScores:
    """The scores of a model, as it is, by some scorers.

    Args:
        functions: The model's.
        arrays: Its parameters, its buffers and the catalogue.
        scorers: Which.
        config: The shape of the model.
        device: Where the arrays are.
        layout: Where they are on a mesh.
    """

    def __init__(
        self,
        functions: "Functions",
        arrays: tuple[Any, Any, Any],
        scorers: tuple[str, ...],
        config: ModelConfig,
        device: jax.Device,
        layout: Layout = ONE_DEVICE,
    ) -> None:
        self._functions = functions
        self._arrays = arrays
        self._scorers = scorers
        self._config = config
        self._device = device
        self._layout = layout

    def __call__(self, items_BL: ArrayLike, users_B: ArrayLike | None) -> Mapping[str, Array]:
        """Scores of every item by scorer, (B, I)."""
        given = to_indices(items_BL), self._users(users_B)
        if self._layout.mesh is None:
            found: Mapping[str, Array] = self._functions.scores(
                *self._arrays, *send(given, self._device), scorers=self._scorers
            )
            return found
        items, users = self._layout.place_histories(*given, self._config.num_items)
        found = self._functions.scores(*self._arrays, items, users, scorers=self._scorers)
        return {name: scores_BI[: len(given[0])] for name, scores_BI in found.items()}

    def rank(self, batch: EvaluationBatch, width: int) -> Mapping[str, tuple[Array, Array]]:
        """Of each scorer the ranks of the targets, (B,), and whether all scores that count are finite.

        Of a catalogue in slices the target's score comes from a product of the same form as those of the slices, so
        that equal items keep equal scores.

        Args:
            batch: The histories and their targets.
            width: The items of a slice.
        """
        rows = self._placed(batch)
        if self._takes_whole_rows(width):
            return {name: rank_batch(each, rows) for name, each in self._whole(rows).items()}
        found: Mapping[str, tuple[Array, Array]] = self._functions.rank(
            *self._arrays, rows, scorers=self._scorers, width=self._layout.width(width)
        )
        return found

    def top(
        self, batch: EvaluationBatch, order: Sequence[str], candidates_I: NDArray[np.bool_] | None, k: int, width: int
    ) -> tuple[Array, Array, Array]:
        """The items in the first k places by the first scorer, (B, k), and what all say of them.

        That is the probabilities that each scorer gives them, (S, B, k), and whether all scores that count are finite.

        Args:
            batch: The histories; their seen items are no candidates.
            order: The scorers.
            candidates_I: Which items are candidates at all; None is every item.
            k: The number of places.
            width: The items of a slice.
        """
        rows = self._placed(batch)
        if self._takes_whole_rows(width):
            scores = self._whole(rows)
            candidates = candidates_I if self._layout.mesh is not None else send(candidates_I, self._device)
            whole: tuple[Array, Array, Array] = top_batch([scores[name] for name in order], rows, candidates, k)
            return whole
        if candidates_I is None or self._layout.mesh is None:
            candidates = send(candidates_I, self._device)
        else:
            candidates = self._layout.place_items(candidates_I)
        arguments = {"scorers": tuple(order), "k": k, "width": self._layout.width(width)}
        in_slices: tuple[Array, Array, Array] = self._functions.top(*self._arrays, rows, candidates, **arguments)
        return in_slices

    def _whole(self, rows: EvaluationBatch) -> Mapping[str, Array]:
        """Scores of every item by scorer, (B, I), of histories on the device."""
        found: Mapping[str, Array] = self._functions.scores(
            *self._arrays, rows.items_BL, rows.users_B, scorers=self._scorers
        )
        return found

    def _takes_whole_rows(self, width: int) -> bool:
        """Whether all items are scored at once: on a mesh, only where a fusion needs it."""
        if self._layout.mesh is None:
            return width == self._config.num_items
        return "fused" in self._scorers and self._config.fusion not in FUSIONS_WITH_GRADIENTS

    def _placed(self, batch: EvaluationBatch) -> EvaluationBatch:
        """The batch on the device, or on a mesh, with rows that make its parts equal."""
        given = batch._replace(items_BL=to_indices(batch.items_BL), users_B=self._users(batch.users_B))
        if self._layout.mesh is not None:
            return self._layout.place_batch(given, self._config.num_items)
        sent: EvaluationBatch = send(given, self._device)
        return sent

    def _users(self, users_B: ArrayLike | None) -> NDArray[np.int32] | None:
        """The users where the model has user texts; if not, none, so that they cause no further compilation."""
        return to_indices(users_B) if self._config.num_users > 0 and users_B is not None else None


@jax.jit
def rank_batch(scores_BI: Array, batch: EvaluationBatch) -> tuple[Array, Array]:
    """Ranks of the targets, and whether all scores that count are finite.

    The rank is 1 + the number of other unseen items that score at least as much as the target: ties count against us.
    The target is never filtered. Rows and coordinates that only fill up are out of range and dropped.
    """
    own_B = scores_BI[jnp.arange(len(scores_BI)), batch.targets_B]
    count = _Count.begin(own_B).add(scores_BI, own_B, batch, _Slice.whole(scores_BI.shape[1]))
    return count.report(batch.num_valid)


@partial(jax.jit, static_argnames="k")
def top_batch(
    scores: Sequence[Array], batch: EvaluationBatch, candidates_I: NDArray[np.bool_] | None, k: int
) -> tuple[Array, Array, Array]:
    """As `ModelScores.top`, of scores of all items, the deciding ones first."""
    masked = _mask(scores, batch, candidates_I, _Slice.whole(scores[0].shape[1]))
    return Best.of(masked, jnp.int32(0), k).report(batch.num_valid)


def rank_in_slices(
    model: "PlacedModel", batch: EvaluationBatch, scorers: tuple[str, ...], width: int
) -> dict[str, tuple[Array, Array]]:
    """What `ModelScores.rank` returns."""

    def count(part: _Part, batch: EvaluationBatch) -> dict[str, _Count]:
        own, totals = part.scores_of_targets(batch, scorers, width)

        def add(items: _Slice, counts: dict[str, _Count]) -> dict[str, _Count]:
            scores = part.score(scorers, items.rows, totals)
            return {name: counts[name].add(scores[name], own[name], batch, items) for name in scorers}

        counts = part.over_slices(width, add, {name: _Count.begin(own[name]) for name in scorers})
        return {name: count.join(model.layout) for name, count in counts.items()}

    counts: dict[str, _Count] = model.over_parts(count, batch, scorers)
    return {name: count.report(batch.num_valid) for name, count in counts.items()}


def top_in_slices(
    model: "PlacedModel",
    batch: EvaluationBatch,
    candidates_I: Array | None,
    scorers: tuple[str, ...],
    k: int,
    width: int,
) -> tuple[Array, Array, Array]:
    """What `ModelScores.top` returns."""

    def find(part: _Part, batch: EvaluationBatch, candidates_I: Array | None) -> tuple[Array, ...]:
        totals = part.totals(scorers, width)

        def add(items: _Slice, best: Best) -> Best:
            scores = part.score(scorers, items.rows, totals)
            candidates_s = None if candidates_I is None else items.rows(candidates_I)
            masked = _mask([scores[name] for name in scorers], batch, candidates_s, items)
            return best.join(Best.of(masked, items.first, k))

        found: Best = part.over_slices(width, add, Best.none(len(batch.items_BL), len(scorers), k))
        return tuple(found.join_parts(model.layout))

    lie = BATCH, BATCH_SECOND, BATCH_SECOND
    best = Best(*model.over_parts(find, batch, scorers, candidates_I, out_specs=lie))
    return best.report(batch.num_valid)


class PlacedModel(NamedTuple):
    """A model's arrays, where they are, and what makes a model of them."""

    merge: Callable[[Any, Any], UR4Rec]
    """Makes the model of parameters and buffers."""
    layout: Layout
    """Where they are."""
    params: Any
    """The parameters."""
    buffers: Any
    """The rest."""
    catalogue: Catalogue
    """What the retriever knows of items."""

    def over_parts(
        self,
        function: Callable[..., Any],
        batch: EvaluationBatch,
        scorers: tuple[str, ...],
        *trees: Any,
        out_specs: Any = None,
    ) -> Any:
        """What a function finds on each device with its parts of the arrays, for all histories.

        Args:
            function: Of a `_Part`, its part of the batch and of the trees.
            batch: The histories.
            scorers: By which they are scored.
            *trees: Arrays with a value per item, or None.
            out_specs: How what it finds lies; None is a row per history.
        """
        users_B = None if batch.users_B is None else jnp.asarray(batch.users_B)
        model = self.merge(self.params, self.buffers)
        encoded = model.encode(jnp.asarray(batch.items_BL), scorers, self.catalogue, users_B)

        def of_part(params: Any, buffers: Any, catalogue: Catalogue, encoded: Outputs, batch: Any, *trees: Any) -> Any:
            part = _Part(self.merge(params, buffers), catalogue, encoded)
            return function(part, batch._replace(seen_rows_M=self.layout.rows_here(batch)), *trees)

        layout = self.layout
        arrays = layout.specs(self.params), layout.specs(self.buffers), layout.catalogue_specs(self.catalogue)
        specs = (*arrays, BATCH, layout.batch_specs(batch), *[layout.table] * len(trees))
        found = layout.over_catalogue(of_part, specs, out_specs or BATCH)
        return found(*self[2:], encoded, batch, *trees)


class _Slice(NamedTuple):
    """Items that are scored at once."""

    start: Array
    """Where they begin in a table."""
    first: Array
    """The first item."""
    is_new_s: Array
    """Which of them are items that no earlier slice had."""

    @classmethod
    def whole(cls, num_items: int) -> "_Slice":
        """All items."""
        return cls(jnp.int32(0), jnp.int32(0), jnp.full(num_items, True))

    def rows(self, table: Array) -> Array:
        """Their rows of a table."""
        return jax.lax.dynamic_slice_in_dim(table, self.start, len(self.is_new_s))

    def places(self, items: Any) -> Array:
        """Where items are in the slice; out of range if they are not in it."""
        places, width = items - self.first, len(self.is_new_s)
        return jnp.where((places >= 0) & (places < width), places, width)


class _Part(NamedTuple):
    """A device's part of the items, and what the model says of its part of the histories."""

    model: UR4Rec
    """The model with this part of its tables."""
    catalogue: Catalogue
    """What the retriever knows of these items."""
    encoded: Outputs
    """Of the histories; computed once for all slices."""

    def score(
        self,
        scorers: tuple[str, ...],
        take: Callable[[Array], Array],
        totals: Sequence[Array] | None,
    ) -> dict[str, Array]:
        """Scores of the items whose rows ``take`` takes; ``totals`` as they are returned below."""
        return self.model.score_items(self.encoded, scorers, self.catalogue, take, totals)

    def over_slices(self, width: int, add: Callable[[_Slice, Any], Any], begin: Any) -> Any:
        """What ``add`` accumulates from each slice.

        As in `ur4rec.training.slices`, the last slice begins with items of the one before.
        """
        layout, num_rows = self.model.layout, len(self.catalogue.keys_Id)

        def body(number: Array, so_far: Any) -> Any:
            start = jnp.minimum(number * width, num_rows - width)
            places_s = jnp.arange(width)
            first = start + layout.first_item(num_rows)
            is_new_s = layout.are_items(first + places_s, places_s >= number * width - start)
            return add(_Slice(start, first, is_new_s), so_far)

        return jax.lax.fori_loop(0, -(-num_rows // width), body, begin)

    def totals(self, scorers: tuple[str, ...], width: int) -> tuple[Array, ...] | None:
        """What normalises each module's scores, (B, 1), if the fusion needs it."""
        if "fused" not in scorers or not isinstance(self.model.fusion, WeightedFusion):
            return None

        def add(items: _Slice, logs: tuple[Array, ...]) -> tuple[Array, ...]:
            scores = self.score(MODULES, items.rows, None)
            parts = [jax.nn.logsumexp(jnp.where(items.is_new_s, scores[name], -jnp.inf), axis=1) for name in MODULES]
            return tuple(jnp.logaddexp(log, part) for log, part in zip(logs, parts, strict=True))

        assert self.encoded.hidden_Nd is not None
        none_B = jnp.full(len(self.encoded.hidden_Nd), -jnp.inf)
        logs = self.over_slices(width, add, (none_B, none_B))
        return tuple(self.model.layout.join_logs(log_B)[:, None] for log_B in logs)

    def scores_of_targets(
        self, batch: EvaluationBatch, scorers: tuple[str, ...], width: int
    ) -> tuple[dict[str, Array], tuple[Array, ...] | None]:
        """The score of each row's target, (B,), as they are in the slices: from the same products; and the totals."""
        totals, num_rows = self.totals(scorers, width), len(batch.items_BL)
        num_parts = -(-num_rows // width)
        targets_Ps = jnp.resize(jnp.asarray(batch.targets_B), (num_parts, width))
        rows_Ps = jnp.resize(jnp.arange(num_rows), (num_parts, width))

        def one(given: tuple[Array, Array]) -> dict[str, Array]:
            targets_s, rows_s = given
            scores = self.score(scorers, lambda table: self.model.layout.take_here(table, targets_s), totals)
            return {name: scores[name][rows_s, jnp.arange(width)] for name in scorers}

        found = jax.lax.map(one, (targets_Ps, rows_Ps))
        return {name: values_Ps.reshape(-1)[:num_rows] for name, values_Ps in found.items()}, totals


def _mask(
    scores: Sequence[Array], batch: EvaluationBatch, candidates_s: ArrayLike | None, items: _Slice
) -> list[Array]:
    """The scores of a slice without those of what is no candidate, or was in an earlier slice."""
    places_M, is_candidate_s = items.places(batch.seen_items_M), items.is_new_s
    if candidates_s is not None:
        is_candidate_s &= jnp.asarray(candidates_s)
    return [
        jnp.where(is_candidate_s, each.at[batch.seen_rows_M, places_M].set(-jnp.inf, mode="drop"), -jnp.inf)
        for each in scores
    ]


class _Count(NamedTuple):
    """Counts the items that are ranked before targets, one slice after the other."""

    ranks_B: Array
    are_finite_B: Array

    @classmethod
    def begin(cls, own_B: Array) -> "_Count":
        """Before the first slice."""
        return cls(jnp.ones(len(own_B), jnp.int32), jnp.isfinite(own_B))

    def add(self, scores_Bs: Array, own_B: Array, batch: EvaluationBatch, items: _Slice) -> "_Count":
        """Count a slice, without the seen items in it and those that were in an earlier slice."""
        below_B = jnp.nextafter(own_B, -jnp.inf)  # counts for nothing
        below_M = below_B.at[batch.seen_rows_M].get(mode="fill")
        scores_Bs = scores_Bs.at[batch.seen_rows_M, items.places(batch.seen_items_M)].set(below_M, mode="drop")
        is_own_Bs = jnp.arange(scores_Bs.shape[1]) == (jnp.asarray(batch.targets_B) - items.first)[:, None]
        scores_Bs = jnp.where(is_own_Bs | ~items.is_new_s, below_B[:, None], scores_Bs)
        are_finite_B = self.are_finite_B & jnp.isfinite(scores_Bs).all(1)
        return _Count(self.ranks_B + (scores_Bs >= own_B[:, None]).sum(1), are_finite_B)

    def join(self, layout: Layout) -> "_Count":
        """Together with those of the other parts of the items."""
        if layout.mesh is None:
            return self
        return _Count(layout.sum(self.ranks_B - 1, ITEMS) + 1, layout.sum(~self.are_finite_B, ITEMS) == 0)

    def report(self, num_valid: ArrayLike) -> tuple[Array, Array]:
        """The ranks, and whether all scores of the rows that count are finite."""
        return self.ranks_B, (self.are_finite_B | (jnp.arange(len(self.ranks_B)) >= jnp.asarray(num_valid))).all()


class Best(NamedTuple):
    """The best items so far of each row, best first, what all scorers give them, and the sums of what they give all."""

    items_Bk: Array
    values_SBk: Array
    logs_SB: Array

    @classmethod
    def none(cls, num_rows: int, num_scorers: int, k: int) -> "Best":
        """Before the first slice."""
        lowest_SBk = jnp.full((num_scorers, num_rows, k), -jnp.inf)
        return cls(jnp.full((num_rows, k), NO_ITEM, jnp.int32), lowest_SBk, lowest_SBk[:, :, 0])

    @classmethod
    def of(cls, scores: Sequence[Array], first: Array, k: int) -> "Best":
        """Of items that begin with ``first``; of equal scores, those with the lower numbers."""
        items_Bk = jax.lax.top_k(scores[0], min(k, scores[0].shape[1]))[1]
        values_SBk = jnp.stack([jnp.take_along_axis(scores_Bs, items_Bk, axis=1) for scores_Bs in scores])
        return cls(items_Bk + first, values_SBk, jnp.stack([jax.nn.logsumexp(each, axis=1) for each in scores]))

    def join(self, later: "Best") -> "Best":
        """Together with those of items with higher numbers."""
        items_Bj = jnp.concatenate([self.items_Bk, later.items_Bk], axis=1)
        values_SBj = jnp.concatenate([self.values_SBk, later.values_SBk], axis=2)
        return self._pick(items_Bj, values_SBj, jnp.logaddexp(self.logs_SB, later.logs_SB))

    def join_parts(self, layout: Layout) -> "Best":
        """Together with those of the other parts of the items."""
        if layout.mesh is None:
            return self
        items_PBk, values_PSBk = jax.lax.all_gather((self.items_Bk, self.values_SBk), ITEMS)
        items_Bj = jnp.concatenate(list(items_PBk), axis=1)
        values_SBj = jnp.concatenate(list(values_PSBk), axis=2)
        return self._pick(items_Bj, values_SBj, jax.vmap(layout.join_logs)(self.logs_SB))

    def report(self, num_valid: ArrayLike) -> tuple[Array, Array, Array]:
        """The items, their probabilities by all scorers, and whether the scores of the rows that count are finite."""
        is_item_Bk = self.values_SBk[0] > -jnp.inf
        shares_SBk = jnp.exp(self.values_SBk - self.logs_SB[:, :, None])
        counts_B = jnp.arange(self.logs_SB.shape[1]) < jnp.asarray(num_valid)
        are_finite_SB = jnp.isfinite(self.logs_SB) | jnp.isneginf(self.logs_SB)  # the logarithm of no candidates
        finite = (are_finite_SB | ~counts_B).all()
        return jnp.where(is_item_Bk, self.items_Bk, NO_ITEM), jnp.where(is_item_Bk, shares_SBk, 0), finite

    def _pick(self, items_Bj: Array, values_SBj: Array, logs_SB: Array) -> "Best":
        """The best of some items; of equal scores, those that come first."""
        places_Bk = jax.lax.top_k(values_SBj[0], self.items_Bk.shape[1])[1]
        items_Bk = jnp.take_along_axis(items_Bj, places_Bk, axis=1)
        return Best(items_Bk, jnp.take_along_axis(values_SBj, places_Bk[None], axis=2), logs_SB)
