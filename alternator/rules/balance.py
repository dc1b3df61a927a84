"""Balance: keep a signal between players inside a band by choosing how long each of them trains."""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf, isfinite, log
from typing import NamedTuple

from alternator.checks import check_integer, check_range, set_fields
from alternator.errors import ConfigurationError
from alternator.reasons import Reason
from alternator.rule import Facts, Verdict
from alternator.rules._names import by_name
from alternator.rules._steps import check_steps, steps_of, steps_per_module


class BalanceState(NamedTuple):
    """How far the tenures are from what ``steps`` says.

    Attributes:
        level: How many times the tenures of the module ``below`` have been made longer by ``factor``; below 0, those of
            the module ``above``.
    """

    level: int


@by_name()
@dataclass(frozen=True, kw_only=True)
class Balance:
    """Take turns, and give longer ones to the player that brings a signal back into its band.

    For players that oppose each other, whose losses are no progress: a generator and its critic, say. They take turns
    of ``steps`` updated steps, as under `Cycle`. Once per round, at the end of the turn of the module ``above``, the
    signal is compared with the band: above ``high`` it makes the turns of the module ``above`` longer by ``factor`` (or
    those of the module ``below`` shorter), below ``low`` the reverse. So the ratio of their steps, which is tuned by
    hand under `Cycle`, finds itself, and follows where the game changes. It moves slowly, since a signal answers late
    and is noisy.

    The signal is the mean of the newest ``window`` values recorded for the module ``of``, in place of losses. The
    defaults are for a critic's *accuracy*: of pairs of a real and a generated example, the share in which the real one
    has the higher score, whatever the loss. ``(real[:, None] > fake).float().mean()`` of the scores of a step; while
    the generator trains, the critic's last scores of real examples remain valid. Under the non-saturating loss 0.7 to
    0.8 was the better band; other signals need one of their own. Record the signal in every step, or at least once a
    round: the ratio would else follow what is long past.

    No tenure is longer than ``max_steps``: no module waits longer than (N - 1) · max_steps updated steps, N being the
    number of modules. Compare with `Cycle`.

    On a device in float32, decisions agree with these unless the signal lies within 1e-4 of a limit, relative to it and
    to the values that it is made of.

    Args:
        low: Below it, the module ``below`` gets longer turns.
        high: Above it, the module ``above`` does; at least ``low``, and equal to it to aim at a value.
        of: The module whose recorded values are the signal, by its place in the order of modules.
        above: The module that is to train more while the signal is above the band, by its place.
        below: The module that is to train more while it is below.
        window: The number of newest values that are averaged.
        factor: By which turns change in a round, at least 1.001.
        steps: Length of a tenure at the beginning, and the least, in updated steps: one number for all modules, or one
            per module.
        max_steps: The greatest length of a tenure, in updated steps.

    Raises:
        ConfigurationError: A parameter is out of range, or a place is that of no module.

    Example:
        >>> from alternator import Alternator, Balance
        >>> alternator = Alternator(("generator", "critic"), rule=Balance())
        >>> for _ in range(200):  # the critic is too good
        ...     alternator.record("critic", 0.95)
        ...     decision = alternator.advance()
        >>> round(alternator.stats().modules["generator"].training_ratio, 1)
        0.8
    """

    low: float = 0.8
    high: float = 0.9
    of: int = 1
    above: int = 0
    below: int = 1
    window: int = 10
    factor: float = 1.05
    steps: int | tuple[int, ...] = 1
    max_steps: int = 16

    def __post_init__(self) -> None:
        steps = check_steps(self.steps)
        set_fields(
            self,
            low=check_range("low", self.low, -inf, inf),
            high=check_range("high", self.high, -inf, inf),
            steps=steps,
            window=check_integer("window", self.window, 1),
            factor=check_range("factor", self.factor, 1.001, inf),
            max_steps=check_integer("max_steps", self.max_steps, 1),
            **{name: check_integer(name, getattr(self, name), 0) for name in ("of", "above", "below")},
        )
        if self.low > self.high:
            raise ConfigurationError(f"low must be at most high ({self.high}), got {self.low}; exchange the two")
        if self.above == self.below:
            raise ConfigurationError(f"above and below must be different modules, got {self.above} for both")
        longest = max(steps) if isinstance(steps, tuple) else steps
        if self.max_steps <= longest:
            raise ConfigurationError(f"max_steps must be above steps ({longest}), got {self.max_steps}")

    @property
    def tenure_limit(self) -> tuple[str, float]:
        """The parameter that limits how long others wait, and its value; see `Rule`."""
        return "max_steps", self.max_steps

    @property
    def ring_size(self) -> int:
        """The values that are averaged."""
        return self.window

    @cached_property
    def max_level(self) -> int:
        """The number of adjustments from ``steps`` to the longest turn."""
        steps = min(steps_of(self.steps, index) for index in (self.above, self.below))
        return ceil(log(self.max_steps / steps) / log(self.factor))

    def length(self, index: int, level: int) -> int:
        """The updated steps of a module's turn at a level, from ``-max_level`` to ``max_level``.

        Example:
            >>> [Balance(factor=2).length(index, level=3) for index in (0, 1)]
            [1, 8]
        """
        steps = steps_of(self.steps, index)
        exponent = level if index == self.below else -level if index == self.above else 0
        return min(self.max_steps, max(steps, round(steps * self.factor**exponent)))

    def init(self, num_modules: int) -> BalanceState:
        """Turns of ``steps``, and nothing seen."""
        for name in ("of", "above", "below"):
            if getattr(self, name) >= num_modules:
                raise ConfigurationError(
                    f"{name} must be the place of a module, 0 to {num_modules - 1}, got {getattr(self, name)}"
                )
        steps_per_module(self.steps, num_modules)
        return BalanceState(0)

    def is_possible(self, state: BalanceState, facts: Facts) -> bool:
        """Whether a saved state can be one of this rule."""
        return abs(state.level) <= self.max_level

    def step(self, state: BalanceState, facts: Facts) -> tuple[BalanceState, Verdict]:
        """Switch when the tenure is over; adjust the ratio when a round is."""
        steps = self.length(facts.active, state.level)
        if facts.tenure < steps:
            return state, Verdict(False, Reason.MIN_STEPS, facts.tenure, steps)
        signal = self._signal(facts) if facts.active == self.above else None
        if signal is None or self.low <= signal <= self.high:
            return state, Verdict(True, Reason.SCHEDULED, facts.tenure, steps)
        high = signal > self.high
        level = max(state.level - 1, -self.max_level) if high else min(state.level + 1, self.max_level)
        reason, limit = (Reason.ABOVE, self.high) if high else (Reason.BELOW, self.low)
        return BalanceState(level), Verdict(True, reason, signal, limit)

    def _signal(self, facts: Facts) -> float | None:
        """The mean of what was recorded; None while nothing was, or where it is too large a number."""
        values = facts.rings[self.of]
        signal = sum(values) / len(values) if values else inf
        return signal if isfinite(signal) else None
