"""Plateau: the original rule, reproduced exactly."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from alternator.checks import check_integer, check_positive, set_fields, to_integer
from alternator.errors import ConfigurationError, quoted
from alternator.reasons import Reason
from alternator.rule import Facts, Verdict
from alternator.rules._names import by_name


class PlateauState(NamedTuple):
    """Plateau reads everything from the facts; it has no state of its own."""


_STATE = PlateauState()


@by_name()
@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Switch when the relative change of the loss over the last few steps is small.

    The original method of adaptive alternating training, and the baseline of every comparison::

        change_rate = |loss[t] - loss[t-k]| / |loss[t-k]|,   k = window - 1 - window // 2
        change_rate < threshold   →  converging: switch
        change_rate >= threshold  →  still optimising: stay

    Use it to reproduce earlier results. With mini-batch noise it is close to a random timer, and with a smooth,
    steadily falling loss it never switches; `Trend` is the rule for new work. ``abs`` makes it hold while a loss rises
    too; the decision then says that it rises. **A larger threshold switches more often**: more change rates fall below
    it.

    Recommended: threshold 0.005 (small data), 0.01, 0.02 (large data); min_steps 3, 5, 10 (large batches).

    On a device in float32, decisions agree with these unless the change rate lies within 1e-6 · (1 + rate) of the
    threshold.

    A loss that is measured against another player (a GAN's) is no progress: take `Cycle` there.

    Args:
        threshold: Relative change of the loss, strictly below which the module counts as converging.
        min_steps: Minimum length of a tenure, in updated steps.
        window: The number of losses of the active module that it needs; also sets k. At least 3.

    Raises:
        ConfigurationError: A parameter is out of range, or the rule could never switch.

    Example:
        >>> from alternator import Alternator, Plateau
        >>> alternator = Alternator(("encoder", "head"), rule=Plateau(min_steps=2, window=3))
        >>> [alternator.observe(loss).active for loss in (1.0, 0.9, 0.9, 0.9)]
        ['encoder', 'encoder', 'head', 'head']
    """

    threshold: float = 0.01
    min_steps: int = 5
    window: int = 10

    def __post_init__(self) -> None:
        window = to_integer(self.window)
        if window is None or window < 3:
            raise ConfigurationError(f"window must be at least 3, got {quoted(self.window)}")
        set_fields(
            self,
            threshold=check_positive("threshold", self.threshold),
            min_steps=check_integer("min_steps", self.min_steps, 1),
            window=window,
        )

    @property
    def lag(self) -> int:
        """k: the newest loss is compared with the one k losses before it."""
        return self.window - 1 - self.window // 2

    @property
    def ring_size(self) -> int:
        """The window."""
        return self.window

    def init(self, num_modules: int) -> PlateauState:
        """The empty state."""
        return _STATE

    def step(self, state: PlateauState, facts: Facts) -> tuple[PlateauState, Verdict]:
        """Compare the newest loss of the active module with the one k back."""
        if facts.tenure < self.min_steps:
            return state, Verdict(False, Reason.MIN_STEPS, facts.tenure, self.min_steps)
        ring = facts.rings[facts.active]
        window = self.window
        if len(ring) < window:
            return state, Verdict(False, Reason.FEW_LOSSES, len(ring), window)
        rate = change_rate(ring[-1], ring[window // 2 - window])
        if rate < self.threshold:
            return state, Verdict(True, Reason.STEADY, rate, self.threshold, True)
        rises = ring[-1] > ring[window // 2 - window]
        return state, Verdict(False, Reason.RISING_CHANGE if rises else Reason.CHANGING, rate, self.threshold)


def change_rate(newest: float, base: float) -> float:
    """|newest - base| / |base|; for a base of 0 it is 0 if the newest is 0 too, else infinite.

    Example:
        >>> change_rate(0.9, 1.0)
        0.09999999999999998
        >>> change_rate(0.0, 0.0), change_rate(1.0, 0.0)
        (0.0, inf)
    """
    if base == 0:
        return 0.0 if newest == 0 else math.inf
    return abs(newest - base) / abs(base)
