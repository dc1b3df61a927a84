"""Fixed schedules that are no rule of the package: orders of turns, and turns drawn at random. Any rule can be one."""

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from alternator import Facts, Verdict


class OrderState(NamedTuple):
    """Where in the order we are."""

    place: int


@dataclass(frozen=True)
class Order:
    """Turns with their lengths, one after the other; afterwards again from ``again_from`` on.

    Args:
        tenures: Pairs of a turn's index and its updated steps; the first turn must be set active with ``force``.
        again_from: The place in ``tenures`` that follows the last one; None: the last one trains for good.

    Example:
        >>> from alternator import Alternator
        >>> alternator = Alternator(("a", "b"), rule=Order(((0, 1), (1, 2), (0, 1)), again_from=1))
        >>> "".join(alternator.advance().active for _ in range(8))
        'bbabbabb'
    """

    tenures: tuple[tuple[int, int], ...]
    again_from: int | None = None

    @property
    def first_turn(self) -> int:
        """Who trains first."""
        return self.tenures[0][0]

    @property
    def ring_size(self) -> int:
        """No losses are needed."""
        return 0

    def init(self, num_modules: int) -> OrderState:
        """The first."""
        assert all(turn < num_modules for turn, _ in self.tenures)
        return OrderState(0)

    def step(self, state: OrderState, facts: Facts) -> tuple[OrderState, Verdict]:
        """The next turn when this one is over."""
        _, steps = self.tenures[state.place]
        following = state.place + 1 if state.place + 1 < len(self.tenures) else self.again_from
        if facts.tenure < steps or following is None:
            return state, Verdict(False, "in its place", facts.tenure, steps)
        return OrderState(following), Verdict(True, "in order", facts.tenure, steps, target=self.tenures[following][0])


@dataclass(frozen=True)
class RandomOrder:
    """Turns of equal length, each drawn at random: what LISA (2403.17919) does with blocks."""

    steps: int
    seed: int = 0

    @property
    def ring_size(self) -> int:
        """No losses are needed."""
        return 0

    def init(self, num_modules: int) -> OrderState:
        """Nothing drawn yet."""
        return OrderState(0)

    def step(self, state: OrderState, facts: Facts) -> tuple[OrderState, Verdict]:
        """Draw when the tenure is over; the first tenure is that of the turn that is active then."""
        if facts.tenure < self.steps:
            return state, Verdict(False, "in its place", facts.tenure, self.steps)
        drawn = Random(f"{self.seed} {state.place}").randrange(facts.num_modules)
        return OrderState(state.place + 1), Verdict(True, "drawn", facts.tenure, self.steps, target=drawn)
