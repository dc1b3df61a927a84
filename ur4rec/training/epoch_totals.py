"""What an epoch adds up: sums and counts from which its metrics come. A checkpoint in its middle carries them."""

import math
from collections.abc import Mapping
from typing import Any

from ur4rec.schedule.stages import TURNS
from ur4rec.training.records import StepRecord


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
