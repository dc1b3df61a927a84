"""Errors in one line, with exit code 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from alternator import AlternatorError

MAX_LENGTH = 2000
"""The number of characters of an error at most."""
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors that users can fix into one line on stderr and exit code 2."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the output any more, as in `| head`: click ends the command with exit code 1
        raise
    except AlternatorError as error:
        _fail(str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"a file cannot be read or written: {error.strerror or error}{where}; free space or choose another place")
    except MemoryError as error:
        _fail(f"there must be enough memory, there is not ({error}); choose smaller sizes")


def _fail(message: str) -> None:
    line = " ".join(message.split())[:MAX_LENGTH]
    stderr.print("error: " + line, style="red", markup=False)
    raise typer.Exit(2)
