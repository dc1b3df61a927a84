"""The decision log of a run: one row per training step, as in ``decisions.csv``."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alternator import Decision
from ur4rec.errors import DataError
from ur4rec.stages import MODULES

FIELDS = ("step", "stage", "active", "next", "reason", "value", "limit", *(f"{name}_loss" for name in MODULES))


class StepRecord(NamedTuple):
    """What one training step did and what was decided after it."""

    step: int
    """Training step of the run, 1-based, over all stages."""
    stage: str
    """The stage."""
    active: str
    """What trained in this step: a module, or both."""
    next: str
    """What trains in the next step."""
    reason: str
    """Why: a code of `alternator.Reason`."""
    value: float
    """The number that was compared."""
    limit: float
    """The number that it was compared with."""
    losses: dict[str, float]
    """The raw primary loss of each module that was computed in this step."""

    @classmethod
    def of_decision(cls, step: int, stage: str, active: str, decision: Decision) -> "StepRecord":
        """The record of a step whose losses have not been read."""
        return cls(step, stage, active, decision.active, decision.reason, decision.value, decision.limit, {})

    def row(self) -> dict[str, Any]:
        """One row of ``decisions.csv``."""
        row: dict[str, Any] = {name: getattr(self, name) for name in FIELDS[:7]}
        row |= {"value": float(self.value), "limit": float(self.limit)}
        return row | {f"{name}_loss": value for name, value in self.losses.items()}

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> "StepRecord":
        """The record that `row` was made from."""
        return cls(
            step=int(row["step"]),
            stage=row["stage"],
            active=row["active"],
            next=row["next"],
            reason=row["reason"],
            value=float(row["value"]),
            limit=float(row["limit"]),
            losses={name: float(row[f"{name}_loss"]) for name in MODULES if row[f"{name}_loss"]},
        )


def read_decisions(path: Path, num_steps: int) -> list[StepRecord]:
    """The first steps of a decision log.

    Raises:
        DataError: The file is missing or damaged, or it holds fewer steps.
    """
    try:
        with path.open(newline="") as file:
            records = [StepRecord.from_row(row) for _, row in zip(range(num_steps), csv.DictReader(file), strict=False)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} must be the decision log of the run, it cannot be read ({error})") from error
    if [record.step for record in records] != list(range(1, num_steps + 1)):
        raise DataError(f"{path} must hold the steps 1 to {num_steps} in order, got {len(records)} rows; run it anew")
    return records
