"""Where downloaded data and computed text vectors are kept."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ur4rec.errors import CacheError

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
