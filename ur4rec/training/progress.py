"""The bar that shows an epoch."""

from collections.abc import Iterable, Mapping, Sized

from tqdm import tqdm

from ur4rec.schedule.stages import LABELS
from ur4rec.training.epoch_totals import EpochTotals
from ur4rec.training.records import StepRecord


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
