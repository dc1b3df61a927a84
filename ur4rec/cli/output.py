"""The one place that prints. Titles, paths and errors come from data: here they are no markup and no terminal codes."""

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table as Table
from rich.text import Text

from alternator.checks import printable

_console = Console(highlight=False)
_stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def plain(text: str, style: str = "", keep: str = "") -> Text:
    r"""A string for Rich as it is: brackets are no markup, control characters are shown as escapes.

    Args:
        text: The string.
        style: A style of Rich for all of it.
        keep: Control characters to leave.

    Example:
        >>> str(plain("[b]Blob [deluxe edition]\x1b[2J"))
        '[b]Blob [deluxe edition]\\u001b[2J'
    """
    return Text(printable(text, keep), style=style)


def say(text: str, *, soft_wrap: bool = False) -> None:
    """Print a string, which may have several lines."""
    _console.print(plain(text, keep="\n"), soft_wrap=soft_wrap)


def say_to_stderr(text: str, style: str = "") -> None:
    """Print one line to stderr."""
    _stderr.print(plain(text, style))


def say_raw(text: str) -> None:
    """Print a string of several lines without wrapping any, for other programs and for pagers."""
    sys.stdout.write(printable(text, keep="\n") + "\n")


def say_json(content: object) -> None:
    """Print JSON, nothing else, for other programs; control characters are escaped."""
    say_raw(json.dumps(content, indent=2, ensure_ascii=False))


def say_markdown(text: str) -> None:
    """Print a report."""
    _console.print(Markdown(printable(text, keep="\n"), hyperlinks=False))


def say_table(table: Table) -> None:
    """Print what `build_table` has built."""
    _console.print(table)


def build_table(
    columns: Mapping[str, Mapping[str, Any]], rows: Iterable[Sequence[str]], *, title: str | None = None
) -> Table:
    """A table whose title and cells are shown as they are.

    Args:
        columns: The head of each column and its options, as `rich.table.Table.add_column` takes them.
        rows: The cells.
        title: What to write above; None is a table without title and head.
    """
    table = Table(
        title=None if title is None else plain(title, "table.title"),
        box=HEAVY_HEAD if title is None else SIMPLE_HEAD,
        show_header=title is not None,
    )
    for name, options in columns.items():
        table.add_column(name, **options)
    for row in rows:
        table.add_row(*map(plain, row))
    return table


class _PlainFormatter(logging.Formatter):
    """Log lines that are one line each, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_stderr(quiet: bool) -> None:
    """Send what libraries report to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler])
    logging.getLogger("alternator").setLevel(logging.WARNING)  # the progress bar and decisions.csv say it better
    logging.getLogger("jax").setLevel(logging.WARNING)  # which kinds of accelerators are not there
