"""``decisions.csv`` of a run: appended to, so that what a checkpoint costs does not grow with training."""

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

from ur4rec.errors import DataError
from ur4rec.training.records import FIELDS, StepRecord

_HEADER = (",".join(FIELDS) + "\n").encode()


class DecisionLog:
    """The records of all steps, and the file that holds them.

    The file may hold more than a checkpoint stands for: rows of steps that a crash undid, the last one perhaps in part.
    They are cut off when the run goes on.

    Args:
        path: The file.

    Attributes:
        records: Of all steps, in order; the last ones may not be written yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[StepRecord] = []
        self._num_written = self._size = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the rows that are written."""
        return self._digest.hexdigest()

    def write(self) -> None:
        """Append the records that are new and have them on the disk; what else is behind the written rows is cut off.

        Raises:
            OSError: The disk is full or not writable; the rows that were written before are still there.
        """
        content = _rows(self.records[self._num_written :])
        if not self._size:
            content = _HEADER + content
        with self.path.open("ab") as file:
            file.truncate(self._size)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(content)
        self._digest.update(content)
        self._num_written = len(self.records)

    def load(self, num_steps: int, sha256: str) -> None:
        """Go back to the first steps of the file.

        Args:
            num_steps: So many.
            sha256: What `sha256` was then.

        Raises:
            DataError: The file is missing or damaged, or it holds fewer steps.
        """
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise DataError(f"{self.path} must be the decision log of the run, it cannot be read ({error})") from error
        content = b"".join(lines[: num_steps + 1])
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DataError(
                f"{self.path} must hold the {num_steps} steps that were saved, it is damaged: its SHA-256 is not the "
                "one in the checkpoint; restore it, or train anew"
            )
        self.records[:] = map(StepRecord.from_row, csv.DictReader(content.decode().splitlines()))
        self._num_written, self._size, self._digest = num_steps, len(content), hashlib.sha256(content)


def _rows(records: Sequence[StepRecord]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, FIELDS, restval="", lineterminator="\n").writerows(record.row() for record in records)
    return text.getvalue().encode()
