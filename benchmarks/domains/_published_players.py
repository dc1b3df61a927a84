"""Schedules for two players that others have published, and the control that has their shares without their timing."""

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from alternator import Facts, Verdict


class Nothing(NamedTuple):
    """No state."""


class Drawn(NamedTuple):
    """The number of draws."""

    draws: int


class Rates(NamedTuple):
    """How much the losses of both last changed, relative to what they were, and what they are."""

    rates: tuple[float, float]
    losses: tuple[float, float]
    known: int


@dataclass(frozen=True, kw_only=True)
class UntilLow:
    """One player trains until its loss in a batch is below a limit; then the other trains for one step.

    As fastai's ``AdaptiveGANSwitcher`` with a threshold for the critic alone.
    """

    module: int
    limit: float
    ring_size: int = 1

    def init(self, num_modules: int) -> Nothing:
        """Nothing to remember."""
        return Nothing()

    def step(self, state: Nothing, facts: Facts) -> tuple[Nothing, Verdict]:
        """Switch where the loss is low, and after each step of the other player."""
        if facts.active != self.module:
            return state, Verdict(True, "one step", facts.tenure, 1)
        loss = facts.rings[self.module][-1]
        return state, Verdict(loss < self.limit, "loss below the limit", loss, self.limit)


@dataclass(frozen=True, kw_only=True)
class LossChangeRate:
    """The first player trains where its loss has changed more than ``weight`` times as fast as the second's.

    After Ouyang, Chen & Agam, "Accelerated WGAN update strategy with loss change rate balancing" (WACV 2021): rates are
    those between the losses at the last two steps, relative to the earlier; both begin as 1.
    """

    first: int
    second: int
    weight: float = 1.0
    ring_size: int = 1

    def init(self, num_modules: int) -> Rates:
        """Both rates are 1."""
        return Rates((1.0, 1.0), (0.0, 0.0), 0)

    def step(self, state: Rates, facts: Facts) -> tuple[Rates, Verdict]:
        """Compare the rates."""
        losses = facts.rings[self.first][-1], facts.rings[self.second][-1]
        rates = state.rates
        if state.known:
            rates = _change(losses[0], state.losses[0]), _change(losses[1], state.losses[1])
        wanted = self.first if rates[0] > self.weight * rates[1] else self.second
        verdict = Verdict(wanted != facts.active, "loss change rates", rates[0], self.weight * rates[1], target=wanted)
        return Rates(rates, losses, 1), verdict


def _change(now: float, before: float) -> float:
    return abs(now - before) / max(abs(before), 1e-12)


@dataclass(frozen=True, kw_only=True)
class RandomShares:
    """Each step is one player's at random, with these shares."""

    shares: tuple[int, int]
    seed: int
    ring_size: int = 0

    def init(self, num_modules: int) -> Drawn:
        """Nothing drawn."""
        return Drawn(0)

    def step(self, state: Drawn, facts: Facts) -> tuple[Drawn, Verdict]:
        """Draw."""
        draw = Random(f"{self.seed} {state.draws}").randrange(sum(self.shares))
        wanted = int(draw >= self.shares[0])
        return Drawn(state.draws + 1), Verdict(wanted != facts.active, "drawn", draw, self.shares[0], target=wanted)
