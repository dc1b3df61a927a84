"""Ranks and best items of a catalogue that is scored in slices: no more than rows × width scores are held at once.

A loop over the slices, which are all of one shape, is compiled once.

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

from ur4rec.config import ModelConfig
from ur4rec.data.batches import EvaluationBatch
from ur4rec.schedule.stages import MODULES
from ur4rec.training.scorer import NO_ITEM
from ur4rec_jax.device import send, to_indices
from ur4rec_jax.retriever import Catalogue
from ur4rec_jax.ur4rec import UR4Rec, WeightedFusion

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
    """

    def __init__(
        self,
        functions: "Functions",
        arrays: tuple[Any, Any, Any],
        scorers: tuple[str, ...],
        config: ModelConfig,
        device: jax.Device,
    ) -> None:
        self._functions = functions
        self._arrays = arrays
        self._scorers = scorers
        self._config = config
        self._device = device

    def __call__(self, items_BL: ArrayLike, users_B: ArrayLike | None) -> Mapping[str, Array]:
        """Scores of every item by scorer, (B, I)."""
        given = send((to_indices(items_BL), self._users(users_B)), self._device)
        found: Mapping[str, Array] = self._functions.scores(*self._arrays, *given, scorers=self._scorers)
        return found

    def rank(self, batch: EvaluationBatch, width: int) -> Mapping[str, tuple[Array, Array]]:
        """Of each scorer the ranks of the targets, (B,), and whether all scores that count are finite.

        Of a catalogue in slices the target's score comes from a product of the same form as those of the slices, so
        that equal items keep equal scores.

        Args:
            batch: The histories and their targets.
            width: The items of a slice.
        """
        batch = self._sent(batch)
        if width == self._config.num_items:
            scores = self._functions.scores(*self._arrays, batch.items_BL, batch.users_B, scorers=self._scorers)
            return {name: rank_batch(each, batch) for name, each in scores.items()}
        found: Mapping[str, tuple[Array, Array]] = self._functions.rank(
            *self._arrays, batch, scorers=self._scorers, width=width
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
        batch, candidates = self._sent(batch), send(candidates_I, self._device)
        if width == self._config.num_items:
            scores = self._functions.scores(*self._arrays, batch.items_BL, batch.users_B, scorers=self._scorers)
            whole: tuple[Array, Array, Array] = top_batch([scores[name] for name in order], batch, candidates, k)
            return whole
        arguments = {"scorers": tuple(order), "k": k, "width": width}
        in_slices: tuple[Array, Array, Array] = self._functions.top(*self._arrays, batch, candidates, **arguments)
        return in_slices

    def _sent(self, batch: EvaluationBatch) -> EvaluationBatch:
        """A batch on the device."""
        given = batch._replace(items_BL=to_indices(batch.items_BL), users_B=self._users(batch.users_B))
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
    count = _Count.begin(own_B).add(scores_BI, own_B, batch, jnp.int32(0), jnp.int32(0))
    return count.report(batch.num_valid)


@partial(jax.jit, static_argnames="k")
def top_batch(
    scores: Sequence[Array], batch: EvaluationBatch, candidates_I: NDArray[np.bool_] | None, k: int
) -> tuple[Array, Array, Array]:
    """As `ModelScores.top`, of scores of all items, the deciding ones first."""
    masked = _mask(scores, batch, candidates_I, jnp.int32(0), jnp.int32(0))
    return Best.of(masked, jnp.int32(0), k).report(batch.num_valid)


def rank_in_slices(
    model: UR4Rec, catalogue: Catalogue, batch: EvaluationBatch, scorers: tuple[str, ...], width: int
) -> dict[str, tuple[Array, Array]]:
    """What `ModelScores.rank` returns."""
    score = _score_function(model, catalogue, batch, scorers, width)
    own = _scores_of_targets(score, batch, scorers, width)

    def add(start: Array, skip: Array, counts: dict[str, _Count]) -> dict[str, _Count]:
        scores = score(_rows_from(start, width))
        return {name: counts[name].add(scores[name], own[name], batch, start, skip) for name in scorers}

    counts = _over_slices(model, width, add, {name: _Count.begin(own[name]) for name in scorers})
    return {name: count.report(batch.num_valid) for name, count in counts.items()}


def top_in_slices(
    model: UR4Rec,
    catalogue: Catalogue,
    batch: EvaluationBatch,
    candidates_I: Array | None,
    scorers: tuple[str, ...],
    k: int,
    width: int,
) -> tuple[Array, Array, Array]:
    """What `ModelScores.top` returns."""
    score = _score_function(model, catalogue, batch, scorers, width)

    def add(start: Array, skip: Array, best: Best) -> Best:
        scores = score(_rows_from(start, width))
        inside_s = None if candidates_I is None else _rows_from(start, width)(candidates_I)
        masked = _mask([scores[name] for name in scorers], batch, inside_s, start, skip)
        return best.join(Best.of(masked, start, k))

    best: Best = _over_slices(model, width, add, Best.none(len(batch.items_BL), len(scorers), k))
    return best.report(batch.num_valid)


def _score_function(
    model: UR4Rec, catalogue: Catalogue, batch: EvaluationBatch, scorers: tuple[str, ...], width: int
) -> Callable[[Callable[[Array], Array]], dict[str, Array]]:
    """The scores of a batch's histories, encoded once, for the items whose rows a function takes."""
    users_B = None if batch.users_B is None else jnp.asarray(batch.users_B)
    encoded = model.encode(jnp.asarray(batch.items_BL), scorers, catalogue, users_B)
    totals: tuple[Array, ...] | None = None
    if "fused" in scorers and isinstance(model.fusion, WeightedFusion):

        def add(start: Array, skip: Array, logs: tuple[Array, ...]) -> tuple[Array, ...]:
            scores = model.score_items(encoded, MODULES, catalogue, _rows_from(start, width))
            is_new_s = jnp.arange(width) >= skip
            parts = [jax.nn.logsumexp(jnp.where(is_new_s, scores[name], -jnp.inf), axis=1) for name in MODULES]
            return tuple(jnp.logaddexp(log, part) for log, part in zip(logs, parts, strict=True))

        none_B = jnp.full(len(batch.items_BL), -jnp.inf)
        totals = tuple(log_B[:, None] for log_B in _over_slices(model, width, add, (none_B, none_B)))
    return lambda take: model.score_items(encoded, scorers, catalogue, take, totals)


def _over_slices(model: UR4Rec, width: int, add: Callable[[Array, Array, Any], Any], begin: Any) -> Any:
    """What ``add`` accumulates from the first item of each slice, and the number of its items that were there before.

    As in `ur4rec.training.slices`, the last slice begins with items of the one before.
    """
    num_items = model.config.num_items

    def body(number: Array, so_far: Any) -> Any:
        start = jnp.minimum(number * width, num_items - width)
        return add(start, number * width - start, so_far)

    return jax.lax.fori_loop(0, -(-num_items // width), body, begin)


def _rows_from(start: Array, width: int) -> Callable[[Array], Array]:
    return lambda table: jax.lax.dynamic_slice_in_dim(table, start, width)


def _scores_of_targets(
    score: Callable[[Callable[[Array], Array]], dict[str, Array]],
    batch: EvaluationBatch,
    scorers: tuple[str, ...],
    width: int,
) -> dict[str, Array]:
    """The score of each row's target, (B,), as they are in the slices: from the same products."""
    num_rows = len(batch.items_BL)
    num_parts = -(-num_rows // width)
    targets_Ps = jnp.resize(jnp.asarray(batch.targets_B), (num_parts, width))
    rows_Ps = jnp.resize(jnp.arange(num_rows), (num_parts, width))

    def one(given: tuple[Array, Array]) -> dict[str, Array]:
        targets_s, rows_s = given
        scores = score(lambda table: table[targets_s])
        return {name: scores[name][rows_s, jnp.arange(width)] for name in scorers}

    found = jax.lax.map(one, (targets_Ps, rows_Ps))
    return {name: values_Ps.reshape(-1)[:num_rows] for name, values_Ps in found.items()}


def _places(batch: EvaluationBatch, start: Array, width: int) -> Array:
    """Where the seen items are in a slice, (M,); out of range if they are not in it."""
    places_M = batch.seen_items_M - start
    return jnp.where((places_M >= 0) & (places_M < width), places_M, width)


def _mask(
    scores: Sequence[Array], batch: EvaluationBatch, candidates_s: ArrayLike | None, start: Array, skip: Array
) -> list[Array]:
    """The scores of a slice without those of what is no candidate, or was in an earlier slice."""
    width = scores[0].shape[1]
    places_M, is_candidate_s = _places(batch, start, width), jnp.arange(width) >= skip
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

    def add(self, scores_Bs: Array, own_B: Array, batch: EvaluationBatch, start: Array, skip: Array) -> "_Count":
        """Count a slice, without the seen items in it and those that were in an earlier slice."""
        width = scores_Bs.shape[1]
        below_B = jnp.nextafter(own_B, -jnp.inf)  # counts for nothing
        below_M = below_B.at[batch.seen_rows_M].get(mode="fill")
        scores_Bs = scores_Bs.at[batch.seen_rows_M, _places(batch, start, width)].set(below_M, mode="drop")
        places_s = jnp.arange(width)
        is_own_Bs = places_s == (jnp.asarray(batch.targets_B) - start)[:, None]
        scores_Bs = jnp.where(is_own_Bs | (places_s < skip), below_B[:, None], scores_Bs)
        are_finite_B = self.are_finite_B & jnp.isfinite(scores_Bs).all(1)
        return _Count(self.ranks_B + (scores_Bs >= own_B[:, None]).sum(1), are_finite_B)

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
        places_Bk = jax.lax.top_k(values_SBj[0], self.items_Bk.shape[1])[1]
        return Best(
            jnp.take_along_axis(items_Bj, places_Bk, axis=1),
            jnp.take_along_axis(values_SBj, places_Bk[None], axis=2),
            jnp.logaddexp(self.logs_SB, later.logs_SB),
        )

    def report(self, num_valid: ArrayLike) -> tuple[Array, Array, Array]:
        """The items, their probabilities by all scorers, and whether the scores of the rows that count are finite."""
        is_item_Bk = self.values_SBk[0] > -jnp.inf
        shares_SBk = jnp.exp(self.values_SBk - self.logs_SB[:, :, None])
        counts_B = jnp.arange(self.logs_SB.shape[1]) < jnp.asarray(num_valid)
        are_finite_SB = jnp.isfinite(self.logs_SB) | jnp.isneginf(self.logs_SB)  # the logarithm of no candidates
        finite = (are_finite_SB | ~counts_B).all()
        return jnp.where(is_item_Bk, self.items_Bk, NO_ITEM), jnp.where(is_item_Bk, shares_SBk, 0), finite
