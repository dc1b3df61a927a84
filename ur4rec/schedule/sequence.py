"""A schedule that is given in full: which turn trains for how many steps, tenure after tenure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from alternator import Facts, Reason, Verdict
from alternator.checks import set_fields, to_integer
from alternator.errors import quoted
from ur4rec.errors import ConfigurationError
from ur4rec.schedule.stages import MODULES, TURNS


class TurnSequenceState(NamedTuple):
    """The index of the current tenure."""

    current: int


@dataclass(frozen=True)
class TurnSequence:
    """Tenures in a given order, from the start again after the last: to replay a schedule, or to shuffle one.

    Raises:
        ConfigurationError: There is no tenure, an unknown turn, or a length below 1.

    Example:
        >>> rule = TurnSequence((("both", 3), ("sasrec", 2), ("both", 1)))
        >>> rule.turns, rule.tenures
        (('both', 'sasrec', 'retriever'), (('both', 3), ('sasrec', 2), ('both', 1)))
    """

    tenures: tuple[tuple[str, int], ...]
    """Turn and length in updated steps of each tenure."""

    def __post_init__(self) -> None:
        if not self.tenures:
            raise ConfigurationError("tenures must be one or more pairs of turn and length, got none")
        tenures = tuple((turn, to_integer(length)) for turn, length in self.tenures)
        for (turn, number), given in zip(tenures, self.tenures, strict=True):
            if turn not in TURNS or number is None or number < 1:
                raise ConfigurationError(
                    f"tenures must be pairs of a turn {tuple(TURNS)} and a length of at least 1, got {quoted(given)}"
                )
        set_fields(self, tenures=tenures)

    @cached_property
    def turns(self) -> tuple[str, ...]:
        """The turns that it alternates between, the first to train first."""
        return tuple(dict.fromkeys((*(turn for turn, _ in self.tenures), *MODULES)))

    @property
    def ring_size(self) -> int:
        """No losses are needed."""
        return 0

    def init(self, num_modules: int) -> TurnSequenceState:
        """At the first tenure.

        Raises:
            ConfigurationError: The alternator has other turns.
        """
        if num_modules != len(self.turns):
            raise ConfigurationError(f"a TurnSequence needs an alternator over {self.turns}, got {num_modules} modules")
        return TurnSequenceState(0)

    def is_possible(self, state: TurnSequenceState, facts: Facts) -> bool:
        """Whether a saved state can be one of this rule."""
        return 0 <= state.current < len(self.tenures)

    def step(self, state: TurnSequenceState, facts: Facts) -> tuple[TurnSequenceState, Verdict]:
        """Hold to the end of the tenure, then start the next, which may be of the same turn."""
        length = self.tenures[state.current][1]
        if facts.tenure < length:
            return state, Verdict(False, Reason.MIN_STEPS, facts.tenure, length)
        following = (state.current + 1) % len(self.tenures)
        target = self.turns.index(self.tenures[following][0])
        return TurnSequenceState(following), Verdict(True, Reason.SCHEDULED, facts.tenure, length, target=target)


def shuffled(tenures: Sequence[tuple[str, int]], draws: Sequence[float]) -> tuple[tuple[str, int], ...]:
    """The same tenures in another order: the first stays, the others change places with those of their parity.

    So two modules still take turns, and a schedule that returns to joint training after each exception still does.

    Args:
        tenures: Turn and length of each.
        draws: A random number for each.

    Example:
        >>> shuffled([("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5)], [0.1, 0.9, 0.8, 0.3, 0.2])
        (('a', 1), ('b', 4), ('a', 5), ('b', 2), ('a', 3))
    """
    order = list(range(len(tenures)))
    for first in (1, 2):
        order[first::2] = sorted(order[first::2], key=lambda place: draws[place])
    return tuple((turn, length) for turn, length in (tenures[place] for place in order))
