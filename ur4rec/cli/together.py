"""Commands of several processes: the first one speaks for all, and one says what has ended them."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import typer

from alternator import AlternatorError, ConfigurationError
from ur4rec.cli.options import one_line_errors
from ur4rec.training.backend import load_backend
from ur4rec.training.processes import ONE_PROCESS, Processes

_UsageError: Any = typer.BadParameter.__base__  # of the click that typer uses: its own, or the one installed
COMMANDS = ("train", "recommend")
"""What several processes do together."""
PAUSE = 3.0
"""Seconds after which whoever started the processes has ended those that are left, if the first has ended."""


@contextmanager
def together(backend: str, device: str, mesh: str | None = None) -> Iterator[Processes]:
    """The processes of a command, which all run in this block.

    What ends one of them ends all, and one of them says what it was.

    Args:
        backend: "torch" or "jax".
        device: Where to compute, as a trainer takes it; checked at once.
        mesh: How the devices divide the work; likewise.
    """
    found: Processes = ONE_PROCESS
    try:
        with load_backend(backend).start_processes(device, mesh=mesh) as found:
            if found.rank > 0:
                logging.getLogger().setLevel(logging.ERROR)
                warnings.simplefilter("ignore")
            yield found
    except (AlternatorError, OSError, MemoryError):
        if not found.speaks():
            raise typer.Exit(2) from None
        with one_line_errors(), nullcontext() if found.count > 1 else first_speaks():
            raise


def run(app: typer.Typer) -> None:
    """Run a command in one of the processes that ``torchrun`` has started: what cannot be read is said once.

    All find the same, and the others wait to be ended.
    """
    _refuse_other_commands()
    if _is_first():
        app(prog_name="ur4rec")
        return
    try:
        status = app(prog_name="ur4rec", standalone_mode=False)
    except _UsageError as error:
        time.sleep(PAUSE)
        error.show()
        status = error.exit_code
    sys.exit(status)


@contextmanager
def first_speaks() -> Iterator[None]:
    """Likewise for what is wrong with the options; a process that has found something by itself says so in the end."""
    try:
        yield
    except (AlternatorError, OSError, MemoryError):
        if not _is_first():
            time.sleep(PAUSE)
        raise


def _refuse_other_commands() -> None:
    """Refuse a command that several processes would each run by itself, and print as often."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    if count == 1 or command in (None, *COMMANDS):
        return
    try:
        with one_line_errors(), first_speaks():
            raise ConfigurationError(
                f"ur4rec {command} must be run by one process, got {count}; start it without torchrun, which is for "
                f"{' and '.join(COMMANDS)}"
            )
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


def _is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
