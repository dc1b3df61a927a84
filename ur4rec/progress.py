"""Progress of an epoch: the bar that is shown and the means that are returned."""

import math
from collections.abc import Iterable, Mapping, Sized
from typing import Any

from tqdm import tqdm

from ur4rec.decisions import StepRecord
from ur4rec.stages import LABELS, TURNS


class EpochProgress:
    """Collects the steps of an epoch.

    Args:
        epoch: Its number, for the bar.
        num_steps: Steps expected; None if that is not known.
        shown: Whether to show a bar; None is only on a terminal.
    """

    def __init__(self, epoch: int, num_steps: int | None, shown: bool | None) -> None:
        disable = None if shown is None else not shown
        self._bar = tqdm(total=num_steps, desc=f"epoch {epoch}", disable=disable, unit="step")
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._steps = dict.fromkeys(TURNS, 0)
        self._switches = 0
        self._nonfinite = 0

    def add(
        self,
        record: StepRecord,
        total_loss: float,
        learning_rates: Mapping[str, float],
        metrics: Mapping[str, float],
    ) -> None:
        """Take in one step."""
        self._steps[record.active] += 1
        self._switches += record.active != record.next
        self._nonfinite += not math.isfinite(total_loss)
        self._average("total_loss", total_loss)
        for module, loss in record.losses.items():
            self._average(f"{module}_loss", loss)
        for name, value in metrics.items():
            self._average(name, value)
        if not self._bar.disable:
            self._bar.set_postfix_str(
                f"loss={total_loss:.4f}, lr_s={learning_rates['sasrec']:.2e}, lr_r={learning_rates['retriever']:.2e}, "
                f"train={LABELS[record.active]}, switch={self._switches}",
                refresh=False,
            )
            self._bar.update()

    def close(self) -> None:
        """Finish the bar; its last line stays."""
        self._bar.close()

    def metrics(self) -> dict[str, Any]:
        """Means of the finite losses, and counts: steps per turn, switches, skipped steps."""
        means = {name: self._sums[name] / self._counts[name] for name in self._sums}
        return {
            **means,
            "steps": sum(self._steps.values()),
            **{f"{turn}_steps": count for turn, count in self._steps.items()},
            "switches": self._switches,
            "nonfinite_steps": self._nonfinite,
        }

    def _average(self, name: str, value: float) -> None:
        if math.isfinite(value):
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1


def count_steps(loader: Iterable[object], start: int, stop: int | None) -> int | None:
    """How many batches a loader has between two places; None if it does not know its length.

    Example:
        >>> count_steps("abcde", 1, None), count_steps("abcde", 1, 3), count_steps(iter("abcde"), 0, None)
        (4, 2, None)
    """
    return len(range(len(loader))[start:stop]) if isinstance(loader, Sized) else None
