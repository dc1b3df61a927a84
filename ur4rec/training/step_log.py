"""The log of training steps: losses are read one step late, so that the host never waits for the device."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from alternator.recordings.log import StepRecord
from ur4rec.errors import NonFiniteError
from ur4rec.schedule.stages import LABELS, TURNS


class EpochTotals:
    """Sums and counts of the steps of an epoch, in the order of the steps, so that they are the same to the bit.

    Args:
        epoch: The number of the epoch.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._turns = dict.fromkeys(TURNS, 0)
        self._switches = 0
        self._nonfinite = 0

    @property
    def steps(self) -> int:
        """Steps so far."""
        return sum(self._turns.values())

    @property
    def switches(self) -> int:
        """Switches so far."""
        return self._switches

    def add(self, record: StepRecord, total_loss: float, metrics: Mapping[str, float]) -> None:
        """Take in one step: its record, the loss that was minimised, and what else is averaged, by name."""
        self._turns[record.active] += 1
        self._switches += record.active != record.next
        self._nonfinite += not math.isfinite(total_loss)
        self._average("total_loss", total_loss)
        for module, loss in record.losses.items():
            self._average(f"{module}_loss", loss)
        for name, value in metrics.items():
            self._average(name, value)

    def metrics(self) -> dict[str, Any]:
        """Means of the finite losses, and counts: steps per turn, switches, skipped steps."""
        means = {name: self._sums[name] / self._counts[name] for name in self._sums}
        return {
            **means,
            "steps": self.steps,
            **{f"{turn}_steps": count for turn, count in self._turns.items()},
            "switches": self._switches,
            "nonfinite_steps": self._nonfinite,
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "epoch": self.epoch,
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "turns": dict(self._turns),
            "switches": self._switches,
            "nonfinite": self._nonfinite,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "EpochTotals":
        """The totals that `state_dict` gave.

        Example:
            >>> totals = EpochTotals(epoch=3)
            >>> EpochTotals.from_state(totals.state_dict()).metrics() == totals.metrics()
            True
        """
        totals = cls(state["epoch"])
        totals._sums, totals._counts = dict(state["sums"]), dict(state["counts"])
        totals._turns = dict(state["turns"])
        totals._switches, totals._nonfinite = state["switches"], state["nonfinite"]
        return totals

    def _average(self, name: str, value: float) -> None:
        if math.isfinite(value):
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1


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


class EpochProgress:
    """Takes in the steps of an epoch: adds them up and shows a bar.

    Args:
        totals: Of the epoch; not empty if it was begun before.
        num_steps: Steps expected in all; None if that is not known.
        shown: Whether to show a bar; None is only on a terminal.
    """

    def __init__(self, totals: EpochTotals, num_steps: int | None, shown: bool | None) -> None:
        disable = None if shown is None else not shown
        self.totals = totals
        self._bar = tqdm(
            total=num_steps, initial=totals.steps, desc=f"epoch {totals.epoch}", disable=disable, unit="step"
        )

    def add(
        self,
        record: StepRecord,
        total_loss: float,
        learning_rates: Mapping[str, float],
        metrics: Mapping[str, float],
    ) -> None:
        """Take in one step."""
        self.totals.add(record, total_loss, metrics)
        if not self._bar.disable:
            self._bar.set_postfix_str(
                f"loss={total_loss:.4f}, lr_s={learning_rates['sasrec']:.2e}, lr_r={learning_rates['retriever']:.2e}, "
                f"train={LABELS[record.active]}, switch={self.totals.switches}",
                refresh=False,
            )
            self._bar.update()

    def close(self) -> None:
        """Finish the bar; its last line stays."""
        self._bar.close()


def count_steps(loader: Iterable[object], start: int, stop: int | None) -> int | None:
    """How many batches a loader has between two places; None if it does not know its length.

    Example:
        >>> count_steps("abcde", 1, None), count_steps("abcde", 1, 3), count_steps(iter("abcde"), 0, None)
        (4, 2, None)
    """
    return len(range(len(loader))[start:stop]) if isinstance(loader, Sized) else None
