"""Patience: switch where ReduceLROnPlateau would cut the learning rate."""

from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Literal, NamedTuple, TypeVar

from alternator.checks import check_choice, check_integer, check_max_steps, check_range, check_switch, set_fields
from alternator.reasons import Reason
from alternator.rule import Facts, Verdict
from alternator.rules._names import by_name
from alternator.rules._regression import MIN_RISE, surely_rises

BURST = 16
"""The maximum number of losses judged at one decision: of more, the newest."""


_Number = TypeVar("_Number", int, float)


class PatienceState(NamedTuple):
    """The memory of each module's plateau detector.

    Attributes:
        seen: The number of losses of this tenure judged so far.
        bad: The number of losses in a row without improvement.
        best: Per module, its best value so far, negated in mode "max"; infinite before the first.
        smoothed: Per module, the moving average of its values, negated likewise; infinite before the first.
        cooldown: Per module, the number of losses still to be excused.
    """

    seen: int
    bad: int
    best: tuple[float, ...]
    smoothed: tuple[float, ...]
    cooldown: tuple[int, ...]


@by_name()
@dataclass(frozen=True, kw_only=True)
class Patience:
    """Switch when the loss has not improved on its best for more than ``patience`` losses in a row.

    Each module has a detector of its own, which decides exactly as `torch.optim.lr_scheduler.ReduceLROnPlateau` does
    on the losses that the module reports while it trains: where the scheduler would cut the learning rate, the module
    hands over. The best loss is kept for the module's next tenure, as it is kept after a cut; ``cooldown`` excuses
    the first losses of that tenure. ``optax.contrib.reduce_on_plateau(patience=p + 1, rtol=..., atol=...)`` is
    ``Patience(patience=p)`` with threshold_mode "rel" or "abs".

    Use it with smooth values such as a validation loss per epoch. Noise makes a best-so-far: with mini-batch losses the
    best is the luckiest batch, and a tenure lasts ``patience`` losses whether the loss falls or not; `Trend` has a
    model of noise. ``restart=True`` judges each tenure by itself, for modules whose loss moves while others train.

    NaN and infinite losses count for nothing here: an alternator keeps them from its rules, so that they are never read
    as convergence, and switches when there are too many in a row (``nonfinite_limit``). So the detector decides as the
    scheduler does on the finite losses alone. The scheduler itself takes NaN and the worse infinity for bad losses, the
    better infinity for a best that nothing beats, and each of them for one loss of its cooldown.

    In mode "rel" a negative best is beaten by anything below ``best · (1 - threshold)``, which lies *above* it, as in
    the two libraries; give losses that may be negative the mode "abs".

    On a device in float32, decisions agree with these unless a loss (or its average) lies within
    1e-6 · (abs(best) + threshold) of what would be better than the best. Whether the bad losses rise agrees unless
    their slope lies within 1e-5 of their range of 1.645 standard errors.

    Where it switches because the bad losses rise, by more than 1.645 standard errors of their slope, the decision says
    so (`Reason.RISING_OUT_OF_PATIENCE`), and that is no plateau; in mode "max" the values fall then.

    A loss that is measured against another player (a GAN's) is no progress: take `Cycle` there.

    Args:
        patience: The number of losses in a row without improvement that are tolerated; the next one switches.
        threshold: How much better than the best a loss must be.
        threshold_mode: Whether the threshold is a fraction of the best or a difference to it.
        mode: Whether lower or higher is better.
        cooldown: The number of losses after a switch (the first of the module's next tenure) that do not count as bad.
        smoothing: Weight of the past in an exponential moving average that is judged in place of the loss; 0 is the
            loss itself.
        restart: Whether each tenure starts with no best.
        max_steps: Maximum length of a tenure, in updated steps; None for no limit (then others may wait forever).

    Raises:
        ConfigurationError: A parameter is out of range.

    Example:
        >>> from alternator import Alternator, Patience
        >>> alternator = Alternator(("encoder", "head"), rule=Patience(patience=2))
        >>> for loss in (1.0, 0.9, 0.95, 0.92, 0.91):
        ...     decision = alternator.observe(loss)
        >>> decision.explain()
        'step 5: encoder → head (bad losses in a row: 3 > patience 2)'
    """

    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    mode: Literal["min", "max"] = "min"
    cooldown: int = 0
    smoothing: float = 0.0
    restart: bool = False
    max_steps: int | None = None

    def __post_init__(self) -> None:
        check_choice("threshold_mode", self.threshold_mode, ("rel", "abs"))
        check_choice("mode", self.mode, ("min", "max"))
        check_switch("restart", self.restart)
        set_fields(
            self,
            patience=check_integer("patience", self.patience, 0),
            cooldown=check_integer("cooldown", self.cooldown, 0),
            max_steps=check_max_steps(self.max_steps, 1),
            threshold=check_range("threshold", self.threshold, 0, 1 if self.threshold_mode == "rel" else inf),
            smoothing=check_range("smoothing", self.smoothing, 0, 1),
        )

    @property
    def tenure_limit(self) -> tuple[str, float | None]:
        """The parameter that limits how long others wait, and its value; see `Rule`."""
        return "max_steps", self.max_steps

    @property
    def ring_size(self) -> int:
        """The maximum number of losses judged at one decision."""
        return BURST

    @cached_property
    def factor(self) -> float:
        """A value is better below best · factor - margin (both negated in mode "max")."""
        if self.threshold_mode == "abs":
            return 1.0
        return 1.0 - self.threshold if self.mode == "min" else 1.0 + self.threshold

    @cached_property
    def margin(self) -> float:
        """See `factor`."""
        return self.threshold if self.threshold_mode == "abs" else 0.0

    def init(self, num_modules: int) -> PatienceState:
        """Nothing seen yet."""
        return PatienceState(0, 0, (inf,) * num_modules, (inf,) * num_modules, (0,) * num_modules)

    def is_possible(self, state: PatienceState, facts: Facts) -> bool:
        """Whether a saved state can be one of this rule."""
        return (
            (facts.entered or 0 <= state.seen <= facts.observed)
            and 0 <= state.bad <= self.patience
            and all(-inf < value for value in (*state.best, *state.smoothed))
            and all(0 <= losses <= self.cooldown for losses in state.cooldown)
        )

    def step(self, state: PatienceState, facts: Facts) -> tuple[PatienceState, Verdict]:
        """Judge the losses that have been recorded since the last decision."""
        if facts.entered:
            state = self._enter(state, facts.active)
        if facts.observed > state.seen:
            state = self._judge(state, facts)
            if state.bad > self.patience:
                cooldown = _with(state.cooldown, facts.active, self.cooldown)
                return state._replace(bad=0, cooldown=cooldown), self._end(state.bad, facts)
        if self.max_steps is not None and facts.tenure >= self.max_steps:
            return state, Verdict(True, Reason.MAX_STEPS, facts.tenure, self.max_steps)
        if state.cooldown[facts.active]:
            return state, Verdict(False, Reason.COOLDOWN, state.cooldown[facts.active], self.cooldown)
        return state, Verdict(False, Reason.WAITING, state.bad, self.patience)

    def _end(self, bad: int, facts: Facts) -> Verdict:
        """The switch, and whether the bad losses (at least three) rise rather than having stopped falling."""
        newest = list(facts.rings[facts.active])[-min(max(bad, MIN_RISE), facts.observed) :]
        rises = surely_rises(newest if self.mode == "min" else [-value for value in newest])
        reason = Reason.RISING_OUT_OF_PATIENCE if rises else Reason.OUT_OF_PATIENCE
        return Verdict(True, reason, bad, self.patience, not rises)

    def _enter(self, state: PatienceState, active: int) -> PatienceState:
        state = state._replace(seen=0, bad=0)
        if not self.restart:
            return state
        return state._replace(best=_with(state.best, active, inf), smoothed=_with(state.smoothed, active, inf))

    def _judge(self, state: PatienceState, facts: Facts) -> PatienceState:
        """Run the detector over the new losses, up to one that switches."""
        active = facts.active
        seen, bad, best, smoothed, cooldown = state
        ring = facts.rings[active]
        for value in (ring[-1],) if facts.observed == seen + 1 else tuple(ring)[seen - facts.observed :]:
            if self.mode == "max":
                value = -value
            if self.smoothing:
                past = smoothed[active]
                value = value if past == inf else self.smoothing * past + (1 - self.smoothing) * value
                smoothed = _with(smoothed, active, value)
            if value < best[active] * self.factor - self.margin:
                best, bad = _with(best, active, value), 0
            else:
                bad += 1
            if cooldown[active]:
                cooldown, bad = _with(cooldown, active, cooldown[active] - 1), 0
            if bad > self.patience:
                break
        return PatienceState(facts.observed, bad, best, smoothed, cooldown)


def _with(values: tuple[_Number, ...], index: int, value: _Number) -> tuple[_Number, ...]:
    changed = list(values)
    changed[index] = value
    return tuple(changed)
