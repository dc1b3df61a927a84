"""Trend: the noise-robust rule. It asks how fast the loss falls, and with what confidence."""

from dataclasses import dataclass
from functools import cached_property
from math import isnan
from statistics import NormalDist
from typing import NamedTuple

from alternator.checks import check_fraction, check_integer, check_max_steps, check_positive, set_fields
from alternator.reasons import Reason
from alternator.rule import Facts, Verdict
from alternator.rules._looks import MIN_LOSSES, is_next_look, look_spacing
from alternator.rules._names import by_name
from alternator.rules._regression import SURE_RISE, rises, robust_gain

_HOLDS = (
    Reason.FEW_LOSSES,
    Reason.IMPROVING,
    Reason.UNSURE,
    Reason.UNCONFIRMED_PLATEAU,
    Reason.RISING_UNCONFIRMED,
)


class TrendState(NamedTuple):
    """The result of the last look of this tenure.

    Attributes:
        next_look: The number of losses of this tenure at which the line is fitted next.
        confirmations: The number of looks in a row that found a plateau.
        hold: Why the last look held: an index of (few losses, improving, unsure, confirmations,
            rising).
        value: The number that goes with it.
    """

    next_look: int
    confirmations: int
    hold: int
    value: float


_ENTERED = TrendState(MIN_LOSSES, 0, 0, 0.0)


@by_name()
@dataclass(frozen=True, kw_only=True)
class Trend:
    """Switch when the loss can be expected to fall by less than ``min_gain`` over the next ``horizon`` steps.

    The rule for new work: noise affects how long a decision takes, but hardly what is decided. At noise of 10% of the
    loss it can tell a fall of 0.2% per step from none; ``benchmarks/rules.py`` compares it with the other rules.

    A line is fitted to the losses of this tenure, at most the newest ``window`` of them (see `robust_gain`). The gain g
    is what the line falls over the next horizon, relative to its newest end; se is its standard error. A look asks::

        g + z(n)·se < min_gain,  z(n) = z·window/n   →  ``confirmations`` looks in a row switch: on a plateau; on
                                                        a rise where g ≤ -max(min_gain, 1.645·se)
        g + z′·se < 0  over the newest window // 4   →  diverging: switches at once

    with z and z′ the normal quantiles of ``confidence`` and ``rise_confidence``. A test that is repeated errs more
    often, so looks are an eighth of the losses apart (at least 8), and early looks, with many still to come, need more
    evidence. The information in a slope grows with n³, so z(n) is the group-sequential boundary of Wang and Tsiatis
    (1987) with Δ = 1/6. A look costs O(window); there is nothing to do in between.

    Losses need not come at every step: the horizon counts updated steps, whatever the number of losses. A sudden drop
    is read as a fall until it has left the window, so a plateau is noticed at most about one window late.

    On a device in float32, decisions agree with these unless the number compared with ``min_gain`` (or with 0 or
    ``-min_gain``) lies within 1e-6·horizon + 0.1% of the se term of it.

    A loss that is measured against another player (a GAN's) is no progress: take `Cycle` there.

    Args:
        min_gain: The module continues to train while its loss can be expected to fall by this fraction over the
            horizon.
        horizon: The number of updated steps ahead over which the gain is judged.
        window: The maximum number of losses that a line is fitted to; also sets how much evidence early looks need.
        min_steps: Minimum length of a tenure, in updated steps.
        max_steps: Maximum length of a tenure, in updated steps; None for no limit (then a module may wait forever).
            Keep it short compared with the run: a tenth of it, say.
        confidence: One-sided confidence of the plateau test at a full window, above 0.5 and below 1.
        confirmations: The number of looks in a row that must find a plateau.
        rise_confidence: One-sided confidence of the divergence test, above 0.5 and below 1.

    Raises:
        ConfigurationError: A parameter is out of range.

    Example:
        >>> from alternator import Alternator, Trend
        >>> alternator = Alternator(("encoder", "head"), rule=Trend())
        >>> for step in range(30):  # falls by 0.5% a step
        ...     decision = alternator.observe(0.995**step)
        >>> print(decision.explain())
        step 30: encoder trains on (still improving: expected gain 53.74% ≥ 1.00%)
        >>> _ = alternator.force("head")
        >>> for step in range(30):  # does not fall at all
        ...     decision = alternator.observe(0.5)
        ...     if decision.switched:
        ...         print(decision.explain())
        step 58: head → encoder (plateau: the expected gain is at most 0.00% < 1.00%)
    """

    min_gain: float = 0.01
    horizon: int = 100
    window: int = 200
    min_steps: int = 20
    max_steps: int | None = 300
    confidence: float = 0.67
    confirmations: int = 2
    rise_confidence: float = 0.9998

    def __post_init__(self) -> None:
        for name, minimum in (("horizon", 1), ("window", 4 * MIN_LOSSES), ("min_steps", 1), ("confirmations", 1)):
            set_fields(self, **{name: check_integer(name, getattr(self, name), minimum)})
        set_fields(
            self,
            min_gain=check_positive("min_gain", self.min_gain),
            confidence=check_fraction("confidence", self.confidence, 0.5, 1.0),
            rise_confidence=check_fraction("rise_confidence", self.rise_confidence, 0.5, 1.0),
            max_steps=check_max_steps(self.max_steps, self.min_steps),
        )

    @property
    def tenure_limit(self) -> tuple[str, float | None]:
        """The parameter that limits how long others wait, and its value; see `Rule`."""
        return "max_steps", self.max_steps

    @property
    def ring_size(self) -> int:
        """The window."""
        return self.window

    @cached_property
    def z(self) -> float:
        """The normal quantile of ``confidence``: the standard errors added to the gain at a full window."""
        return NormalDist().inv_cdf(self.confidence)

    @cached_property
    def rise_z(self) -> float:
        """The normal quantile of ``rise_confidence``: the standard errors added to the gain in the divergence test."""
        return NormalDist().inv_cdf(self.rise_confidence)

    def init(self, num_modules: int) -> TrendState:
        """Nothing seen yet."""
        return _ENTERED

    def is_possible(self, state: TrendState, facts: Facts) -> bool:
        """Whether a saved state can be one of this rule."""
        return (
            is_next_look(state.next_look, facts, first=MIN_LOSSES, spacing=look_spacing(self.window))
            and 0 <= state.confirmations < self.confirmations
            and 0 <= state.hold < len(_HOLDS)
            and not isnan(state.value)
        )

    def step(self, state: TrendState, facts: Facts) -> tuple[TrendState, Verdict]:
        """Look if there are enough new losses; otherwise repeat the result of the last look."""
        if facts.entered:
            state = _ENTERED
        tenure = facts.tenure
        if tenure < self.min_steps:
            return state, Verdict(False, Reason.MIN_STEPS, tenure, self.min_steps)
        if facts.observed >= state.next_look:
            state, verdict = self._look(state, facts)
            if verdict is not None:
                return state, verdict
        if self.max_steps is not None and tenure >= self.max_steps:
            return state, Verdict(True, Reason.MAX_STEPS, tenure, self.max_steps)
        if state.hold == 0:
            return state, Verdict(False, Reason.FEW_LOSSES, facts.observed, MIN_LOSSES)
        limits = (self.min_gain, self.min_gain, self.min_gain, self.confirmations, -self.min_gain)
        return state, Verdict(False, _HOLDS[state.hold], state.value, limits[state.hold])

    def _look(self, state: TrendState, facts: Facts) -> tuple[TrendState, Verdict | None]:
        """Fit the line; without a verdict it holds, for the reason in the new state."""
        count = min(facts.observed, self.window)
        losses = list(facts.rings[facts.active])[-count:]
        scale = self.horizon * facts.observed / facts.tenure  # losses in a horizon of updated steps
        recent = losses[-(self.window // 4) :]
        gain = robust_gain(recent) if rises(recent) else None
        if gain is not None and gain.rate + self.rise_z * gain.stderr < 0:
            return state, Verdict(True, Reason.DIVERGING, gain.rate * scale, -self.rise_z * gain.stderr * scale)
        rate, stderr = gain if gain is not None and len(recent) == count else robust_gain(losses)
        expected, bound = rate * scale, (rate + self.z * self.window / count * stderr) * scale
        next_look = facts.observed + look_spacing(count)
        if bound >= self.min_gain:
            improving = expected >= self.min_gain
            return TrendState(next_look, 0, 1 if improving else 2, expected if improving else bound), None
        floor = -max(self.min_gain, SURE_RISE * stderr * scale)
        rising = expected <= floor
        confirmations = state.confirmations + 1
        if confirmations < self.confirmations:
            return TrendState(next_look, confirmations, *((4, expected) if rising else (3, confirmations))), None
        if rising:
            return state, Verdict(True, Reason.RISING, expected, floor)
        return state, Verdict(True, Reason.PLATEAU, bound, self.min_gain, True)
