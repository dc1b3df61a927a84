"""Files of a run that are appended to, so that what a checkpoint costs does not grow with training."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ur4rec.errors import DataError

T = TypeVar("T")
TIn = TypeVar("TIn", contravariant=True)


class Writer(Protocol[TIn]):
    """Turns records into lines, one each."""

    def __call__(self, records: Sequence[TIn], *, header: bool) -> str:
        """The lines of the records, after that of the header if it is wanted."""


class AppendedLog(Generic[T]):
    """Records, and the CSV file that holds them.

    The file may hold more than a checkpoint stands for: rows of steps that a crash undid, the last one perhaps in part.
    They are cut off when the run is resumed. Without any record there is no file.

    Args:
        path: The file.
        write: Turns records into lines.
        read: Turns the content of a file back into records.

    Attributes:
        records: All records, in order; the last ones may not be written yet.
    """

    def __init__(self, path: Path, write: Writer[T], read: Callable[[str], list[T]]) -> None:
        self.path = path
        self.records: list[T] = []
        self._to_lines, self._from_content = write, read
        self._num_written = self._size = 0
        self._digest = hashlib.sha256()

    def write(self) -> None:
        """Append the records that are new and have them on the disk; what else is behind the written rows is cut off.

        Raises:
            OSError: The disk is full or not writable; the rows that were written before are still there.
        """
        if not self.records and not self.path.exists():
            return
        content = self._to_lines(self.records[self._num_written :], header=not self._size).encode()
        with self.path.open("ab") as file:
            file.truncate(self._size)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(content)
        self._digest.update(content)
        self._num_written = len(self.records)

    def state_dict(self) -> dict[str, Any]:
        """What is written, as plain JSON values."""
        return {"num_records": self._num_written, "sha256": self._digest.hexdigest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what the file held when `state_dict` was taken.

        Raises:
            DataError: The file is missing or damaged, or it holds fewer records.
        """
        count, content = state["num_records"], b""
        if count:
            content = b"".join(self._read().splitlines(keepends=True)[: count + 1])
            if hashlib.sha256(content).hexdigest() != state["sha256"]:
                raise DataError(
                    f"{self.path} must hold the {count} rows that were saved, it is damaged: its SHA-256 is not the "
                    "one in the checkpoint; restore it, or train from scratch"
                )
        self.records[:] = self._from_content(content.decode())
        self._num_written, self._size, self._digest = count, len(content), hashlib.sha256(content)

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path} must be a log of the run, it cannot be read ({error}); restore it") from error
