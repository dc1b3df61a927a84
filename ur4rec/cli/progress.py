"""Progress of long commands, and their end on SIGTERM."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

import typer
from tqdm import tqdm

from ur4rec.cli.output import say_to_stderr


class ShareBar:
    """What is told which share of a task is done: a bar on a terminal, and elsewhere a line for every fifth of it.

    Args:
        quiet: Whether to show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = tqdm(
            total=100, disable=quiet or not sys.stderr.isatty(), bar_format="{desc}: {percentage:3.0f}%|{bar}|"
        )
        self._task, self._said = "", 0

    def show(self, task: str, share: float) -> None:
        """Show that this share of a task is done."""
        if task != self._task:
            self._task, self._said = task, 0
            self._bar.set_description_str(task, refresh=False)
        self._bar.n = round(100 * share)
        self._bar.refresh()
        if self._bar.disable and not self._quiet and (fifth := int(5 * share)) > self._said:
            self._said = fifth
            say_to_stderr(f"{task}: {share:.0%}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


@contextmanager
def end_on_termination() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that what it has begun to write is removed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise typer.Exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
