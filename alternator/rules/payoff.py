"""Payoff: train everything together, and freeze what has stopped paying for its work."""

from dataclasses import dataclass
from functools import cached_property
from math import copysign, inf, isfinite, sqrt
from statistics import NormalDist
from typing import NamedTuple

from alternator.checks import check_costs, check_fraction, check_integer
from alternator.errors import ConfigurationError
from alternator.reasons import Reason
from alternator.rule import Facts, Verdict

MAX_DOUBLINGS = 30
"""More of them reach any ``max_retry_after``."""


class PayoffState(NamedTuple):
    """What has been measured.

    Attributes:
        next_look: Values of this tenure at which the active turn is judged next.
        rest: Per turn, what the modules that it leaves out paid per cost when they were last measured.
        sure: Per turn, measurements in a row that speak for it: for a smaller turn, those of the joint turn by which
            what it leaves out surely paid too little; for the joint turn, those of the smaller one that trains by which
            it paid less than what it leaves out.
    """

    next_look: int
    rest: tuple[float, ...]
    sure: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Payoff:
    """Train the joint turn, the first name; leave modules out of it while they surely do not pay for their work.

    What is recorded for a turn is no loss but a payoff: by how much a step of its modules has lowered a held-out loss,
    as `Payoffs` measures it by undoing the other modules' training. It comes as ``groups`` values at a time, one per
    group of held-out examples, for every turn whose modules have trained.

    Let J and P be the payoffs of the joint turn and of a smaller one, c and d their costs. What the smaller one leaves
    out pays (J - P) / (c - d) per unit of cost, all together pay J / c. When the former is surely (with ``confidence``,
    over the groups) below ``share`` of the latter, at ``confirmations`` measurements in a row, the smaller turn takes
    over; of several, the one of which that is surest. (The standard error is that over held-out examples; that training
    itself goes up and down is what the further measurements are for.)

    What did not pay may pay again: the joint turn returns after ``retry_after`` updated steps, or earlier if the
    smaller turn, at ``confirmations`` measurements in a row, pays less per cost than what it leaves out last did. If
    the very next measurement after that is as sure, the smaller turn takes over again and for twice as long, up to
    ``max_retry_after``: the longer a module has been idle, the more rarely it is tried.

    Use it where modules can train together at less than the sum of their costs, as they can where they share a forward
    pass. It never leaves a module frozen for more than ``max_retry_after`` updated steps.

    On a device in float32, decisions agree with these unless two sureties lie within 1e-3 · (1 + z) of each other or of
    their limit -z, z being the normal quantile of ``confidence``, or two payoffs per cost within 1e-5 of the largest
    payoff over the smallest difference of costs.

    Raises:
        ConfigurationError: A parameter is out of range, ``costs`` are not one per turn, or the joint turn's cost is not
            the largest.

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
    """Cost of an updated step of each turn, in any unit (measured seconds, say); the joint turn's comes first."""
    share: float = 0.3
    """Modules are left out when they pay less per cost than this share of what all together pay per cost."""
    confidence: float = 0.84
    """One-sided confidence of the test that they do, above 0.5 and below 1: 0.84 is about one standard error."""
    confirmations: int = 2
    """Measurements in a row that must find it."""
    groups: int = 16
    """Values per measurement."""
    min_steps: int = 20
    """Least length of a tenure, in updated steps."""
    retry_after: int = 100
    """Updated steps after which the joint turn returns for the first time; doubled whenever it finds nothing new."""
    max_retry_after: int = 800
    """Updated steps after which the joint turn returns at the latest."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "costs", check_costs(self.costs, "turn"))
        if len(self.costs) < 2 or self.costs[0] <= max(self.costs[1:]):
            raise ConfigurationError(
                f"costs must begin with the joint turn's, which must be the largest, got {self.costs}: "
                "a turn that costs no less would leave modules out for nothing"
            )
        check_fraction("share", self.share, 0, 1)
        check_fraction("confidence", self.confidence, 0.5, 1)
        check_integer("confirmations", self.confirmations, 1)
        check_integer("groups", self.groups, 2)
        check_integer("min_steps", self.min_steps, 1)
        check_integer("retry_after", self.retry_after, self.min_steps)
        check_integer("max_retry_after", self.max_retry_after, self.retry_after)

    @cached_property
    def z(self) -> float:
        """Standard errors by which the test must be sure."""
        return NormalDist().inv_cdf(self.confidence)

    @property
    def ring_size(self) -> int:
        """One measurement."""
        return self.groups

    def init(self, num_modules: int) -> PayoffState:
        """Nothing measured yet."""
        if len(self.costs) != num_modules:
            raise ConfigurationError(f"costs must be one per turn ({num_modules}), got {len(self.costs)}")
        return PayoffState(self.groups, (0.0,) * num_modules, (0,) * num_modules)

    def step(self, state: PayoffState, facts: Facts) -> tuple[PayoffState, Verdict]:
        """Judge the active turn once a measurement is complete."""
        if facts.entered:
            state = state._replace(next_look=self.groups)
        if facts.tenure < self.min_steps:
            return state, Verdict(False, Reason.MIN_STEPS, facts.tenure, self.min_steps)
        wait = self.retry_delay(state.sure[facts.active])
        if facts.active and facts.tenure >= wait:
            return state, Verdict(True, Reason.STALE, facts.tenure, wait, target=0)
        if facts.observed < state.next_look:
            return state, Verdict(False, Reason.FEW_LOSSES, facts.observed, state.next_look)
        state = state._replace(next_look=facts.observed + self.groups)
        return self._judge_smaller(state, facts) if facts.active else self._judge_joint(state, facts)

    def retry_delay(self, sure: int) -> int:
        """Updated steps that a smaller turn may take once ``sure`` measurements in a row have said so."""
        doublings = min(max(0, sure - self.confirmations), MAX_DOUBLINGS)
        return min(self.retry_after << doublings, self.max_retry_after)

    def _judge_joint(self, state: PayoffState, facts: Facts) -> tuple[PayoffState, Verdict]:
        found = [self._left_out(facts, index) for index in range(facts.num_modules)]
        rest, sureness = (tuple(column) for column in zip(*found, strict=True))
        sure = tuple(count + 1 if each < -self.z else 0 for count, each in zip(state.sure, sureness, strict=True))
        state = state._replace(rest=rest, sure=sure)
        target = min(range(facts.num_modules), key=lambda index: (sure[index] < self.confirmations, sureness[index]))
        value = sureness[target]
        if sure[target] >= self.confirmations:
            return state, Verdict(True, Reason.IDLE, value, -self.z, target=target)
        reason = Reason.UNCONFIRMED if sure[target] else Reason.PAYS
        return state, Verdict(False, reason, value, -self.z)

    def _judge_smaller(self, state: PayoffState, facts: Facts) -> tuple[PayoffState, Verdict]:
        paid = _mean(list(facts.rings[facts.active])) / self.costs[facts.active]
        rest = state.rest[facts.active]
        less = state.sure[0] + 1 if paid < rest else 0
        if less >= self.confirmations:
            state = state._replace(sure=(0,) * facts.num_modules)
            return state, Verdict(True, Reason.LESS_GAIN, paid, rest, target=0)
        state = state._replace(sure=(less, *state.sure[1:]))
        return state, Verdict(False, Reason.LESS_UNCONFIRMED if less else Reason.BEST_GAIN, paid, rest)

    def _left_out(self, facts: Facts, index: int) -> tuple[float, float]:
        """What the modules that a turn leaves out pay per cost, and by how many standard errors that is enough."""
        joint, own = facts.rings[0], facts.rings[index]
        if index == 0 or len(own) < self.groups:
            return 0.0, inf
        saved = self.costs[0] - self.costs[index]
        paid = [(whole - part) / saved for whole, part in zip(joint, own, strict=True)]
        enough = [each - self.share * whole / self.costs[0] for each, whole in zip(paid, joint, strict=True)]
        return _mean(paid), _sureness(enough)


def _mean(values: list[float]) -> float:
    """The mean; 0 where it is not finite."""
    mean = sum(values) / len(values)
    return mean if isfinite(mean) else 0.0


def _sureness(values: list[float]) -> float:
    """By how many standard errors the mean is above 0; infinite where all are equal, or where that cannot be told."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) * (value - mean) for value in values) / (len(values) * (len(values) - 1))
    if not isfinite(variance):
        return inf
    return mean / sqrt(variance) if variance > 0 else copysign(inf, mean)
