"""Files and directories that are written whole or not at all, their hash, and where the cache is."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ur4rec.errors import CacheError

SCRATCH_PREFIX = ".partial-"
"""The prefix of the names of files that are being written, or that a crash has left half-written."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    Raises:
        OSError: The disk is full or not writable; the previous file is still there and nothing else is.
    """
    with scratch_directory(path.parent) as scratch:
        write(scratch / path.name)
        _flush(scratch / path.name)
        (scratch / path.name).replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half-written; see `write_file`."""
    write_file(path, lambda scratch: scratch.write_bytes(content))


def write_directory(path: Path, files: dict[str, bytes]) -> None:
    """Replace the directory ``path`` by one with these files; it never exists half-written.

    Raises:
        OSError: The disk is full or not writable; the previous directory is still there and nothing else is.
    """
    with scratch_directory(path.parent) as scratch:
        fresh, stale = scratch / "fresh", scratch / "stale"
        fresh.mkdir()
        for name, content in files.items():
            (fresh / name).write_bytes(content)
            _flush(fresh / name)
        if path.exists():
            path.rename(stale)
        fresh.rename(path)


@contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """A temporary directory, inside ``parent`` (created if needed), that is removed afterwards whatever happens."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def hash_bytes(content: bytes) -> str:
    """SHA-256 of a content, in hexadecimal digits.

    Example:
        >>> hash_bytes(b"")[:16]
        'e3b0c44298fc1c14'
    """
    return hashlib.sha256(content).hexdigest()


def _flush(path: Path) -> None:
    """Make sure that the content is on the disk before a name points to it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


ENVIRONMENT_VARIABLE = "ADAPTIVE_ALTERNATOR_CACHE"


def cache_directory(cache_dir: str | Path | None = None) -> Path:
    """The directory in which everything is cached.

    The argument; else ``$ADAPTIVE_ALTERNATOR_CACHE``; else the folder ``adaptive-alternator`` in ``$XDG_CACHE_HOME`` or
    ``~/.cache``.

    Example:
        >>> cache_directory("elsewhere").name
        'elsewhere'
    """
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "adaptive-alternator"


@contextmanager
def refuse_unwritable(path: Path) -> Iterator[None]:
    """Turn an error while writing to the cache into one that names the remedy.

    Raises:
        CacheError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another cache directory, "
            f"by argument or with ${ENVIRONMENT_VARIABLE}"
        ) from error
