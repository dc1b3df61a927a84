"""Records of a run as rows of a CSV file, which grows while the run trains."""

import csv
import io
from collections.abc import Sequence
from typing import Any


def write_rows(fields: Sequence[str], records: Sequence[Sequence[Any]], *, header: bool) -> str:
    r"""Records as text, below the names of their fields where the file begins.

    Example:
        >>> write_rows(("step", "loss"), [(1, 0.5)], header=True)
        'step,loss\n1,0.5\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([fields, *records] if header else records)
    return text.getvalue()


def read_rows(content: str) -> list[list[str]]:
    r"""The rows below the names of fields.

    Example:
        >>> read_rows("step,loss\n1,0.5\n")
        [['1', '0.5']]
    """
    return list(csv.reader(io.StringIO(content)))[1:]
