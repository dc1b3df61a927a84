"""Files and directories that are written whole or not at all, their hash, and where the cache is."""

import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alternator.checks import cut
from ur4rec.errors import CacheError, ConfigurationError, DataError

SCRATCH_PREFIX = ".partial-"
"""The prefix of the names of files that are being written, or that a crash has left half-written."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    Raises:
        OSError: The disk is full or not writable; the previous file is still there and nothing else is.
    """
    with scratch_directory(path.parent) as scratch:
        part = scratch / path.name
        part.touch()
        mode = part.stat().st_mode
        write(part)
        part.chmod(mode)  # a library may have put a file of its own there that nobody else can read
        _flush(part)
        part.replace(path)


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


def plain_tree(directory: Path, skipped: Collection[Path] = ()) -> Iterator[Path]:
    """Everything below a directory, folders before what is in them: nothing but files and folders.

    A directory from somebody else may hold links to files of yours, or pipes that block whoever reads them.

    Args:
        directory: The directory itself may be a link, as whoever named it knows.
        skipped: Folders that are not entered.

    Raises:
        DataError: It holds something else, such as a symbolic link; the message names it.
    """
    pending = [str(directory)]
    while pending:
        with suppress(FileNotFoundError), os.scandir(pending.pop()) as entries:  # another process may remove folders
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if Path(entry) in skipped:
                        continue
                    pending.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    what = "a symbolic link" if entry.is_symlink() else "neither a file nor a folder"
                    raise DataError(
                        f"{directory} must hold files and folders only, but {entry.path} is {what}; remove it, or put "
                        "what it points to in its place"
                    )
                yield Path(entry)


def refuse_links(directory: Path, skipped: Collection[Path] = ()) -> None:
    """Refuse what `plain_tree` refuses."""
    for _ in plain_tree(directory, skipped):
        pass


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; a link goes, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def holding(lock: FileLock, refusal: str) -> Iterator[None]:
    """Hold the lock of a directory, without waiting for another process.

    Args:
        lock: The lock; whoever holds it may hold it again.
        refusal: What to say if another process holds it.

    Raises:
        ConfigurationError: Another process holds it.
    """
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigurationError(refusal) from error
    try:
        yield
    finally:
        lock.release()


def hash_bytes(content: bytes) -> str:
    """SHA-256 of a content, in hexadecimal digits.

    Example:
        >>> hash_bytes(b"")[:16]
        'e3b0c44298fc1c14'
    """
    return hashlib.sha256(content).hexdigest()


def in_lines(content: Mapping[str, Any], *, allow_nan: bool = False) -> str:
    """A JSON object for people to read too, with a line for each entry, and for each element of an entry.

    What is written after every epoch must not cost much: ``json.dumps`` with ``indent`` takes 3.6 times as long.

    Args:
        content: What is written.
        allow_nan: Whether NaN and infinite numbers, which are no JSON, are written as Python reads them.

    Raises:
        ValueError: There is one, and it is not allowed.

    Example:
        >>> print(in_lines({"seconds": 2.5, "epochs": [{"step": 1}, {"step": 2}], "final": {"fused": {"epoch": 2}}}))
        {
        "seconds": 2.5,
        "epochs": [
        {"step": 1},
        {"step": 2}
        ],
        "final": {
        "fused": {"epoch": 2}
        }
        }
    """
    write = partial(json.dumps, allow_nan=allow_nan)

    def fold(value: Any, write: Callable[[Any], str]) -> str:
        if isinstance(value, Mapping) and value:
            entries = (f"{json.dumps(name)}: {write(each)}" for name, each in value.items())
            return "{\n" + ",\n".join(entries) + "\n}"
        if isinstance(value, list) and value and isinstance(value[0], Mapping | list):
            return "[\n" + ",\n".join(map(write, value)) + "\n]"
        return write(value)

    return fold(content, lambda value: fold(value, write))


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ValueError: It holds something else; says what.

    Example:
        >>> parse_object(b'{"seed": 0}')
        {'seed': 0}
        >>> parse_object(b"[]")
        Traceback (most recent call last):
        ...
        ValueError: it holds a list
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}")
    return value


def check_form(value: Any, form: Any, place: str = "") -> None:
    """Refuse what a document holds if it is of another form: a type is missing or another, a number is not finite.

    Args:
        value: What was read.
        form: ``float`` is a finite number, ``int`` and ``str`` are themselves; ``[form]`` is a list of any length,
            ``[]`` one of anything; ``{"name": form}`` is an object that has these names, ``{str: form}`` one of any
            names; ``(form, None)`` may be None.
        place: Where it is in the document.

    Raises:
        ValueError: Says where, what it must be and what it is.

    Example:
        >>> check_form({"points": [{"cost": 1.5}], "error": None}, {"points": [{"cost": float}], "error": (str, None)})
        >>> check_form({"points": [{"cost": "dear"}]}, {"points": [{"cost": float}]})
        Traceback (most recent call last):
        ...
        ValueError: points.0.cost must be a finite number, got 'dear'
    """
    inside = f"{place}." if place else ""
    if isinstance(form, tuple):
        (form,) = (each for each in form if each is not None)
        if value is None:
            return
    if not _is_of(value, form):
        raise ValueError(f"{place or 'it'} must be {_describe(form)}, got {cut(repr(value))}")
    if isinstance(form, list):
        for number, each in enumerate(value if form else ()):
            check_form(each, form[0], f"{inside}{number}")
    elif isinstance(form, dict):
        for name, each in form.items():
            if name is not str and name not in value:
                raise ValueError(f"{inside}{name} is missing")
            for key in value if name is str else (name,):
                check_form(value[key], each, f"{inside}{key}")


def _is_of(value: Any, form: Any) -> bool:
    if form is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if form is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, form if isinstance(form, type) else type(form))


def _describe(form: Any) -> str:
    names = {float: "a finite number", int: "an integer", str: "a string", list: "a list", dict: "an object"}
    return names[form if isinstance(form, type) else type(form)]


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


def cache_folder(kind: str, cache_dir: str | Path | None = None) -> Path:
    """The folder of one kind of cached files, which nobody but its user may write to.

    Args:
        kind: Its name in the cache.
        cache_dir: As for `cache_directory`.

    Raises:
        CacheError: Another user can write to it, or to the cache.
    """
    root = cache_directory(cache_dir)
    for folder in (root, root / kind):
        with suppress(OSError):  # whoever cannot write here says so when there is something to write
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        _refuse_shared(folder)
    return root / kind


def _refuse_shared(folder: Path) -> None:
    if os.name != "posix" or not folder.is_dir():
        return
    status = folder.stat()
    mode, user = stat.S_IMODE(status.st_mode), os.geteuid()
    by_group = mode & stat.S_IWGRP and not _is_private_group(status.st_gid, user)
    if by_group or mode & stat.S_IWOTH or status.st_uid not in (0, user):
        raise CacheError(
            f"a cache must be written by its user alone, but {folder} is of user {status.st_uid} with mode {mode:o}; "
            f"chmod go-w it if it is yours, or choose another cache directory, by argument or with "
            f"${ENVIRONMENT_VARIABLE}"
        )


def _is_private_group(group: int, user: int) -> bool:
    """Whether it is the group that many systems give each user, of the same name and without anybody else."""
    import grp
    import pwd

    try:
        name, found = pwd.getpwuid(user).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}


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
