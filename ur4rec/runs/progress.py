"""What a run says while it trains: a line per epoch, and one a minute in an epoch that takes long."""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ur4rec.evaluation.results import CRITERION
from ur4rec.runs.plan import TABLE_ROWS, Plan
from ur4rec.schedule.stages import LABELS

logger = logging.getLogger(__name__)

INTERVAL = 60.0
"""Seconds without a word after which something is said, where no progress bar is seen."""


def describe_seconds(seconds: float) -> str:
    """A length of time as people say it.

    Example:
        >>> describe_seconds(7.4), describe_seconds(200), describe_seconds(7500)
        ('7 s', '3 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    for long, short, size in (("h", "min", 3600), ("min", "s", 60)):
        if whole >= size:
            return f"{whole // size} {long} {whole % size * 60 // size} {short}"
    return f"{whole} s"


def estimate_left(plan: Plan, epochs: Sequence[Mapping[str, Any]]) -> float:
    """Seconds that the epochs still to come take, each as long as one of its stage (else of any) has taken so far."""
    spent: dict[str, list[float]] = {}
    for row in epochs:
        spent.setdefault(row["stage"], []).append(row["train_seconds"] + row["evaluation_seconds"])
    every = [seconds for stage in spent.values() for seconds in stage]
    means = {stage: sum(values) / len(values) for stage, values in spent.items()}
    return sum(num * means.get(stage, sum(every) / len(every)) for stage, num in plan.remaining.items())


def describe_epoch(before: Plan, epochs: Sequence[Mapping[str, Any]]) -> str:
    """The last of these epochs in one line.

    Args:
        before: The plan before it.
        epochs: All so far.
    """
    row = epochs[-1]
    stage, train, validation = row["stage"], row["train"], row["validation"]
    plan = before.after(validation)
    turns = ", ".join(f"{LABELS[turn]} {num}" for turn in LABELS if (num := train.get(f"{turn}_steps")))
    parts = [f"loss {train.get('total_loss', float('nan')):.4f}", f"steps {turns}"]
    if validation:
        metrics = validation[TABLE_ROWS[stage][0]]
        better = "" if metrics[CRITERION] > before.best else f" (best {before.best:.4f})"
        parts.append(f"validation NDCG@10 {metrics[CRITERION]:.4f}{better}, Hit@10 {metrics['hit@10']:.4f}")
    elapsed = sum(each["train_seconds"] + each["evaluation_seconds"] for each in epochs)
    parts.append(f"{describe_seconds(elapsed)} elapsed")
    if plan.stage is not None:
        at_most = "at most " if plan.config.early_stopping is not None else ""
        parts.append(f"{at_most}{describe_seconds(estimate_left(plan, epochs))} left")
    return f"{describe_place(before)}: {', '.join(parts)}"


def describe_place(plan: Plan) -> str:
    """The epoch that comes next.

    Example:
        >>> from ur4rec.runs.config import RunConfig
        >>> describe_place(Plan(config=RunConfig()))
        'pretrain_sasrec, epoch 1 of 5'
    """
    assert plan.stage is not None
    return f"{plan.stage}, epoch {plan.stage_epoch + 1} of {plan.config.epochs[plan.stage]}"


class Heartbeat:
    """Says where a run is, once a minute, unless a progress bar on a terminal does.

    Args:
        has_bar: Whether there is one; None is on a terminal.
        clock: Seconds.
    """

    def __init__(self, has_bar: bool | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_silent = sys.stderr.isatty() if has_bar is None else has_bar
        self._clock = clock
        self._last = clock()

    def say(self, line: str) -> None:
        """Say this now."""
        logger.info("%s", line)
        self._last = self._clock()

    def beat(self, line: Callable[[], str]) -> None:
        """Say this if it is time."""
        if not self._is_silent and self._clock() - self._last >= INTERVAL:
            self.say(line())
