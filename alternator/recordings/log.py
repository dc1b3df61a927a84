"""The decision log: a CSV file with one row per training step, which says who trained, what was decided and why.

The columns are step, stage, active, next, reason, value and limit, then ``NAME_loss`` for each module. The stage is a
label of the loop's own for a part of the training, and may be empty.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from alternator.decision import Decision

COLUMNS = ("step", "stage", "active", "next", "reason", "value", "limit")
"""The columns before the losses."""
_SIGNATURE = frozenset({"step", "stage", "active", "next", "reason"})
_SUFFIX = "_loss"


class StepRecord(NamedTuple):
    """What one training step did and what was decided after it.

    Example:
        >>> from alternator import Alternator
        >>> decision = Alternator(("encoder", "head")).observe(0.7)
        >>> record = StepRecord.of_decision(1, "", "encoder", decision)._replace(losses={"encoder": 0.7})
        >>> print(write_log([record], ("encoder", "head")), end="")
        step,stage,active,next,reason,value,limit,encoder_loss,head_loss
        1,,encoder,encoder,min_steps,1.0,5.0,0.7,
        >>> read_log(write_log([record], ("encoder", "head"))) == [record]
        True
    """

    step: int
    """Training step of the run, 1-based, over all stages."""
    stage: str
    """The stage."""
    active: str
    """What trained in this step: a module, or a name for several."""
    next: str
    """What trains in the next step."""
    reason: str
    """Why: a code of `alternator.Reason`."""
    value: float
    """The number that was compared."""
    limit: float
    """The number that it was compared with."""
    losses: dict[str, float]
    """The loss of each module for which one was computed in this step."""

    @classmethod
    def of_decision(cls, step: int, stage: str, active: str, decision: Decision) -> "StepRecord":
        """The record of a step whose losses have not been read."""
        return cls(step, stage, active, decision.active, decision.reason, decision.value, decision.limit, {})

    def row(self) -> dict[str, Any]:
        """The cells of its row, by column; a loss that was not computed has none."""
        row: dict[str, Any] = {name: getattr(self, name) for name in COLUMNS}
        row |= {"value": float(self.value), "limit": float(self.limit)}
        return row | {f"{name}{_SUFFIX}": value for name, value in self.losses.items()}

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
            losses={name: float(row[column]) for name, column in loss_columns(row).items() if row[column]},
        )


def is_log(header: Iterable[str]) -> bool:
    """Whether a CSV file with these columns is a decision log."""
    return set(header) >= _SIGNATURE


def loss_columns(header: Iterable[str]) -> dict[str, str]:
    """The column of each module's losses in a decision log, in order.

    Example:
        >>> loss_columns(("step", "reason", "encoder_loss", "head_loss"))
        {'encoder': 'encoder_loss', 'head': 'head_loss'}
    """
    return {column.removesuffix(_SUFFIX): column for column in header if column.endswith(_SUFFIX)}


def write_log(records: Iterable[StepRecord], modules: Sequence[str], *, header: bool = True) -> str:
    """A decision log as a string.

    Args:
        records: The steps, in order.
        modules: The modules, in order.
        header: Whether to begin with the names of the columns; without them the rows can be appended to a log.
    """
    text = io.StringIO()
    fields = (*COLUMNS, *(f"{name}{_SUFFIX}" for name in modules))
    writer = csv.DictWriter(text, fields, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(record.row() for record in records)
    return text.getvalue()


def read_log(content: str) -> list[StepRecord]:
    """The records of a decision log that `write_log` wrote.

    Raises:
        ValueError: A row is not such a record.
    """
    try:
        return [StepRecord.from_row(row) for row in csv.DictReader(io.StringIO(content), strict=True)]
    except (KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"not a decision log: {error}") from error
