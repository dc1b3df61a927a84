"""Ctrl-C and SIGTERM: a run finishes its step, is saved, and ends; asked again, it ends at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818  (what was asked for is no error)
    """The run was asked to stop, and is saved.

    Args:
        step: Training steps that are saved.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class StopRequest:
    """Whether somebody has asked to stop.

    Attributes:
        number: The signal that asked; None if none has.
    """

    number: int | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.number is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request; a second one ends the process as if there were no handler.

    Only the main thread may do this.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        request.number = number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    before = {each: signal.signal(each, ask) for each in _SIGNALS}
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
