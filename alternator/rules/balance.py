"""Balance: keep a signal between players inside a band by choosing who trains."""

from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite
from typing import NamedTuple

from alternator.checks import check_choice, check_integer, check_range, set_fields
from alternator.errors import ConfigurationError
from alternator.reasons import Reason
from alternator.rule import Facts, Verdict
from alternator.rules._names import by_name
from alternator.rules._steps import check_steps, steps_of, steps_per_module

SIGNALS = ("value", "ratio", "change")


class BalanceState(NamedTuple):
    """Balance reads everything from the facts; it has no state of its own."""


_STATE = BalanceState()


@by_name()
@dataclass(frozen=True, kw_only=True)
class Balance:
    """Keep a signal inside a band: outside of it, the player trains that brings it back.

    For players that oppose each other, whose losses are no progress: a generator and its critic, a policy and its value
    function, a world model and the policy that learns in it. Above ``high`` the module ``above`` trains until the
    signal is back, below ``low`` the module ``below``; inside the band, and while nothing is known of the signal, the
    modules take turns of ``steps`` updated steps as under `Cycle`. The signal is made of the values recorded for the
    modules, the newest ``window`` of each:

    * ``value``: what was recorded for the module ``of``, in place of a loss if you like: the critic's accuracy or
      margin, a KL divergence, a held-out loss. (With ``low`` and ``high`` around what a balanced game gives.)
    * ``ratio``: the mean of module ``above`` over that of module ``below``, without signs: the larger loss trains.
    * ``change``: by how much the values of module ``above`` change from one to the next, relative to them, over the
      same of module ``below``: the loss that moves faster trains. With ``low=high`` and ``window=1`` this is the
      schedule of Ouyang, Chen & Agam (WACV 2021) for WGANs.

    Switching a player by a threshold on its loss is older than this rule: fastai's ``AdaptiveGANSwitcher`` does so.
    Always compare with `Cycle`, which is what most work on GANs uses.

    A module that has not trained for ``max_wait`` updated steps comes next whatever the signal, the one that has waited
    longest first: no module waits more than max_wait + N - 2 updated steps, N being the number of modules.

    On a device in float32, decisions agree with these unless the signal lies within 1e-4 of a limit, relative to it and
    to the values that it is made of.

    Args:
        low: Below it, the module ``below`` trains. Above 0 for a ratio.
        high: Above it, the module ``above`` trains; at least ``low``.
        signal: ``value``, ``ratio`` or ``change``.
        of: For ``value``, the module whose recorded values are the signal, by its place in the order of modules.
        above: The module that trains while the signal is above the band, by its place.
        below: The module that trains while it is below.
        window: The number of newest values of a module that are averaged.
        steps: Length of a tenure inside the band, in updated steps: one number for all modules, or one per module.
        max_wait: Updated steps after which a waiting module trains whatever the signal.

    Raises:
        ConfigurationError: A parameter is out of range, or a place is that of no module.

    Example:
        >>> from alternator import Alternator, Balance
        >>> alternator = Alternator(("generator", "critic"), rule=Balance(low=0.6, high=0.8, window=1))
        >>> for accuracy in (0.7, 0.9, 0.9, 0.75, 0.5):
        ...     alternator.record("critic", accuracy)
        ...     decision = alternator.advance()
        >>> decision.explain()
        'step 5: critic trains on (signal 0.5 < 0.6)'
    """

    low: float
    high: float
    signal: str = "value"
    of: int = 1
    above: int = 0
    below: int = 1
    window: int = 10
    steps: int | tuple[int, ...] = 1
    max_wait: int = 50

    def __post_init__(self) -> None:
        check_choice("signal", self.signal, SIGNALS)
        set_fields(
            self,
            low=check_range("low", self.low, -inf, inf),
            high=check_range("high", self.high, -inf, inf),
            steps=check_steps(self.steps),
            window=check_integer("window", self.window, 1),
            max_wait=check_integer("max_wait", self.max_wait, 1),
            **{name: check_integer(name, getattr(self, name), 0) for name in ("of", "above", "below")},
        )
        if self.low > self.high:
            raise ConfigurationError(f"low must be at most high ({self.high}), got {self.low}; exchange the two")
        if self.signal != "value" and self.low <= 0:
            raise ConfigurationError(f"low must be above 0 for the signal {self.signal!r}, a ratio, got {self.low}")
        if self.above == self.below:
            raise ConfigurationError(f"above and below must be different modules, got {self.above} for both")

    @property
    def tenure_limit(self) -> tuple[str, float]:
        """The parameter that limits how long others wait, and its value; see `Rule`."""
        return "max_wait", self.max_wait

    @property
    def ring_size(self) -> int:
        """The values that are averaged, or the changes between them."""
        return self.window + (self.signal == "change")

    def init(self, num_modules: int) -> BalanceState:
        """The empty state."""
        for name in ("of", "above", "below"):
            if getattr(self, name) >= num_modules:
                raise ConfigurationError(
                    f"{name} must be the place of a module, 0 to {num_modules - 1}, got {getattr(self, name)}"
                )
        steps = steps_per_module(self.steps, num_modules)
        needed = sum(steps) - min(steps)
        if self.max_wait < needed:
            raise ConfigurationError(
                f"max_wait must be at least {needed}, the steps of the other modules in a round, got {self.max_wait}: "
                "some module would always be overdue"
            )
        return _STATE

    def step(self, state: BalanceState, facts: Facts) -> tuple[BalanceState, Verdict]:
        """Turn to the player that brings the signal back; inside the band, take turns."""
        if facts.tenure > 0 and min(facts.trained_at) <= facts.updates - self.max_wait:
            stale = max(range(facts.num_modules), key=facts.idle)
            return state, Verdict(True, Reason.STALE, facts.idle(stale), self.max_wait, target=stale)
        signal = self._signal(facts)
        if signal is not None and not self.low <= signal <= self.high:
            high = signal > self.high
            reason, limit = (Reason.ABOVE, self.high) if high else (Reason.BELOW, self.low)
            wanted = self.above if high else self.below
            if wanted != facts.active:
                return state, Verdict(facts.tenure > 0, reason, signal, limit, target=wanted)
            return state, Verdict(False, reason, signal, limit)
        steps = steps_of(self.steps, facts.active)
        if facts.tenure < steps:
            return state, Verdict(False, Reason.MIN_STEPS, facts.tenure, steps)
        return state, Verdict(True, Reason.SCHEDULED, facts.tenure, steps)

    def _signal(self, facts: Facts) -> float | None:
        """The signal; None while too little is known."""
        if self.signal == "value":
            found = _mean(list(facts.rings[self.of])[-self.window :])
        else:
            size = _size if self.signal == "ratio" else _change
            above, below = (size(list(facts.rings[index])) for index in (self.above, self.below))
            found = None if above is None or not below else above / below
        return found if found is not None and isfinite(found) else None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _size(values: list[float]) -> float | None:
    """The mean without its sign."""
    mean = _mean(values)
    return None if mean is None else abs(mean)


def _change(values: list[float]) -> float | None:
    """By how much values change from one to the next, relative to them."""
    scale = sum(map(abs, values[:-1]))
    return sum(abs(after - before) for before, after in pairwise(values)) / scale if scale else None
