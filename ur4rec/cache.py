"""Where downloaded data and computed text vectors are kept, and how files get there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ur4rec.errors import CacheError

ENVIRONMENT_VARIABLE = "ADAPTIVE_ALTERNATOR_CACHE"


def cache_directory(cache_dir: str | Path | None = None) -> Path:
    """Where everything is cached.

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


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    Raises:
        CacheError: It cannot be written.
    """
    with _refuse_unwritable(path), scratch_directory(path.parent) as scratch:
        write(scratch / path.name)
        (scratch / path.name).replace(path)


def write_directory(path: Path, files: dict[str, bytes]) -> None:
    """Replace the directory ``path`` by one with these files; it never exists half-written.

    Raises:
        CacheError: It cannot be written.
    """
    with _refuse_unwritable(path), scratch_directory(path.parent) as scratch:
        fresh, stale = scratch / "fresh", scratch / "stale"
        fresh.mkdir()
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        if path.exists():
            path.rename(stale)
        fresh.rename(path)


@contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """A temporary directory (inside ``parent``, which is made if need be) that is gone afterwards, whatever happens."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _refuse_unwritable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another cache directory, "
            f"by argument or with ${ENVIRONMENT_VARIABLE}"
        ) from error
