"""Payoff: train everything together, and freeze what has stopped paying for its work."""

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import inf, isfinite
from statistics import NormalDist
from typing import NamedTuple

from alternator.checks import amortised, check_costs, check_fraction, check_integer, check_switch_costs, set_fields
from alternator.errors import ConfigurationError
from alternator.reasons import Reason
from alternator.rule import Facts, Verdict
from alternator.rules._looks import is_next_look
from alternator.rules._names import by_name
from alternator.rules._paired import standard_score

MAX_DOUBLINGS = 30
"""The maximum number of doublings of ``retry_after``: enough to reach any ``max_retry_after``."""


class PayoffState(NamedTuple):
    """What has been measured.

    Attributes:
        next_look: The number of values of this tenure at which the active turn is judged next.
        left_out: Per turn, what the modules that it leaves out paid per unit of cost when last measured.
        confirmations: Per turn, the number of measurements in a row that speak for switching to it. For a smaller turn:
            measurements of the joint turn in which what it leaves out did not pay. For the joint turn: measurements of
            the smaller turn that trains in which that paid less than what it leaves out.
    """

    next_look: int
    left_out: tuple[float, ...]
    confirmations: tuple[int, ...]


@by_name(series="one number per turn")
@dataclass(frozen=True, kw_only=True)
class Payoff:
    """Train all modules together, and leave out those that clearly do not pay for their work.

    The alternator takes turns instead of single modules: its first name is the joint turn, which trains all modules,
    and each further name is a smaller turn, which leaves some of them out. The value recorded for a turn is not a loss
    but a payoff: by how much one step of the turn has lowered a held-out loss, as `Payoffs` measures it by undoing the
    other modules' training. A measurement records ``groups`` values, one per group of held-out examples, for every turn
    whose modules have all trained.

    Let J and P be the payoffs of the joint turn and of a smaller one, c and d their costs. What the smaller turn leaves
    out pays (J - P) / (c - d) per unit of cost; all modules together pay J / c. When the former is below ``share`` of
    the latter (where nothing is saved: below 0) with ``confidence`` (over the groups), in ``confirmations``
    measurements in a row, the smaller turn takes over; of several such turns, the one with the strongest evidence. (The
    standard error covers the choice of held-out examples; requiring several measurements covers the ups and downs of
    training itself.)

    Losses say nothing to this rule. A turn of which fewer than ``groups`` values are known holds, or ends, with the
    reason `Reason.UNMEASURED`; while that is so of the joint turn, or of every smaller one, all modules train.

    What did not pay may pay again: the joint turn returns after ``retry_after`` updated steps, or earlier if the
    smaller turn, in ``confirmations`` measurements in a row, pays less per unit of cost than what it leaves out did
    when last measured. If the first measurement after its return finds the same again, the smaller turn takes over at
    once and for twice as long, up to ``max_retry_after``: the longer a module has been idle, the more rarely it is
    tried.

    Use it where modules can train together at less than the sum of their costs, as they can where they share a forward
    pass. It never leaves a module frozen for more than ``max_retry_after`` updated steps.

    On a device in float32, decisions agree with these unless two means in standard errors lie within 1e-3 · (1 + z) of
    each other or of their limit -z, z being the normal quantile of ``confidence``, or two payoffs per unit of cost
    within 1e-5 of the largest payoff over the smallest difference of costs.

    A value that is measured against another player (a GAN's) is no progress: take `Cycle` there.

    Args:
        costs: Cost of an updated step of each turn, in any unit (measured seconds, say); the joint turn's comes first.
            A turn may cost as much: then modules are left out only where leaving them out pays in itself.
        share: Modules are left out when they pay less per cost than this share of what all together pay per cost.
        confidence: One-sided confidence of that test, above 0.5 and below 1: 0.84 is about one standard error.
        confirmations: The number of measurements in a row that must find it.
        groups: The number of values per measurement.
        min_steps: Minimum length of a tenure, in updated steps.
        retry_after: Updated steps after which the joint turn returns for the first time; doubled whenever that changes
            nothing.
        max_retry_after: Maximum of ``retry_after`` after all doublings, in updated steps.
        switch_costs: Cost of beginning a tenure of each turn, in the unit of ``costs``: refreshing a cache, loading
            optimizer state. Those of smaller turns are spread over ``retry_after`` steps. None: it costs nothing.

    Raises:
        ConfigurationError: A parameter is out of range, ``costs`` are not one per turn, or a smaller turn costs
            more than the joint one.

    Example:
        >>> from alternator import Alternator, Payoff
        >>> alternator = Alternator(("both", "left", "right"), rule=Payoff(costs=(3, 2, 2), min_steps=4, groups=4))
        >>> for step in range(8):
        ...     alternator.record("both", 0.9 + step / 100)
        ...     alternator.record("left", 0.9 + step / 100)
        ...     alternator.record("right", 0.1)
        ...     decision = alternator.advance()
        >>> decision.active
        'left'
    """

    costs: tuple[float, ...]
    share: float = 0.3
    confidence: float = 0.84
    confirmations: int = 2
    groups: int = 16
    min_steps: int = 20
    retry_after: int = 100
    max_retry_after: int = 800
    switch_costs: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        switch_costs = check_switch_costs(self.switch_costs, "turn")
        set_fields(self, costs=check_costs(self.costs, "turn"), switch_costs=switch_costs)
        if len(self.costs) < 2 or self.costs[0] < max(self.costs[1:]):
            raise ConfigurationError(
                f"costs must begin with the joint turn's, which no other may exceed, got {self.costs}: "
                "a turn that leaves modules out does less"
            )
        if switch_costs is not None and len(switch_costs) != len(self.costs):
            raise ConfigurationError(f"switch_costs must be one per turn ({len(self.costs)}), got {len(switch_costs)}")
        min_steps = check_integer("min_steps", self.min_steps, 1)
        retry_after = check_integer("retry_after", self.retry_after, min_steps)
        set_fields(
            self,
            share=check_fraction("share", self.share, 0, 1),
            confidence=check_fraction("confidence", self.confidence, 0.5, 1),
            confirmations=check_integer("confirmations", self.confirmations, 1),
            groups=check_integer("groups", self.groups, 2),
            min_steps=min_steps,
            retry_after=retry_after,
            max_retry_after=check_integer("max_retry_after", self.max_retry_after, retry_after),
        )

    @cached_property
    def z(self) -> float:
        """The normal quantile of ``confidence``: the limit of the test, in standard errors."""
        return NormalDist().inv_cdf(self.confidence)

    @cached_property
    def saved(self) -> tuple[float, ...]:
        """What a step of each turn costs less than one of the joint turn, what beginning costs included."""
        costs = amortised(self.costs, self.switch_costs, self.retry_after)
        return (0.0, *(self.costs[0] - cost for cost in costs[1:]))

    @property
    def ring_size(self) -> int:
        """The values of one measurement."""
        return self.groups

    def init(self, num_modules: int) -> PayoffState:
        """Nothing measured yet."""
        if len(self.costs) != num_modules:
            raise ConfigurationError(f"costs must be one per turn ({num_modules}), got {len(self.costs)}")
        return PayoffState(self.groups, (0.0,) * num_modules, (0,) * num_modules)

    def is_possible(self, state: PayoffState, facts: Facts) -> bool:
        """Whether a saved state can be one of this rule."""
        return (
            is_next_look(state.next_look, facts, first=self.groups, spacing=self.groups)
            and all(map(isfinite, state.left_out))
            and all(count >= 0 for count in state.confirmations)
        )

    def step(self, state: PayoffState, facts: Facts) -> tuple[PayoffState, Verdict]:
        """Judge the active turn once a measurement is complete."""
        if facts.entered:
            state = state._replace(next_look=self.groups)
        if facts.tenure < self.min_steps:
            return state, Verdict(False, Reason.MIN_STEPS, facts.tenure, self.min_steps)
        wait = self.retry_delay(state.confirmations[facts.active])
        ends, is_measured = facts.active > 0 and facts.tenure >= wait, facts.observed >= self.groups
        if not is_measured:
            return state, Verdict(ends, Reason.UNMEASURED, facts.observed, self.groups, target=0 if ends else None)
        if ends:
            return state, Verdict(True, Reason.STALE, facts.tenure, wait, target=0)
        if facts.observed < state.next_look:
            return state, Verdict(False, Reason.FEW_LOSSES, facts.observed, state.next_look)
        state = state._replace(next_look=facts.observed + self.groups)
        return self._judge_smaller(state, facts) if facts.active else self._judge_joint(state, facts)

    def retry_delay(self, confirmations: int) -> int:
        """Maximum tenure of a smaller turn, in updated steps, after that number of confirmations in a row."""
        doublings = min(max(0, confirmations - self.confirmations), MAX_DOUBLINGS)
        return min(self.retry_after << doublings, self.max_retry_after)

    def _judge_joint(self, state: PayoffState, facts: Facts) -> tuple[PayoffState, Verdict]:
        found = [self._left_out(facts, index) for index in range(facts.num_modules)]
        left_out, scores = (tuple(column) for column in zip(*found, strict=True))
        counts = tuple(n + 1 if score < -self.z else 0 for n, score in zip(state.confirmations, scores, strict=True))
        state = state._replace(left_out=left_out, confirmations=counts)
        target = min(range(facts.num_modules), key=lambda index: (counts[index] < self.confirmations, scores[index]))
        value, most = scores[target], max(len(ring) for ring in islice(facts.rings, 1, None))
        if most < self.groups:
            return state, Verdict(False, Reason.UNMEASURED, most, self.groups)
        if counts[target] >= self.confirmations:
            return state, Verdict(True, Reason.IDLE, value, -self.z, target=target)
        reason = Reason.UNCONFIRMED if counts[target] else Reason.PAYS
        return state, Verdict(False, reason, value, -self.z)

    def _judge_smaller(self, state: PayoffState, facts: Facts) -> tuple[PayoffState, Verdict]:
        paid = _mean(list(facts.rings[facts.active])) / self.costs[facts.active]
        left_out = state.left_out[facts.active]
        less = state.confirmations[0] + 1 if paid < left_out else 0
        if less >= self.confirmations:
            state = state._replace(confirmations=(0,) * facts.num_modules)
            return state, Verdict(True, Reason.LESS_GAIN, paid, left_out, target=0)
        state = state._replace(confirmations=(less, *state.confirmations[1:]))
        return state, Verdict(False, Reason.LESS_UNCONFIRMED if less else Reason.BEST_GAIN, paid, left_out)

    def _left_out(self, facts: Facts, index: int) -> tuple[float, float]:
        """What the modules that a turn leaves out pay per cost, and how many standard errors that is above enough."""
        joint, own = facts.rings[0], facts.rings[index]
        if index == 0 or len(own) < self.groups:
            return 0.0, inf
        cost, saved = self.costs[0], self.saved[index]
        paid = [whole - part for whole, part in zip(joint, own, strict=True)]
        enough = [each - self.share * saved * whole / cost for each, whole in zip(paid, joint, strict=True)]
        return _mean(paid) / (saved if saved > 0 else cost), standard_score(enough)


def _mean(values: list[float]) -> float:
    """The mean; 0 where it is not finite."""
    mean = sum(values) / len(values)
    return mean if isfinite(mean) else 0.0
