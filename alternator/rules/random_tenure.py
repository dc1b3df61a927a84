"""RandomTenure: the control that separates a rule's timing from mere variation of tenures."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from alternator.checks import check_integer, check_positive, set_fields
from alternator.errors import ConfigurationError
from alternator.reasons import Reason
from alternator.rule import Facts, Verdict
from alternator.rules._names import by_name

_BITS = 0xFFFFFFFF


class RandomTenureState(NamedTuple):
    """The number of draws made so far, modulo 2³²."""

    draws: int


@by_name(positional=3)
@dataclass(frozen=True)
class RandomTenure:
    """Tenures of random length with a given mean: the matched control of an adaptive rule.

    From ``min_steps`` on, each updated step ends the tenure with probability 1 / (mean - min_steps + 1), so tenures
    are min_steps - 1 plus a geometric length. Draws are a 32-bit hash of (seed, count) against an integer threshold:
    nothing hidden to save, and the same on every device.

    Args:
        mean: Mean length of a tenure, in updated steps.
        seed: Seed of the draws, 0 to 2³² - 1.
        min_steps: Minimum length of a tenure, in updated steps.

    Raises:
        ConfigurationError: The mean is below min_steps or above 2³¹, or a parameter is out of range.

    Example:
        >>> from alternator import Alternator, RandomTenure
        >>> alternator = Alternator(("a", "b"), rule=RandomTenure(mean=3, seed=1))
        >>> "".join(alternator.advance().active for _ in range(24))
        'aaabbbbbaaaaaaaabbbababb'
    """

    mean: float
    seed: int = 0
    min_steps: int = 1

    def __post_init__(self) -> None:
        set_fields(
            self,
            min_steps=check_integer("min_steps", self.min_steps, 1),
            mean=check_positive("mean", self.mean),
            seed=check_integer("seed", self.seed, 0, _BITS),
        )
        if not self.min_steps <= self.mean <= 2**31:
            raise ConfigurationError(f"mean must lie between min_steps ({self.min_steps}) and 2**31, got {self.mean!r}")

    @cached_property
    def limit(self) -> int:
        """A draw of at most this integer ends the tenure: 2³² · probability - 1."""
        return math.floor(2**32 / (self.mean - self.min_steps + 1)) - 1

    @property
    def tenure_limit(self) -> tuple[str, float]:
        """The parameter that limits how long others wait, and its value; see `Rule`."""
        return "mean", self.mean

    @property
    def ring_size(self) -> int:
        """No losses are needed."""
        return 0

    def init(self, num_modules: int) -> RandomTenureState:
        """No draw made yet."""
        return RandomTenureState(0)

    def is_possible(self, state: RandomTenureState, facts: Facts) -> bool:
        """Whether a saved state can be one of this rule."""
        return 0 <= state.draws <= _BITS

    def step(self, state: RandomTenureState, facts: Facts) -> tuple[RandomTenureState, Verdict]:
        """Draw once per updated step from min_steps on."""
        if facts.tenure < self.min_steps:
            return state, Verdict(False, Reason.MIN_STEPS, facts.tenure, self.min_steps)
        if not facts.updated:
            return state, Verdict(False, Reason.DRAW_HOLD, _BITS, self.limit)
        draw = hash32(self.seed, state.draws)
        state = RandomTenureState((state.draws + 1) & _BITS)
        switch = draw <= self.limit
        return state, Verdict(switch, Reason.DRAW_SWITCH if switch else Reason.DRAW_HOLD, draw, self.limit)


def hash32(seed: int, count: int) -> int:
    """A 32-bit hash of two 32-bit integers: MurmurHash3's finalizer (Appleby 2008) of the seed, then of the sum."""
    return _mix(_mix(seed ^ 0x9E3779B9) + count & _BITS)


def _mix(value: int) -> int:
    value = (value ^ value >> 16) * 0x85EBCA6B & _BITS
    value = (value ^ value >> 13) * 0xC2B2AE35 & _BITS
    return value ^ value >> 16
