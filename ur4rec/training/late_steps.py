"""The log of training steps: losses are read one step late, so that the host never waits for the device."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ur4rec.errors import NonFiniteError
from ur4rec.training.epoch_totals import EpochTotals
from ur4rec.training.progress import EpochProgress
from ur4rec.training.records import StepRecord

Reader = Callable[[], float]
"""Gives a loss that is on its way from the device; waits only if it has not arrived."""


@dataclass(frozen=True, kw_only=True)
class LateStep:
    """A step whose losses have not been read."""

    record: StepRecord
    """What happened; its losses are still missing."""
    total: Reader
    """The loss that was minimised."""
    losses: Mapping[str, Reader]
    """The primary losses of the modules."""
    learning_rates: Mapping[str, float]
    """The learning rate of each module."""
    metrics: Mapping[str, Reader] = field(default_factory=dict)
    """What else the epoch averages, by the metric's name: see `ur4rec.training.components`."""


class LateSteps:
    """Keeps the newest steps until their losses have arrived, then reports them and counts the non-finite ones.

    Args:
        on_step: Called with each complete record, in order.
        max_nonfinite_losses: This number of non-finite losses in a row is an error.
    """

    def __init__(self, on_step: Callable[[StepRecord], object] | None, max_nonfinite_losses: int) -> None:
        self._nonfinite_streak = 0
        self._totals = EpochTotals(epoch=0)
        self._epoch: EpochProgress | None = None
        self._on_step = on_step
        self._nonfinite_limit = max_nonfinite_losses
        self._late: deque[LateStep] = deque()

    def add(self, step: LateStep) -> None:
        """Take in a step and report the one before it.

        Raises:
            NonFiniteError: Too many losses in a row were not finite.
        """
        self._late.append(step)
        self._read(keep=1)

    def flush(self) -> None:
        """Report all steps, waiting for the device.

        Raises:
            NonFiniteError: Too many losses in a row were not finite.
        """
        self._read(keep=0)

    @contextmanager
    def epoch(self, epoch: int, start: int, num_steps: int | None, shown: bool | None) -> Iterator[EpochTotals]:
        """Add up the steps of an epoch and show them; what was late before is reported before, the rest at its end.

        Args:
            epoch: The number of the epoch.
            start: The number of its steps that are done. If they were added up last, the totals continue from there.
            num_steps: The number of steps to come; None if that is not known.
            shown: Whether to show a bar; None is only on a terminal.
        """
        self.flush()
        if (self._totals.epoch, self._totals.steps) != (epoch, start):
            self._totals = EpochTotals(epoch)
        expected = None if num_steps is None else self._totals.steps + num_steps
        self._epoch = EpochProgress(self._totals, expected, shown)
        try:
            yield self._totals
            self.flush()
        finally:
            self._epoch.close()
            self._epoch = None

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values; flush before, as late steps are not in it."""
        return {"nonfinite_streak": self._nonfinite_streak, "epoch_totals": self._totals.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` gave."""
        self._nonfinite_streak = state["nonfinite_streak"]
        self._totals = EpochTotals.from_state(state["epoch_totals"])

    def _read(self, keep: int) -> None:
        while len(self._late) > keep:
            self._report(self._late.popleft())

    def _report(self, step: LateStep) -> None:
        total = step.total()
        record = step.record._replace(losses={name: read() for name, read in step.losses.items()})
        if self._epoch is not None:
            metrics = {name: read() for name, read in step.metrics.items()}
            self._epoch.add(record, total, step.learning_rates, metrics)
        if self._on_step is not None:
            self._on_step(record)
        self._nonfinite_streak = 0 if math.isfinite(total) else self._nonfinite_streak + 1
        if self._nonfinite_streak >= self._nonfinite_limit:
            raise NonFiniteError(
                f"losses must be finite, got {total} in the last {self._nonfinite_streak} steps "
                f"(to step {record.step}, {record.stage}, training {record.active}); "
                "lower the learning rate or look for NaN in the data"
            )
