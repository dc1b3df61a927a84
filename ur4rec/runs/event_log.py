"""Event logs: what a run does, step by step, for TensorBoard or Weights & Biases."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from alternator.checks import check_choice
from alternator.recordings.log import StepRecord
from ur4rec.errors import ConfigurationError
from ur4rec.schedule.stages import MODULES, TURNS


class Writer(Protocol):
    """Where scalars go."""

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Scalars of a training step."""

    def close(self) -> None:
        """Everything is written."""


class TensorBoardWriter:
    """Event files of the ``tensorboard`` package.

    Args:
        folder: The folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._file = EventFileWriter(str(folder))

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """One event of plain values, which every reader of event files knows."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._file.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Everything is on disk."""
        self._file.close()


class WandbWriter:
    """A run of Weights & Biases, as its own settings and environment variables say (``WANDB_MODE=offline``, ...).

    Args:
        folder: Where it keeps its files.
        name: Its name there.
    """

    def __init__(self, folder: Path, name: str) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(project="ur4rec", name=name, dir=str(folder))

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """All of them at once."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """The run is finished."""
        self._run.finish()


_NEEDED = {
    "tensorboard": ("tensorboard", "pip install 'adaptive-alternator[tensorboard]'"),
    "wandb": ("wandb", "pip install wandb"),
}
KINDS = tuple(_NEEDED)


class EventLog:
    """Scalars of steps and epochs, for every writer.

    A step has ``step/MODULE_loss``, ``active/MODULE`` (1 where it trained) and ``share/MODULE``, its part of the
    module updates of the stage so far. An epoch has ``validation/SCORER/METRIC`` for what was validated, ``component/NAME`` for every loss
    that it averaged, and ``learning_rate/MODULE``. A run that is resumed writes the steps since its last checkpoint again,
    with the same values.

    Args:
        writers: Where to write; without any, nothing is done.

    Example:
        >>> class Printer:
        ...     def write(self, scalars, step):
        ...         print(step, dict(scalars))
        >>> log = EventLog([Printer()])
        >>> log.step(StepRecord(1, "joint_finetune", "sasrec", "sasrec", "min_steps", 0.0, 0.0, {"sasrec": 2.5}))
        1 {'step/sasrec_loss': 2.5, 'active/sasrec': 1.0, 'share/sasrec': 1.0, 'active/retriever': 0.0, 'share/retriever': 0.0}
    """  # noqa: E501

    def __init__(self, writers: Sequence[Writer] = (), modules: Sequence[str] = MODULES) -> None:
        self._writers = writers
        self._modules = modules
        self._stage = ""
        self._updates = dict.fromkeys(modules, 0)

    def restore(self, records: Sequence[StepRecord]) -> None:
        """Continue after these steps: the shares of their last stage are known."""
        for record in records:
            self._count(record)

    def step(self, record: StepRecord) -> None:
        """Write a step."""
        if not self._writers:
            return
        self._count(record)
        total = sum(self._updates.values())
        scalars = {f"step/{name}_loss": loss for name, loss in record.losses.items()}
        for name in self._modules:
            scalars[f"active/{name}"] = float(name in TURNS[record.active])
            scalars[f"share/{name}"] = self._updates[name] / total
        self._write(scalars, record.step)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Write what ``metrics.json`` keeps of an epoch."""
        scalars = {
            f"validation/{scorer}/{metric}": value
            for scorer, metrics in row["validation"].items()
            for metric, value in metrics.items()
        }
        for name, value in row["train"].items():
            if name.endswith("_lr"):
                scalars[f"learning_rate/{name.removesuffix('_lr')}"] = value
            elif name.endswith("_loss") and value is not None:
                scalars[f"component/{name.removesuffix('_loss')}"] = value
        self._write(scalars, row["step"])

    def close(self) -> None:
        """Everything is written."""
        for writer in self._writers:
            writer.close()

    def _count(self, record: StepRecord) -> None:
        if record.stage != self._stage:
            self._stage, self._updates = record.stage, dict.fromkeys(self._modules, 0)
        for name in TURNS[record.active]:
            self._updates[name] += 1

    def _write(self, scalars: Mapping[str, float], step: int) -> None:
        for writer in self._writers:
            writer.write(scalars, step)


def check_event_logs(kinds: Sequence[str]) -> None:
    """Refuse, before anything is written, what cannot be logged to.

    Raises:
        UnknownNameError: There is no such kind.
        ConfigurationError: Its package is missing.
    """
    for kind in kinds:
        check_choice("log", kind, KINDS)
        module, remedy = _NEEDED[kind]
        try:
            import_module(module)
        except ImportError as error:
            raise ConfigurationError(f"--log {kind} needs a package that is missing ({error}); {remedy}") from error


@contextmanager
def open_event_log(kinds: Sequence[str], run: Path, modules: Sequence[str] = MODULES) -> Iterator[EventLog]:
    """The event log of a run directory, closed at the end.

    Args:
        kinds: Of `KINDS`, checked.
        run: The run directory; ``events/`` in it holds the files.
        modules: The modules of the model.
    """
    writers: list[Writer] = []
    for kind in dict.fromkeys(kinds):
        folder = run / "events"
        writers.append(TensorBoardWriter(folder) if kind == "tensorboard" else WandbWriter(folder, run.name))
    log = EventLog(writers, modules)
    try:
        yield log
    finally:
        log.close()
