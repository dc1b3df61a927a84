"""What is kept of a training step: its report, and its row of the decision log, as in ``decisions.csv``."""

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from alternator import Decision
from ur4rec.schedule.stages import MODULES

FIELDS = ("step", "stage", "active", "next", "reason", "value", "limit", *(f"{name}_loss" for name in MODULES))

ArrayT = TypeVar("ArrayT")
"""An array of a backend."""


class StepReport(NamedTuple, Generic[ArrayT]):
    """The losses of a training step, as scalars that may still be on the device."""

    total: ArrayT
    """The loss that was minimised."""
    modules: Mapping[str, ArrayT]
    """The raw primary loss of each module for which it was computed."""
    metrics: Mapping[str, ArrayT]
    """What else the epoch averages, by the metric's name (see `ur4rec.training.components`); NaN does not count."""


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
