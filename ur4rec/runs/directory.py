"""The run directory: every file in it is written whole or not at all, or is a log that is only appended to."""

import csv
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from filelock import FileLock

from alternator.checks import check_choice, check_integer, cut
from ur4rec.errors import ConfigurationError, DataError, refuse_malformed
from ur4rec.files import SCRATCH_PREFIX, holding, in_lines, parse_object, plain_tree, refuse_links, remove, write_whole

_LOCK = ".lock"
REFIT = "refit"
"""The directory of a run's refit, in its own, and the name of the checkpoint that it ends with."""
CHECKPOINTS = ("best", "latest", REFIT)
"""The names of checkpoints."""


class RunDirectory:
    """``config.json, metrics.json, decisions.csv, schedule.png`` and ``checkpoint/`` of one run.

    Each file is written to a temporary sibling and then put in place in one step, so that a crash or a full disk leaves
    the previous one whole.

    Args:
        path: The directory. Create it with `create`, or open an existing run with `open_existing`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / _LOCK)

    @staticmethod
    def check_new(path: Path, *, overwrite: bool = False) -> None:
        """Refuse where `create` would make no run directory, before there is anything to keep, and change nothing.

        Args:
            path: As for `create`.
            overwrite: As for `create`.

        Raises:
            ConfigurationError: The directory holds something, or cannot be written.
        """
        if path.exists() and not path.is_dir():
            raise ConfigurationError(f"--out must be a directory, {path} is a file; choose another --out")
        if _is_occupied(path):
            if not overwrite:
                raise ConfigurationError(f"--out must be empty, {path} is not; choose another, or give --overwrite")
            if not (path / "config.json").exists():
                raise ConfigurationError(f"--overwrite removes only a run directory; {path} has no config.json")
        there = next(each for each in (path, *path.absolute().parents) if each.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = "may not be written to" if there.is_dir() else "is a file"
            raise ConfigurationError(f"--out must be writable, {path} is not: {there} {why}; choose another --out")

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False) -> "RunDirectory":
        """Make a new run directory.

        Args:
            path: Must not exist, or be empty, unless ``overwrite``.
            overwrite: Remove an earlier run of that name. Anything but a run directory is still refused.

        Raises:
            ConfigurationError: The directory holds something, cannot be written, or a process trains in it.
        """
        cls.check_new(path, overwrite=overwrite)
        directory = cls(path)
        if _is_occupied(path):
            with directory.locked():
                directory._remove_all()
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise ConfigurationError(f"--out must be writable, {path} is not ({error.strerror})") from error
        return directory

    @classmethod
    def open_existing(cls, path: Path) -> "RunDirectory":
        """Open the directory of an earlier run.

        Raises:
            ConfigurationError: There is no run at that path.
            DataError: It holds a symbolic link.
        """
        if not (path / "config.json").is_file():
            raise ConfigurationError(f"{path} is no run directory: it has no config.json; give the --out of a run")
        directory = cls(path)
        refuse_links(path, directory._skipped)
        return directory

    @property
    def _skipped(self) -> tuple[Path, ...]:
        """Where Weights & Biases keeps its files, and links to the newest, of the run and of its refit."""
        return tuple(path / "events" / "wandb" for path in (self.path, self.path / REFIT))

    def files(self) -> Iterator[Path]:
        """All files and folders of the run, without those of Weights & Biases.

        Raises:
            DataError: One is a link.
        """
        return plain_tree(self.path, self._skipped)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this directory; what a crash left incomplete is removed.

        Raises:
            ConfigurationError: Another process trains in it.
            DataError: It holds a symbolic link, which would be followed.
        """
        refuse_links(self.path, self._skipped)
        refusal = (
            f"only one process may train in a run directory, and another one does in {self.path}; "
            "wait for it, or choose another directory"
        )
        with holding(self._lock, refusal):
            for partial in [*self.path.glob(f"{SCRATCH_PREFIX}*"), *self.path.glob(f"checkpoint/{SCRATCH_PREFIX}*")]:
                remove(partial)
            self._remove_superseded()
            yield

    def discard(self, *, keep_directory: bool) -> None:
        """Remove what a run wrote that has trained nothing, so that it can be started again under the same name."""
        self._remove_all()
        (self.path / _LOCK).unlink(missing_ok=True)
        if not keep_directory:
            self.path.rmdir()

    def checkpoint(self, which: str = "best") -> Path | None:
        """The ``best`` checkpoint, by validation, or the ``latest``; None if the run has not reached its first.

        ``refit`` is that of the refit, None until it has ended.

        Raises:
            UnknownNameError: ``which`` is none of them.
            DataError: ``BEST`` or ``LATEST`` names none.
        """
        check_choice("checkpoint", which, CHECKPOINTS)
        if which == REFIT:
            return self.refit.checkpoint("best")
        pointer = self.path / "checkpoint" / which.upper()
        if not pointer.exists():
            return None
        target = pointer.read_bytes().decode(errors="replace").strip()
        if not re.fullmatch(r"step-\d{1,19}(\.\d)?", target) or not (pointer.parent / target).is_dir():
            there = sorted(each.name for each in pointer.parent.glob("step-*"))
            raise DataError(
                f"{pointer} must name a checkpoint beside it (one of {there}), got {cut(target)!r}; name one of them"
            )
        return pointer.parent / target

    def require_checkpoint(self, which: str = "best") -> Path:
        """As `checkpoint`, but a run that has not reached its first is a `DataError` too."""
        if (path := self.checkpoint(which)) is None:
            remedy = "train it with --resume and --refit" if which == REFIT else "let its run finish an epoch first"
            raise DataError(f"{self.path} has no {which} checkpoint yet; {remedy}")
        return path

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint to continue from; None if the run was stopped before it had saved one.

        A run's first save begins with the folder of its checkpoints, and a second epoch comes after it.

        Raises:
            DataError: There must have been one, and it is gone: what was trained would be trained again.
        """
        if (path := self.checkpoint("latest")) is not None:
            return path
        epochs = self.read_json("metrics.json").get("epochs") if (self.path / "metrics.json").is_file() else None
        has_log = (self.path / "decisions.csv").is_file() and not (self.path / "checkpoint").is_dir()
        if has_log or (isinstance(epochs, list) and len(epochs) > 1):
            raise DataError(
                f"{self.path / 'checkpoint'} must hold the newest checkpoint of a run that has trained, it is gone; "
                "restore the folder, or train from scratch in another directory"
            )
        return None

    @property
    def refit(self) -> "RunDirectory":
        """The directory of the run's refit, whether it is there or not."""
        return RunDirectory(self.path / REFIT)

    def chosen(self, which: str | None = None) -> str:
        """The name of the checkpoint to use: as named, or else that of the refit if it has ended, or the best."""
        return which or (REFIT if self.checkpoint(REFIT) is not None else "best")

    @contextmanager
    def new_checkpoint(self, step: int, *, best: bool) -> Iterator[Path]:
        """A path to save a checkpoint at; once it is whole, it becomes the newest, and the ones before it are removed.

        Args:
            step: Training steps of the run.
            best: Whether it is the best by validation, which is kept beside the newest.
        """
        folder = self.path / "checkpoint"
        folder.mkdir(exist_ok=True)
        # What a pointer names is never replaced: not by what is saved at the same step later, as after a validation.
        named = {self.checkpoint("best"), self.checkpoint("latest")}
        path = next(path for suffix in ("", ".1", ".2") if (path := folder / f"step-{step}{suffix}") not in named)
        yield path
        for name in ("BEST", "LATEST") if best else ("LATEST",):
            write_whole(folder / name, f"{path.name}\n".encode())
        self._remove_superseded()

    def _remove_superseded(self) -> None:
        """Remove the checkpoints that no pointer names; all are kept where a pointer is missing or damaged."""
        with suppress(DataError):
            kept = {self.checkpoint("best"), self.checkpoint("latest")}
            superseded = [each for each in self.path.glob("checkpoint/step-*") if each not in kept]
            for each in superseded if self.checkpoint("latest") else ():
                remove(each)

    def _remove_all(self) -> None:
        for each in self.path.iterdir():
            if each.name != _LOCK:
                remove(each)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a mapping as JSON."""
        write_whole(self.path / name, f"{in_lines(content)}\n".encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            DataError: The file is missing or damaged.
        """
        path = self.path / name
        try:
            return parse_object(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{path} must hold a JSON object ({error}); is this the directory of a run?") from error

    def check_fact(self, name: str, value: object) -> None:
        """Refuse data that is not what the run was made with.

        Args:
            name: A fact of ``config.json``, such as ``interactions_hash``.
            value: What it is now.

        Raises:
            DataError: It was another, or is not known.
        """
        facts = self.read_json("config.json").get("facts")
        saved = facts.get(name) if isinstance(facts, dict) else None
        if value != saved:
            raise DataError(
                f"the data must be the run's, but its {name} was {saved!r} and is {value!r}; restore the data"
            )

    def write_csv(self, name: str, columns: Mapping[str, Iterable[Any]]) -> None:
        """Write columns of one length as CSV with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_whole(self.path / name, text.getvalue().encode())


def _is_occupied(path: Path) -> bool:
    return path.is_dir() and any(each.name != _LOCK for each in path.iterdir())


T = TypeVar("T")
TIn = TypeVar("TIn", contravariant=True)


class Writer(Protocol[TIn]):
    """Turns records into lines, one each."""

    def __call__(self, records: Sequence[TIn], *, header: bool) -> str:
        """The lines of the records, after that of the header if it is wanted."""


class AppendedLog(Generic[T]):
    """Records, and the CSV file that holds them.

    The file may hold more than a checkpoint stands for: rows of steps that a crash undid, the last one perhaps in part.
    They are cut off when the run is resumed. Without any record there is no file. A file that is there already is
    replaced at the first write, so that no other name of it, a link or a backup, is written to.

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
        self._is_own = False
        self._digest = hashlib.sha256()

    def write(self) -> None:
        """Append the records that are new and have them on the disk; what else is behind the written rows is cut off.

        Raises:
            OSError: The disk is full or not writable; the rows that were written before are still there.
        """
        if not self.records and not self.path.exists():
            return
        content = self._to_lines(self.records[self._num_written :], header=not self._size).encode()
        if self._is_own:
            with self.path.open("ab") as file:
                file.truncate(self._size)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        else:
            write_whole(self.path, (self._read()[: self._size] if self._size else b"") + content)
            self._is_own = True
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
        check_integer("the number of records", count, 0)
        if count:
            content = b"".join(self._read().splitlines(keepends=True)[: count + 1])
            if hashlib.sha256(content).hexdigest() != state["sha256"]:
                raise DataError(
                    f"{self.path} must hold the {count} rows that were saved, it is damaged: its SHA-256 is not the "
                    "one in the checkpoint; restore it, or train from scratch"
                )
        with refuse_malformed(self.path, "restore it, or train from scratch"):
            self.records[:] = self._from_content(content.decode())
        self._num_written, self._size, self._digest = count, len(content), hashlib.sha256(content)

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path} must be a log of the run, it cannot be read ({error}); restore it") from error
