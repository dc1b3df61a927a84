"""Trial: let candidate turns train from one snapshot, and go on with the one that a held-out loss likes best."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import fsum, isfinite
from statistics import NormalDist
from typing import Any, NamedTuple

from alternator.checks import check_costs, check_fraction, check_integer, check_switch_costs, plain, set_fields
from alternator.errors import ConfigurationError, quoted
from alternator.reasons import Reason
from alternator.rule import Facts, Verdict
from alternator.rules._names import by_name
from alternator.rules._paired import standard_score

MAX_LEVEL = 12
"""The number of doublings of a trial's length at most, and of times that the time between trials is multiplied."""
LONGEST = 2**30
"""Updated steps of a trial, or between two trials, at most."""
NOBODY = -1
"""In place of a candidate: none is to be measured; in place of a rung: no trial is under way."""
TO_START, TO_KEPT = 1, 2
"""Where the model returns: to where the trial began, or to where the best challenger ended."""


class TrialState(NamedTuple):
    """Where a rule is in its trials.

    Attributes:
        round: The number of trials that are over.
        rung: The number of the trial's rounds of halving that are over; `NOBODY` between trials.
        candidate: Who trains: between trials the incumbent.
        done: Updated steps of that candidate in this trial, or of the incumbent since the last one.
        incumbent: The candidate that trains between trials.
        pending: The candidate that has just been tried and is to be measured; `NOBODY` if none is.
        returns: Where the model is to return before it trains on, `TO_START` or `TO_KEPT`; 0 where it is to stay.
        alive: Per candidate, 1 while it is in the trial; else 0.
        values: What was measured in this rung, ``groups`` values per candidate, one candidate after the other.
    """

    round: int
    rung: int
    candidate: int
    done: int
    incumbent: int
    pending: int
    returns: int
    alive: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def begins(self) -> bool:
        """Whether a trial begins with the next step: the time to take the snapshot to which it returns."""
        return self.rung == 0 and self.done == 0 and self.pending == NOBODY and not self.returns


@by_name()
@dataclass(frozen=True, kw_only=True)
class Trial:
    """Try every candidate from one snapshot, and train what a held-out loss likes best; trials grow ever rarer.

    A candidate is a short sequence of turns that repeats: one turn, or an order and a share such as eight steps of one
    module and one of another. The first candidate trains for ``start`` steps. Then a trial: each other candidate trains
    at the same cost, its held-out losses are recorded, and the model returns to where the trial began; the incumbent
    comes last, and trains on from there if it stays. The one with the lowest mean loss takes over if it is better than
    the incumbent with ``confidence``, over the groups of held-out examples, which are the same for all, and trains on
    from where it ended. From trial to trial the lengths double and the time between them quadruples: effects that show
    late are found late, and the share of the steps that trials take falls.

    What training did cannot be undone later, and too short a trial likes what learns fast, not what ends well. So the
    first trial comes at once and is long. With many candidates, ``halvings`` saves steps: short trials, of whose
    challengers the better half, without those that are clearly worse than the incumbent, goes into a further rung of
    twice the length (successive halving: Jamieson & Talwalkar, AISTATS 2016).

    Measure what you want in the end, in a form that a few examples cannot dominate: where accuracy counts, one minus
    the probability of the right class says more than the accuracy of few examples, and is not misled by a few that are
    very wrong, as the likelihood is.

    `Trials` does what this rule cannot: it takes snapshots, measures, and returns. Training losses say nothing to this
    rule: record none (``losses={}`` with an adapter). A trial of which fewer than ``groups`` losses are known changes
    nothing, with the reason `Reason.UNMEASURED`.

    Use it where one module's training may harm, or where nothing but training can tell an order or a share: few
    examples, costly modules, blocks under a memory cap. It leaves a module frozen as long as no trial speaks for it. Of
    what shows only after a multiple of a trial's length, such as which order of blocks overfits later, it knows
    nothing.

    On a device in float32, decisions agree with these unless two candidates' standard scores, or one and its limit, lie
    within 1e-3 · (1 + z) of each other, z being the normal quantile of ``confidence``, or two mean losses within 1e-5
    of the largest loss.

    Args:
        candidates: Sequences of turns by their place in the alternator's order, the first beginning with 0; None: each
            turn alone.
        costs: Cost of an updated step of each turn, in any unit (measured seconds, say); None: all cost the same.
        switch_costs: Cost of beginning each turn after another one, in the unit of ``costs``: refreshing a cache,
            loading optimizer state. A sequence pays them each time it repeats. None: it costs nothing.
        steps: Length of the first trial, in updated steps of the first candidate; others train at the same cost.
        start: Updated steps of the first candidate before the first trial.
        hold: Updated steps of the first candidate between the first and the second trial; of others, at the same cost.
        halvings: The number of times that the challengers of a trial are halved at most.
        confidence: One-sided confidence with which a candidate must be better than the incumbent, above 0.5, below 1.
        groups: The number of held-out losses of a measurement.

    Raises:
        ConfigurationError: A parameter is out of range, there are fewer than two candidates, or a turn does not exist.

    Example:
        >>> from alternator import Alternator, Trial, Trials
        >>> turns, weight = ("both", "left", "right"), {"left": 8.0, "right": 8.0}
        >>> def losses():
        ...     return [weight["left"] ** 2 - weight["right"] + group for group in range(4)]
        >>> alternator = Alternator(turns, rule=Trial(steps=4, groups=4))
        >>> trials = Trials(alternator, snapshot=lambda: dict(weight), restore=weight.update, losses=losses)
        >>> for step in range(40):
        ...     trials.before_step()
        ...     for name in weight if alternator.active == "both" else (alternator.active,):
        ...         weight[name] -= 0.1
        ...     decision = alternator.advance()
        >>> decision.active
        'left'
    """

    candidates: tuple[tuple[int, ...], ...] | None = None
    costs: tuple[float, ...] | None = None
    switch_costs: tuple[float, ...] | None = None
    steps: int = 50
    start: int = 1
    hold: int = 1000
    halvings: int = 0
    confidence: float = 0.7
    groups: int = 16

    def __post_init__(self) -> None:
        set_fields(
            self,
            candidates=None if self.candidates is None else _check_candidates(self.candidates),
            costs=None if self.costs is None else check_costs(self.costs, "turn"),
            switch_costs=check_switch_costs(self.switch_costs, "turn"),
            steps=check_integer("steps", self.steps, 1, LONGEST),
            start=check_integer("start", self.start, 1, LONGEST),
            hold=check_integer("hold", self.hold, 1, LONGEST),
            halvings=check_integer("halvings", self.halvings, 0),
            confidence=check_fraction("confidence", self.confidence, 0.5, 1),
            groups=check_integer("groups", self.groups, 2),
        )
        if self.switch_costs is not None and (self.costs is None or len(self.costs) != len(self.switch_costs)):
            raise ConfigurationError(
                f"switch_costs must be as many as costs, in the same unit, got {self.switch_costs} with {self.costs}"
            )

    @cached_property
    def z(self) -> float:
        """The normal quantile of ``confidence``: the limit of the test, in standard errors."""
        return NormalDist().inv_cdf(self.confidence)

    @property
    def ring_size(self) -> int:
        """The values of one measurement."""
        return self.groups

    def sequences(self, num_turns: int) -> tuple[tuple[int, ...], ...]:
        """The candidates for that number of turns."""
        return tuple((turn,) for turn in range(num_turns)) if self.candidates is None else self.candidates

    def init(self, num_modules: int) -> TrialState:
        """The first candidate trains; nothing has been tried."""
        sequences = self.sequences(num_modules)
        if (last := max(chain(*sequences))) >= num_modules:
            raise ConfigurationError(f"candidates must name turns by their places, 0 to {num_modules - 1}, got {last}")
        if self.costs is not None and len(self.costs) != num_modules:
            raise ConfigurationError(f"costs must be one per turn ({num_modules}), got {len(self.costs)}")
        count = len(sequences)
        return TrialState(0, NOBODY, 0, 0, 0, NOBODY, 0, (0,) * count, (0.0,) * (count * self.groups))

    def is_possible(self, state: TrialState, facts: Facts) -> bool:
        """Whether a saved state can be one of this rule."""
        count = len(state.alive)
        return (
            min(state.round, state.done) >= 0
            and NOBODY <= state.rung < count
            and {state.candidate, state.incumbent} <= {*range(count)}
            and NOBODY <= state.pending < count
            and 0 <= state.returns <= TO_KEPT
            and {*state.alive} <= {0, 1}
            and all(map(isfinite, state.values))
        )

    def step(self, state: TrialState, facts: Facts) -> tuple[TrialState, Verdict]:
        """Take in what was measured, then go on with the candidate, with the next one, or with the winner."""
        state = state._replace(returns=0, done=state.done + facts.updated)
        reason, value = (Reason.UNTIL_TRIAL if state.rung == NOBODY else Reason.TRIED), float(state.done)
        limit = float(self.length(state, facts.num_modules))
        pending = state.pending
        if pending != NOBODY:
            state = self._take_in(state, facts)
        if pending == state.incumbent:
            state, reason, value, limit = self._judge(state)
        elif state.done >= limit:
            state = self._next(state)
        sequence = self.sequences(facts.num_modules)[state.candidate]
        wanted = sequence[state.done % len(sequence)]
        return state, Verdict(wanted != facts.active, reason, value, limit, target=wanted)

    def length(self, state: TrialState, num_turns: int) -> int:
        """Updated steps of the candidate that trains: in this rung of this trial, or until the next trial."""
        if state.rung == NOBODY:
            steps = self.hold << 2 * min(state.round - 1, MAX_LEVEL) if state.round else self.start
        else:
            steps = self.steps << min(state.round + state.rung, MAX_LEVEL)
        return min(max(1, round(steps * self.relative_cost(state.candidate, num_turns))), LONGEST)

    def is_last_rung(self, state: TrialState) -> bool:
        """Whether the winner of this rung wins the trial."""
        return state.rung >= self.halvings or sum(state.alive) == 2

    def may_win(self, state: TrialState, measured: Sequence[float]) -> bool:
        """Whether the challenger that has just ended is the best so far of a last rung, and its end is to be kept.

        Args:
            state: The rule's state, which wants a measurement.
            measured: The values measured.
        """
        if state.returns != TO_START or not self.is_last_rung(state):
            return False
        earlier = [index for index in self._challengers(state) if index < state.pending]
        return all(_mean(measured) < _mean(self._values(state, index)) for index in earlier)

    def relative_cost(self, candidate: int, num_turns: int) -> float:
        """The cost of a step of the first candidate over that of this one: how many of its steps cost the same."""
        if self.costs is None:
            return 1.0
        sequences = self.sequences(num_turns)
        return self._step_cost(sequences[0]) / self._step_cost(sequences[candidate])

    def _step_cost(self, sequence: tuple[int, ...]) -> float:
        """The mean cost of a step of a sequence that repeats, what its switches cost included."""
        assert self.costs is not None
        begins = self.switch_costs or (0.0,) * len(self.costs)
        before = (sequence[-1], *sequence)
        costs = [
            self.costs[turn] + (begins[turn] if turn != last else 0)
            for last, turn in zip(before, sequence, strict=False)
        ]
        return fsum(costs) / len(costs)

    def _next(self, state: TrialState) -> TrialState:
        """The next candidate's turn to be tried; the incumbent's comes last, and it trains on from there."""
        if state.rung == NOBODY:
            alive, values = (1,) * len(state.alive), (0.0,) * len(state.values)
            state = state._replace(rung=0, done=0, alive=alive, values=values)
            return state._replace(candidate=self._challengers(state)[0])
        if state.candidate == state.incumbent:
            return state._replace(pending=state.incumbent, done=0)
        later = [index for index in self._challengers(state) if index > state.candidate]
        following = (*later, state.incumbent)[0]
        return state._replace(pending=state.candidate, candidate=following, done=0, returns=TO_START)

    def _take_in(self, state: TrialState, facts: Facts) -> TrialState:
        """Keep what was measured of the candidate tried last; one of which too little is known is out."""
        measured, pending = list(facts.rings[0]), state.pending
        state = state._replace(pending=NOBODY)
        if len(measured) < self.groups:
            return state._replace(alive=_with(state.alive, pending, (0,)))
        return state._replace(values=_with(state.values, pending * self.groups, measured))

    def _judge(self, state: TrialState) -> tuple[TrialState, str, float, float]:
        """The end of a rung: the better half goes on, the last one takes over, or nothing changes."""
        if not state.alive[state.incumbent] or sum(state.alive) == 1:
            return self._over(state), Reason.UNMEASURED, 0, self.groups
        own = self._values(state, state.incumbent)
        scores = {
            index: standard_score([mine - its for mine, its in zip(own, self._values(state, index), strict=True)])
            for index in self._challengers(state)
        }
        if self.is_last_rung(state):
            best = min(scores, key=lambda index: _mean(self._values(state, index)))
            if scores[best] <= self.z:
                return self._over(state), Reason.TRIED_NO_BETTER, scores[best], self.z
            won = state._replace(incumbent=best, candidate=best, done=0, returns=TO_KEPT)
            return self._over(won), Reason.TRIED_BETTER, scores[best], self.z
        best = max(scores, key=scores.__getitem__)
        left = sorted((each for each in scores if scores[each] > -self.z), key=scores.__getitem__, reverse=True)
        left = left[: len(scores) - len(scores) // 2]
        if not left:
            return self._over(state), Reason.TRIED_NO_BETTER, scores[best], self.z
        alive = tuple(int(index in left or index == state.incumbent) for index in range(len(state.alive)))
        state = state._replace(rung=state.rung + 1, alive=alive, candidate=min(left), done=0, returns=TO_START)
        return state, Reason.HALVED, scores[best], -self.z

    def _over(self, state: TrialState) -> TrialState:
        return state._replace(rung=NOBODY, round=state.round + 1, alive=(0,) * len(state.alive))

    def _challengers(self, state: TrialState) -> list[int]:
        return [index for index, alive in enumerate(state.alive) if alive and index != state.incumbent]

    def _values(self, state: TrialState, candidate: int) -> tuple[float, ...]:
        return state.values[candidate * self.groups : (candidate + 1) * self.groups]


def unmeasured_trial(step: int) -> str:
    """The warning of a trial that compared nothing."""
    return (
        f"a Trial rule decides by the held-out losses that Trials measures, but the trial that ended with step {step:,}"
        " lacks them, so that nothing was compared (reported once): build alternator.Trials(alternator, ...), which "
        "also undoes what was tried, and call its before_step() before each training step"
    )


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def _with(values: tuple[Any, ...], start: int, new: Sequence[Any]) -> tuple[Any, ...]:
    return (*values[:start], *new, *values[start + len(new) :])


def _check_candidates(candidates: object) -> tuple[tuple[int, ...], ...]:
    """The candidates as tuples of integers; refuses what could not be told apart or could not begin."""
    given = plain(candidates)
    if not isinstance(given, (list, tuple)):
        raise ConfigurationError(f"candidates must be a tuple of sequences of turns, got {quoted(candidates)}")
    found = tuple(
        tuple(check_integer("candidates", turn, 0) for turn in (each if isinstance(each, (list, tuple)) else (each,)))
        for each in map(plain, given)
    )
    if len(set(found)) < max(len(found), 2) or () in found:
        raise ConfigurationError(f"candidates must be two or more different sequences of turns, got {quoted(found)}")
    if found[0][0] != 0:
        raise ConfigurationError(
            f"candidates must begin with one that begins with turn 0, which trains first, got {quoted(found)}"
        )
    return found
