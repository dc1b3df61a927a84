"""Reading recorded losses from TensorBoard event files, with the ``tensorboard`` package."""

from collections.abc import Mapping
from pathlib import Path

from alternator.checks import printable
from alternator.errors import LossError
from alternator.recordings.tables import LossTable


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


def _load_scalars(path: Path) -> dict[str, dict[int, float]]:
    """Tag → step → value; the newest value where a step was written twice."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
    except ImportError as error:
        raise LossError(
            f"reading {path} needs TensorBoard ({error}); pip install 'adaptive-alternator[tensorboard]'"
        ) from error
    events = EventAccumulator(str(path), size_guidance={SCALARS: 0})
    events.Reload()
    return {
        printable(tag): {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()[SCALARS]
    }
