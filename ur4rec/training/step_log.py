"""The log of training steps: losses are read one step late, so that the host never waits for the device."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from alternator.recordings.log import StepRecord
from ur4rec.errors import NonFiniteError
from ur4rec.files import check_form
from ur4rec.schedule.stages import LABELS, MODULES, turns_of


@dataclass
class EpochTotals:
    """Sums and counts of the steps of an epoch, in the order of the steps, so that they are the same to the bit.

    A checkpoint in the middle of the epoch carries them.
    """

    epoch: int
    """The number of the epoch."""
    sums: dict[str, float] = field(default_factory=dict)
    """The sum of each metric's finite values."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many they are."""
    turns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(turns_of(MODULES), 0))
    """Steps of each turn."""
    switches: int = 0
    """Switches so far."""
    nonfinite: int = 0
    """Steps whose loss was not finite."""

    @property
    def steps(self) -> int:
        """Steps so far."""
        return sum(self.turns.values())

    def add(self, record: StepRecord, total_loss: float, metrics: Mapping[str, float]) -> None:
        """Take in one step: its record, the loss that was minimised, and what else is averaged, by name."""
        self.turns[record.active] = self.turns.get(record.active, 0) + 1
        self.switches += record.active != record.next
        self.nonfinite += not math.isfinite(total_loss)
        losses = {f"{module}_loss": loss for module, loss in record.losses.items()}
        for name, value in (("total_loss", total_loss), *losses.items(), *metrics.items()):
            if math.isfinite(value):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def metrics(self) -> dict[str, Any]:
        """Means of the finite losses, and counts: steps per turn, switches, skipped steps."""
        means = {name: self.sums[name] / self.counts[name] for name in self.sums}
        return {
            **means,
            "steps": self.steps,
            **{f"{turn}_steps": count for turn, count in self.turns.items()},
            "switches": self.switches,
            "nonfinite_steps": self.nonfinite,
        }


_TOTALS = {
    "epoch": int,
    "sums": {str: float},
    "counts": {str: int},
    "turns": {str: int},
    "switches": int,
    "nonfinite": int,
}
"""What an epoch's totals are as JSON."""

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
        self._bar: tqdm[Any] | None = None
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
        disable = None if shown is None else not shown
        with tqdm(
            total=expected, initial=self._totals.steps, desc=f"epoch {epoch}", disable=disable, unit="step"
        ) as self._bar:
            try:
                yield self._totals
                self.flush()
            finally:
                self._bar = None

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values; flush before, as late steps are not in it."""
        return {"nonfinite_streak": self._nonfinite_streak, "epoch_totals": asdict(self._totals)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` gave.

        Raises:
            LookupError, TypeError, ValueError: It is no such state.
        """
        self._nonfinite_streak = int(state["nonfinite_streak"])
        check_form(state["epoch_totals"], _TOTALS)
        self._totals = EpochTotals(**deepcopy(state["epoch_totals"]))

    def _read(self, keep: int) -> None:
        while len(self._late) > keep:
            self._report(self._late.popleft())

    def _report(self, step: LateStep) -> None:
        total = step.total()
        record = step.record._replace(losses={name: read() for name, read in step.losses.items()})
        if self._bar is not None:
            self._totals.add(record, total, {name: read() for name, read in step.metrics.items()})
            self._show(self._bar, record, total, step.learning_rates)
        if self._on_step is not None:
            self._on_step(record)
        self._nonfinite_streak = 0 if math.isfinite(total) else self._nonfinite_streak + 1
        if self._nonfinite_streak >= self._nonfinite_limit:
            raise NonFiniteError(
                f"losses must be finite, got {total} in the last {self._nonfinite_streak} steps "
                f"(to step {record.step}, {record.stage}, training {record.active}); "
                "lower the learning rate or look for NaN in the data"
            )

    def _show(self, bar: "tqdm[Any]", record: StepRecord, total: float, learning_rates: Mapping[str, float]) -> None:
        if not bar.disable:
            bar.set_postfix_str(
                f"loss={total:.4f}, lr_s={learning_rates['sasrec']:.2e}, lr_r={learning_rates['retriever']:.2e}, "
                f"train={LABELS[record.active]}, switch={self._totals.switches}",
                refresh=False,
            )
            bar.update()
