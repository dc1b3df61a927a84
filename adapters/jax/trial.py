"""`Trial` on a device: the same steps as the core's, without branches.

Shapes: C candidates, L turns of the longest, V levels of length, G groups.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adapters.jax.rules import DeviceFacts, DeviceVerdict, choose, device_step, standard_scores
from alternator import Reason, Trial
from alternator.rules.trial import MAX_LEVEL, NOBODY, TO_KEPT, TO_START


@device_step.register
def trial_step(rule: Trial, state: Any, facts: DeviceFacts) -> tuple[Any, DeviceVerdict]:
    """`Trial.step`."""
    tables = _Tables.of(rule, facts.num_modules)
    places_C = jnp.arange(len(tables.sizes_C))
    pending, between = state.pending, state.rung == NOBODY
    done = state.done + facts.updated
    limit = tables.length(state)
    alive_C, values = _take_in(rule, state, facts)
    judges = pending == state.incumbent
    others_C = (alive_C > 0) & (places_C != state.incumbent)
    over, halves, wins, best, score, left_C, unknown = _judge(rule, state, alive_C, values, others_C)
    ends = ~judges & (done >= limit)
    starts, stays = ends & between, ends & ~between & (state.candidate == state.incumbent)
    moves = ends & ~between & ~stays
    later_C = others_C & (places_C > state.candidate)
    following = jnp.where(later_C.any(), later_C.argmax(), state.incumbent)
    first = jnp.where(state.incumbent == 0, 1, 0)
    over, halves, wins = judges & over, judges & halves, judges & wins
    candidate = jnp.where(starts, first, jnp.where(moves, following, state.candidate))
    candidate = jnp.where(wins, best, jnp.where(halves, left_C.argmax(), candidate))
    kept_C = jnp.where(halves, left_C | (places_C == state.incumbent), alive_C > 0)
    restarts = starts | stays | moves | wins | halves
    new = state._replace(
        round=state.round + over,
        rung=jnp.where(over, NOBODY, jnp.where(starts, 0, state.rung + halves)),
        candidate=candidate,
        done=jnp.where(restarts, 0, done),
        incumbent=jnp.where(wins, best, state.incumbent),
        pending=jnp.where(stays | moves, state.candidate, NOBODY),
        returns=jnp.where(wins, TO_KEPT, jnp.where(moves | halves, TO_START, 0)),
        alive=jnp.where(starts, 1, jnp.where(over, 0, kept_C)),
        values=jnp.where(starts, 0, values),
    )
    new = jax.tree.map(lambda old, each: each.astype(old.dtype), state, new)
    judged = choose(
        Reason.TRIED_NO_BETTER, (unknown, Reason.UNMEASURED), (wins, Reason.TRIED_BETTER), (halves, Reason.HALVED)
    )
    bound = jnp.where(unknown, rule.groups, jnp.where(halves, -rule.z, rule.z))
    sequence_L, length = tables.turns_CL[new.candidate], tables.sizes_C[new.candidate]
    wanted = sequence_L[new.done % length]
    return new, DeviceVerdict(
        switch=wanted != facts.active,
        reason=jnp.where(judges, judged, choose(Reason.TRIED, (between, Reason.UNTIL_TRIAL))),
        value=jnp.where(judges, jnp.where(unknown, 0, score), done),
        limit=jnp.where(judges, bound, limit),
        target=wanted,
    )


class _Tables(NamedTuple):
    """The candidates as arrays."""

    turns_CL: jax.Array
    """Their turns; what follows the last is undefined."""
    sizes_C: jax.Array
    """The number of turns."""
    lengths_CV: jax.Array
    """Updated steps of a trial."""
    holds_CV: jax.Array
    """Updated steps until the next trial."""

    @classmethod
    def of(cls, rule: Trial, num_turns: int) -> "_Tables":
        """Those of a rule, for that number of turns."""
        sequences = rule.sequences(num_turns)
        longest = max(map(len, sequences))
        at_start, levels = rule.init(num_turns), range(MAX_LEVEL + 1)

        def lengths(rung: int) -> jax.Array:
            states = [
                [at_start._replace(candidate=each, round=level, rung=rung) for level in levels]
                for each in range(len(sequences))
            ]
            return jnp.asarray([[rule.length(state, num_turns) for state in row] for row in states])

        sizes_C = jnp.asarray([len(sequence) for sequence in sequences])
        padded = [[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences]
        return cls(jnp.asarray(padded), sizes_C, lengths(0), lengths(NOBODY))

    def length(self, state: Any) -> jax.Array:
        """`Trial.length`."""
        level = jnp.minimum(state.round + jnp.maximum(state.rung, 0), MAX_LEVEL)
        between = state.rung == NOBODY
        return jnp.where(between, self.holds_CV[state.candidate, level], self.lengths_CV[state.candidate, level])


def _take_in(rule: Trial, state: Any, facts: DeviceFacts) -> tuple[jax.Array, jax.Array]:
    """Who is still in the trial, and what has been measured, with the values of the candidate tried last."""
    known, pending = facts.ring_lengths_N[0] >= rule.groups, state.pending != NOBODY
    index = jnp.maximum(state.pending, 0)
    alive_C = jnp.where(pending & ~known, state.alive.at[index].set(0), state.alive)
    measured = jax.lax.dynamic_update_slice(state.values, facts.rings_NR[0][-rule.groups :], (index * rule.groups,))
    return alive_C, jnp.where(pending & known, measured, state.values)


def _judge(
    rule: Trial, state: Any, alive_C: jax.Array, values: jax.Array, others_C: jax.Array
) -> tuple[jax.Array, ...]:
    """The end of a rung: whether the trial is over, halves or is won, by whom and with which score, and who is left."""
    values_CG = values.reshape(-1, rule.groups)
    scores_C = jnp.where(others_C, standard_scores(values_CG[state.incumbent] - values_CG), -jnp.inf)
    count, last = others_C.sum(), (state.rung >= rule.halvings) | (others_C.sum() == 1)
    # Differences to the incumbent first: of near values float32 keeps these, not the means.
    means_C = jnp.where(others_C, (values_CG - values_CG[state.incumbent]).mean(1), jnp.inf)
    best = jnp.where(last, means_C.argmin(), scores_C.argmax())
    unknown = (alive_C[state.incumbent] == 0) | (count == 0)
    wins = ~unknown & last & (scores_C[best] > rule.z)
    ranks_C = jnp.argsort(jnp.argsort(-scores_C, stable=True), stable=True)
    left_C = others_C & (scores_C > -rule.z) & (ranks_C < count - count // 2)
    halves = ~unknown & ~last & left_C.any()
    return ~halves, halves, wins, best, scores_C[best], left_C, unknown
