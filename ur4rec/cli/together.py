"""Commands of several processes: the first one speaks for all, and one says what has ended them."""

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from alternator import AlternatorError
from ur4rec.cli.options import one_line_errors
from ur4rec.training.backend import load_backend
from ur4rec.training.processes import ONE_PROCESS, Processes

_PAUSE = 3.0
"""Seconds after which whoever started the processes has ended those that are left, if the first has ended."""


@contextmanager
def together(backend: str, device: str) -> Iterator[Processes]:
    """The processes of a command, which all run in this block.

    What ends one of them ends all, and one of them says what it was.

    Args:
        backend: "torch" or "jax".
        device: Where to compute, as a trainer takes it.
    """
    found: Processes = ONE_PROCESS
    try:
        with load_backend(backend).start_processes(device) as found:
            if found.rank > 0:
                logging.getLogger().setLevel(logging.ERROR)
                warnings.simplefilter("ignore")
            yield found
    except (AlternatorError, OSError, MemoryError):
        if not found.speaks():
            raise typer.Exit(2) from None
        with one_line_errors():
            raise


@contextmanager
def first_speaks() -> Iterator[None]:
    """Let the first of the processes that ``torchrun`` has started say alone what is wrong with the command.

    All find the same, and the others wait to be ended; one that has found something by itself says so in the end.
    """
    try:
        yield
    except (AlternatorError, OSError, MemoryError):
        if int(os.environ.get("RANK", "0")) > 0:
            time.sleep(_PAUSE)
        raise
