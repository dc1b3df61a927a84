"""What a `Trial` schedule has tried and undone: ``trials.csv`` of a run."""

from collections.abc import Sequence

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


def count_undone(attempts: Sequence[Attempt]) -> int:
    """The number of steps that were undone for good.

    Example:
        >>> tried = [Attempt(20, 11, "retriever", 4.0, UNDONE), Attempt(30, 21, "both", 5.0, STAYS)]
        >>> count_undone(tried), count_undone([*tried, Attempt(31, 21, "retriever", float("nan"), WINS)])
        (10, 11)
    """
    undone, last = 0, dict[str, int]()
    for attempt in attempts:
        steps = attempt.step - attempt.first + 1
        if attempt.outcome == UNDONE:
            undone, last[attempt.candidate] = undone + steps, steps
        elif attempt.outcome == WINS:
            undone += steps - last.get(attempt.candidate, 0)
    return undone
