"""Trials: the snapshots, the measurements and the returns that a `Trial` rule asks for."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import isfinite
from typing import Generic, TypeVar

from alternator.checks import to_float
from alternator.errors import ConfigurationError, LossError
from alternator.machine import Alternator
from alternator.rules.trial import NOBODY, TO_KEPT, Trial

T = TypeVar("T")

WORST = 1e30
"""Recorded in place of losses one of which is not finite: a model that has diverged is worse than any other."""


class Trials(Generic[T]):
    """Does what a `Trial` rule decides: call `before_step` before each training step, its forward pass included.

    Args:
        alternator: With a `Trial` rule.
        snapshot: Returns all that training changes, copied: parameters, buffers, optimizer states and random state.
        restore: Sets all that to what a snapshot holds; it may be asked for the same snapshot several times.
        losses: Returns held-out losses, one per group of examples, the same examples each time; lower is better, so
            give an accuracy a minus sign. Of more losses than the rule's ``groups`` the means of as many parts.
        start: The snapshot of a trial that is under way, to resume from a saved `start`.
        kept: Likewise, from a saved `kept`.

    Attributes:
        start: The snapshot to which the trial returns; None between trials. Save it beside the alternator's state.
        kept: The snapshot of where the last challenger ended, from which it trains on if it wins; None while there is
            none. Save it likewise.
        num_measurements: How often `losses` has been called.
        num_returned: The number of steps whose training was undone.

    Raises:
        ConfigurationError: The alternator has another rule.

    Example: see `Trial`.
    """

    def __init__(
        self,
        alternator: Alternator,
        *,
        snapshot: Callable[[], T],
        restore: Callable[[T], object],
        losses: Callable[[], Sequence[float]],
        start: T | None = None,
        kept: T | None = None,
    ) -> None:
        if not isinstance(alternator.rule, Trial):
            raise ConfigurationError(f"trials need an alternator with a Trial rule, got {alternator.rule!r}")
        self._alternator = alternator
        self._rule = alternator.rule
        self._snapshot, self._restore, self._losses = snapshot, restore, losses
        self._looked_at = -1
        self._tried_from = alternator.step
        self._num_kept = 0
        self.start = start
        self.kept = kept
        self.num_measurements = 0
        self.num_returned = 0

    def before_step(self) -> None:
        """Measure, return and take a snapshot, as the rule says after the step before.

        Raises:
            LossError: A held-out loss is not a real scalar, or there are fewer of them than the rule's groups.
        """
        step, state = self._alternator.step, self._alternator.rule_state
        if step == self._looked_at:
            return
        self._looked_at = step
        if state.pending != NOBODY and self._rule.may_win(state, self._measure()):
            self.kept, self._num_kept = self._snapshot(), step - self._tried_from
        if state.returns:
            self._return(step, to_kept=state.returns == TO_KEPT)
        if state.begins:
            self.start, self._tried_from = self._snapshot(), step
        if state.rung == NOBODY:
            self.start = self.kept = None

    def _return(self, step: int, *, to_kept: bool) -> None:
        snapshot = self.kept if to_kept else self.start
        if snapshot is None:
            return  # the trial began without this
        self._restore(snapshot)
        self.num_returned += step - self._tried_from - (self._num_kept if to_kept else 0)
        self._tried_from = step

    def _measure(self) -> list[float]:
        """Record a measurement, and return it."""
        losses = [to_float(loss) for loss in self._losses()]
        groups = self._rule.groups
        if len(losses) < groups:
            raise LossError(f"there must be {groups} held-out losses at least, the rule's groups, got {len(losses)}")
        self.num_measurements += 1
        edges = pairwise(round(part * len(losses) / groups) for part in range(groups + 1))
        means = [sum(losses[first:last]) / (last - first) for first, last in edges]
        if not all(map(isfinite, means)):
            means = [WORST] * groups
        for mean in means:
            self._alternator.record(self._alternator.modules[0], mean)
        return means
