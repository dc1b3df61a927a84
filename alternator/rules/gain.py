"""Gain: train the module that learns most per unit of cost."""

from dataclasses import dataclass
from functools import cached_property
from math import inf, isnan
from typing import NamedTuple

from alternator.checks import amortised, check_costs, check_integer, check_switch_costs, set_fields
from alternator.errors import ConfigurationError
from alternator.reasons import Reason
from alternator.rule import Facts, Verdict
from alternator.rules._looks import MIN_LOSSES, is_next_look
from alternator.rules._names import by_name
from alternator.rules._regression import robust_gain


class GainState(NamedTuple):
    """What has been measured.

    Attributes:
        next_look: The losses of this tenure at which the active module is measured next, at least `MIN_LOSSES`.
        rival: The best score of another module at the last look of this tenure.
        scores: Per module, its score when it was last measured; infinite before the first time, so that it is tried.
    """

    next_look: int
    rival: float
    scores: tuple[float, ...]


@by_name()
@dataclass(frozen=True, kw_only=True)
class Gain:
    """Train the module whose loss falls fastest per unit of cost, and every module as often as ``max_wait`` demands.

    A module's score is its learning progress (Graves et al. 2017) over its cost: the relative fall of its loss per
    updated step of its own, by `robust_gain` over the newest ``window`` losses of its tenure. The active module is
    measured again after every ``min_steps`` losses (at least 10); when another module's last score is above its own,
    that module takes over.

    Scores of waiting modules grow old, and a noisy one may be too low by chance. So a module that has not trained for
    ``max_wait`` updated steps comes next whatever its score, the one that has waited longest first. No module waits
    more than max_wait + (N - 2) · min_steps updated steps, N being the number of modules; with two, ``max_wait``.

    Use it where modules differ in cost or in how much they still learn, so that shares matter more than turns. It
    compares noisy numbers without asking how certain they are; `Trend` asks.

    On a device in float32, decisions agree with these unless two scores lie within 1e-6 / cost of each other.

    A loss that is measured against another player (a GAN's) is no progress: take `Cycle` there.

    Args:
        min_steps: Minimum length of a tenure, in updated steps.
        max_wait: Updated steps after which a waiting module trains whatever its score.
        window: The maximum number of losses that a score is measured on.
        costs: Cost of an updated step of each module, in any unit (measured seconds, say); None: all cost the same.
        switch_costs: Cost of beginning a tenure of each module, in the unit of ``costs``, spread over ``min_steps``
            steps; None: beginning costs nothing.

    Raises:
        ConfigurationError: A parameter is out of range, ``costs`` are not one per module, or ``max_wait`` is so short
            that the scores would never be compared.

    Example:
        >>> from alternator import Alternator, Gain
        >>> alternator = Alternator(("learns", "stuck"), rule=Gain())
        >>> loss = 1.0
        >>> for step in range(1000):
        ...     loss *= 0.999 if alternator.active == "learns" else 1.0
        ...     decision = alternator.observe({"learns": loss, "stuck": 0.5})
        >>> alternator.stats().modules["learns"].training_ratio
        0.91
    """

    min_steps: int = 30
    max_wait: int = 300
    window: int = 60
    costs: tuple[float, ...] | None = None
    switch_costs: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        min_steps = check_integer("min_steps", self.min_steps, 1)
        set_fields(
            self,
            min_steps=min_steps,
            max_wait=check_integer("max_wait", self.max_wait, min_steps),
            window=check_integer("window", self.window, MIN_LOSSES),
            costs=None if self.costs is None else check_costs(self.costs, "module"),
            switch_costs=check_switch_costs(self.switch_costs, "module"),
        )
        if self.switch_costs is not None and (self.costs is None or len(self.costs) != len(self.switch_costs)):
            raise ConfigurationError(
                f"switch_costs must be as many as costs, in the same unit, got {self.switch_costs} with {self.costs}"
            )

    @cached_property
    def step_costs(self) -> tuple[float, ...] | None:
        """The cost of a step of each module, what beginning costs included."""
        return None if self.costs is None else amortised(self.costs, self.switch_costs, self.min_steps)

    @property
    def tenure_limit(self) -> tuple[str, float]:
        """The parameter that limits how long others wait, and its value; see `Rule`."""
        return "max_wait", self.max_wait

    @property
    def ring_size(self) -> int:
        """The window."""
        return self.window

    def init(self, num_modules: int) -> GainState:
        """Nothing measured yet."""
        if self.costs is not None and len(self.costs) != num_modules:
            raise ConfigurationError(f"costs must be one per module ({num_modules}), got {len(self.costs)}")
        minimum = (num_modules - 1) * self.min_steps
        if self.max_wait < minimum:
            raise ConfigurationError(
                f"max_wait must be at least (modules - 1) · min_steps = {minimum}, got {self.max_wait}: "
                "some module would always be overdue and no score would be compared"
            )
        return GainState(MIN_LOSSES, inf, (inf,) * num_modules)

    def is_possible(self, state: GainState, facts: Facts) -> bool:
        """Whether a saved state can be one of this rule."""
        spacing = max(self.min_steps, MIN_LOSSES)
        return is_next_look(state.next_look, facts, first=MIN_LOSSES, spacing=spacing) and not any(
            map(isnan, (state.rival, *state.scores))
        )

    def step(self, state: GainState, facts: Facts) -> tuple[GainState, Verdict]:
        """Turn to a module that has waited too long; otherwise measure the active module and compare."""
        if facts.entered:
            state = state._replace(next_look=MIN_LOSSES, rival=inf)
        stale = self._stale(facts) if min(facts.trained_at) <= facts.updates - self.max_wait else None
        if facts.tenure < self.min_steps:
            return state, Verdict(False, Reason.MIN_STEPS, facts.tenure, self.min_steps, target=stale)
        if stale is not None:
            return state, Verdict(True, Reason.STALE, facts.idle(stale), self.max_wait, target=stale)
        if facts.observed >= state.next_look:
            state, target = self._look(state, facts)
            if target is not None:
                own = state.scores[facts.active]
                return state, Verdict(True, Reason.LESS_GAIN, own, state.rival, target=target)
        elif state.next_look == MIN_LOSSES:
            return state, Verdict(False, Reason.FEW_LOSSES, facts.observed, MIN_LOSSES)
        return state, Verdict(False, Reason.BEST_GAIN, state.scores[facts.active], state.rival)

    def _stale(self, facts: Facts) -> int | None:
        """The module that has waited longest, if at least max_wait steps; non-finite losses make way for it too."""
        overdue = [index for index in _others(facts) if facts.idle(index) >= self.max_wait]
        return max(overdue, key=facts.idle, default=None)

    def _look(self, state: GainState, facts: Facts) -> tuple[GainState, int | None]:
        active = facts.active
        count = min(facts.observed, self.window)
        rate = robust_gain(list(facts.rings[active])[-count:]).rate
        cost = self.step_costs[active] if self.step_costs else 1.0
        scores = (*state.scores[:active], rate * facts.observed / facts.tenure / cost, *state.scores[active + 1 :])
        target = max(_others(facts), key=scores.__getitem__)
        state = GainState(facts.observed + max(self.min_steps, MIN_LOSSES), scores[target], scores)
        return state, target if scores[target] > scores[active] else None


def _others(facts: Facts) -> list[int]:
    """All modules except the active one, in the order of turns; of equals, the first is chosen."""
    return [(facts.active + ahead) % facts.num_modules for ahead in range(1, facts.num_modules)]
