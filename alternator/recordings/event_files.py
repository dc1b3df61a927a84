"""Reading recorded losses from TensorBoard event files, with the ``tensorboard`` package."""

import os
from collections.abc import Mapping
from pathlib import Path
from struct import Struct

from alternator.checks import printable
from alternator.errors import LossError
from alternator.recordings.tables import LossTable

MAX_RECORD = 2**28
"""The maximum length of a record in bytes."""
_LENGTH, _CHECKSUM = Struct("<Q"), 4
"""A record is its length, a checksum of that, its content, and a checksum of that."""


def is_event_path(path: Path) -> bool:
    """Whether a path is a TensorBoard event file or a directory with such files.

    Example:
        >>> is_event_path(Path("runs/demo/events.out.tfevents.1700000000.host")), is_event_path(Path("losses.csv"))
        (True, False)
    """
    return "tfevents" in path.name or any(path.glob("*tfevents*"))


def read_events(path: Path, modules: Mapping[str, str] | None = None) -> LossTable:
    """Read scalars: one column per module, one row per step at which any of them was written.

    Args:
        path: An event file, or a directory of them.
        modules: Name of each module and the tag of its loss; by default every scalar tag that ends in "loss", by its
            own name.

    Raises:
        LossError: The package is missing, the file cannot be read, or it has no such tags.
    """
    scalars = _load_scalars(path)
    if modules is None:
        modules = {tag: tag for tag in scalars if tag.lower().endswith("loss")}
    missing = [tag for tag in modules.values() if tag not in scalars]
    if missing:
        raise LossError(f"{path} has no scalar {missing[0]!r}; it has {', '.join(scalars) or 'none'}")
    if len(modules) < 2:
        raise LossError(
            f"{path}: two or more scalars are needed, one per module; it has {', '.join(scalars) or 'none'}; "
            "choose with --modules NAME=TAG,NAME=TAG"
        )
    steps = sorted({step for tag in modules.values() for step in scalars[tag]})
    return LossTable(
        steps=tuple(steps),
        losses={name: [scalars[tag].get(step) for step in steps] for name, tag in modules.items()},
    )


def _check_records(path: Path) -> None:
    """Refuse a file that gives a record an absurd length, for which TensorBoard would ask for memory.

    A record that ends beyond the file is usual while the file is being written.
    """
    try:
        with path.open("rb") as file:
            while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
                (length,) = _LENGTH.unpack(head)
                if length > MAX_RECORD:
                    raise LossError(
                        f"{path} must hold records of at most {MAX_RECORD} bytes, got {length} at byte "
                        f"{file.tell() - _LENGTH.size}; is it a TensorBoard event file?"
                    )
                file.seek(_CHECKSUM + length + _CHECKSUM, os.SEEK_CUR)
    except OSError as error:
        raise LossError(f"{path} cannot be read: {error.strerror}") from error


def _load_scalars(path: Path) -> dict[str, dict[int, float]]:
    """Tag → step → value; the newest value where a step was written twice."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
    except ImportError as error:
        raise LossError(
            f"reading {path} needs TensorBoard ({error}); pip install 'adaptive-alternator[tensorboard]'"
        ) from error
    for file in sorted(path.glob("*tfevents*")) if path.is_dir() else [path]:
        _check_records(file)
    events = EventAccumulator(str(path), size_guidance={SCALARS: 0})
    events.Reload()
    return {
        printable(tag): {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()[SCALARS]
    }
