"""Cycle: fixed tenures, whatever the losses say."""

from dataclasses import dataclass
from typing import NamedTuple

from alternator.checks import set_fields
from alternator.reasons import Reason
from alternator.rule import Facts, Verdict
from alternator.rules._names import by_name
from alternator.rules._steps import check_steps, steps_of, steps_per_module


class CycleState(NamedTuple):
    """Cycle reads everything from the facts; it has no state of its own."""


_STATE = CycleState()


@by_name(positional=1, series="one number or one per module")
@dataclass(frozen=True)
class Cycle:
    """Train each module for a fixed number of updated steps, in order.

    ``Cycle(1)`` is parity: even steps (0-based) train the first module. ``Cycle((3, 1))`` is the ratio 3:1. A *tuned*
    fixed ratio is the control that an adaptive rule has to beat.

    Args:
        steps: Length of a tenure in updated steps: one number for all modules, or one per module.

    Raises:
        ConfigurationError: A length is not an integer of at least 1, or there is not one length per module.

    Example:
        >>> from alternator import Alternator, Cycle
        >>> alternator = Alternator(("generator", "critic"), rule=Cycle((1, 2)))
        >>> [alternator.advance().active for _ in range(6)]
        ['critic', 'critic', 'generator', 'critic', 'critic', 'generator']
    """

    steps: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        set_fields(self, steps=check_steps(self.steps))

    @property
    def tenure_limit(self) -> tuple[str, float]:
        """The parameter that limits how long others wait, and its value; see `Rule`."""
        return "steps", max(self.steps) if isinstance(self.steps, tuple) else self.steps

    @property
    def ring_size(self) -> int:
        """No losses are needed."""
        return 0

    def init(self, num_modules: int) -> CycleState:
        """The empty state."""
        steps_per_module(self.steps, num_modules)
        return _STATE

    def step(self, state: CycleState, facts: Facts) -> tuple[CycleState, Verdict]:
        """Switch when the tenure is over."""
        steps = steps_of(self.steps, facts.active)
        if facts.tenure < steps:
            return state, Verdict(False, Reason.MIN_STEPS, facts.tenure, steps)
        return state, Verdict(True, Reason.SCHEDULED, facts.tenure, steps)
