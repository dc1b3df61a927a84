"""The decision log of a run: one row per training step, as in ``decisions.csv``."""

from typing import Any, NamedTuple

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

    def row(self) -> dict[str, Any]:
        """One row of ``decisions.csv``."""
        row: dict[str, Any] = {name: getattr(self, name) for name in FIELDS[:7]}
        return row | {f"{name}_loss": value for name, value in self.losses.items()}
