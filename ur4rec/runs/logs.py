"""The logs of a run: what was decided in each step, what was measured for it, and what was tried and undone."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alternator import Alternator
from alternator.recordings.log import StepRecord, read_log, write_log
from ur4rec.runs.attempts import read_attempts, write_attempts
from ur4rec.runs.directory import AppendedLog
from ur4rec.runs.measurements import Measurement, PayoffWatch, read_measurements, write_measurements
from ur4rec.schedule.trial_probe import Attempt, describe_attempt
from ur4rec.training.trainer import AnyTrainer

logger = logging.getLogger(__name__)

LOG_STATE = {"num_records": int, "sha256": str}
"""What a checkpoint keeps of each."""


class RunLogs:
    """``decisions.csv``, and ``payoffs.csv`` and ``trials.csv`` of the schedules that measure.

    Args:
        folder: Where they are.
        modules: Of the model.
        tries: Whether the schedule is a `Trial`.

    Attributes:
        decisions: The decision log: one record per step.
        payoffs: What a `Payoff` schedule has measured; empty for every other one.
        trials: What a `Trial` schedule has tried and undone, in steps of the run; empty for every other one.
    """

    def __init__(self, folder: Path, modules: Sequence[str], *, tries: bool) -> None:
        self.decisions: AppendedLog[StepRecord] = AppendedLog(
            folder / "decisions.csv", partial(write_log, modules=modules), read_log
        )
        self.payoffs: AppendedLog[Measurement] = AppendedLog(
            folder / "payoffs.csv", write_measurements, read_measurements
        )
        self.trials: AppendedLog[Attempt] = AppendedLog(folder / "trials.csv", write_attempts, read_attempts)
        self._kept: tuple[AppendedLog[Any], ...] = (self.decisions, self.payoffs, *([self.trials] if tries else []))
        self._watch = PayoffWatch()
        self._num_attempts = 0

    def begin_stage(self) -> None:
        """What is tried is counted from the beginning of a stage."""
        self._num_attempts = 0

    def after_step(self, trainer: AnyTrainer) -> None:
        """Keep what has been measured and tried since the last step."""
        self.payoffs.records += self._watch.after_step(trainer.alternator, trainer.step)
        fresh = trainer.attempts[self._num_attempts :]
        earlier = trainer.step - trainer.stage_step
        for each in fresh:
            attempt = each._replace(step=each.step + earlier, first=each.first + earlier)
            self.trials.records.append(attempt)
            logger.info(describe_attempt(attempt))
        self._num_attempts += len(fresh)

    def write(self) -> None:
        """Append what is new to the files."""
        for log in self._kept:
            log.write()

    def state_dicts(self) -> list[dict[str, Any]]:
        """What is written, as plain JSON values."""
        return [log.state_dict() for log in self._kept]

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]], alternator: Alternator) -> None:
        """Go back to what the files held when `state_dicts` was taken.

        Args:
            states: What it returned.
            alternator: Of the trainer, as it was then.

        Raises:
            DataError: A file is missing or damaged, or it holds fewer records.
            ValueError: There are other logs.
        """
        for log, state in zip(self._kept, states, strict=True):
            log.load_state_dict(dict(state))
        self._watch.restore(alternator, self.payoffs.records)
