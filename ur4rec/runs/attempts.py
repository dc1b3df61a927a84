"""What a `Trial` schedule has tried and undone: ``trials.csv`` of a run."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alternator import Reason
from alternator.recordings.log import StepRecord
from ur4rec.runs.rows import read_rows, write_rows
from ur4rec.schedule.trial_probe import STAYS, UNDONE, WINS, Attempt


def write_attempts(records: Sequence[Attempt], *, header: bool) -> str:
    """Rows of ``trials.csv``: an attempt or a verdict each, in steps of the run."""
    return write_rows(Attempt._fields, records, header=header)


def read_attempts(content: str) -> list[Attempt]:
    """The records that `write_attempts` wrote.

    Raises:
        ValueError, LookupError, TypeError: A row is not such a record.

    Example:
        >>> records = [Attempt(120, 101, "sasrec + 8 retriever", 4.5, UNDONE)]
        >>> read_attempts(write_attempts(records, header=True)) == records
        True
    """
    rows = read_rows(content)
    if unknown := {row[4] for row in rows} - {UNDONE, STAYS, WINS}:
        raise ValueError(f"unknown outcome {min(unknown)!r}")
    return [Attempt(int(row[0]), int(row[1]), row[2], float(row[3]), row[4]) for row in rows]


def kept_steps(first: int, last: int, attempts: Sequence[Attempt], records: Sequence[StepRecord]) -> NDArray[np.int64]:
    """The steps of a stage that made the model after its last step, counted from its beginning, ascending.

    Args:
        first: Steps of the run before the stage.
        last: The last step of the run that counts: what was undone after it was not yet.
        attempts: What a `Trial` schedule has tried, in steps of the run.
        records: The decision log, which knows where the better half of a trial's candidates began again.

    Example:
        >>> tried = [Attempt(4, 3, "sasrec", 4.0, "undone"), Attempt(6, 5, "both", 5.0, "stays")]
        >>> kept_steps(0, 8, tried, []).tolist()
        [0, 1, 4, 5, 6, 7]
        >>> kept_steps(0, 8, [*tried, Attempt(7, 5, "sasrec", float("nan"), "wins")], []).tolist()
        [0, 1, 2, 3, 7]
        >>> kept_steps(0, 4, tried, []).tolist()
        [0, 1, 2, 3]
    """
    is_kept = np.ones(last + 1, bool)
    undone: dict[str, Attempt] = {}
    again = [record.step for record in records[first:last] if record.reason == Reason.HALVED]
    events: list[tuple[int, Attempt | None]] = [(each.step, each) for each in attempts if each.first > first]
    begun = first + 1
    for step, attempt in sorted([*events, *((step, None) for step in again)], key=lambda event: event[0]):
        if step >= last:
            break
        if attempt is None:
            is_kept[begun : step + 1] = False
        elif attempt.outcome in (UNDONE, WINS):
            is_kept[attempt.first : step + 1] = False
            if attempt.outcome == UNDONE:
                undone[attempt.candidate] = attempt
            else:
                won = undone[attempt.candidate]
                is_kept[won.first : won.step + 1] = True
        else:
            begun = attempt.first
    return np.flatnonzero(is_kept[first + 1 :])
