"""The one place that prints. Titles, paths and errors come from data: here they are no markup and no terminal codes.

Numbers are never cut, and lines are as long as they are, for a terminal to wrap: what is broken by newlines cannot be
copied. What is wrapped are cells of strings, between words, and on terminals alone.
"""

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, ImageItem, Markdown, MarkdownElement, TableElement
from rich.table import Table as Table
from rich.text import Text

from alternator.checks import printable

_LONGEST_WORD = 40
"""The length of a word at most that a terminal's table does not break: longer than a UUID."""
_UNLIMITED = 10**6
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


def say(text: str) -> None:
    """Print a string, which may have several lines; each is as long as it is."""
    _console.print(plain(text, keep="\n"), soft_wrap=True)


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
    """Print a report without its pictures: prose is filled to the width of the terminal, the rest is whole."""
    _console.print(_Report(printable(text, keep="\n"), hyperlinks=False), crop=False)


def say_table(table: Table) -> None:
    """Print what `build_table` has built, below its title."""
    if table.title is not None:
        _console.print(table.title, soft_wrap=True)
        table.title = None
    _console.print(_Whole(table), crop=False)


def build_table(
    columns: Mapping[str, Mapping[str, Any]], rows: Iterable[Sequence[str]], *, title: str | None = None
) -> Table:
    """A table whose title, heads and cells are shown as they are.

    Args:
        columns: The head of each column and its options, as `rich.table.Table.add_column` takes them; ``no_wrap`` is
            for numbers.
        rows: The cells.
        title: What to write above; None is a table without title and head.
    """
    table = Table(
        title=None if title is None else plain(title, "table.title"),
        box=HEAVY_HEAD if title is None else SIMPLE_HEAD,
        show_header=title is not None,
    )
    for name, options in columns.items():
        table.add_column(plain(name, keep="\n"), **options)
    for row in rows:
        table.add_row(*map(plain, row))
    return table


class _Whole:
    """A table with the width that it needs, or on a narrow terminal as little as breaks no number and no word."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unlimited = options.update(max_width=_UNLIMITED)
        least, most = [], []
        for column in self._table.columns:
            sizes = [console.measure(each, options=unlimited) for each in (column.header, *column.cells)]
            most.append(max(size.maximum for size in sizes))
            words = min(max(size.minimum for size in sizes), _LONGEST_WORD)
            least.append(most[-1] if column.no_wrap else words)
            column.overflow = "fold"
        frame = console.measure(self._table, options=unlimited).maximum - sum(most)
        room = options.max_width - frame if console.is_terminal else _UNLIMITED
        for column, width in zip(self._table.columns, _fit(least, most, room), strict=True):
            column.width = width
        yield from console.render(self._table, unlimited)


def _fit(least: Sequence[int], most: Sequence[int], room: int) -> list[int]:
    """Widths of columns that need no more than there is room for, if they can; the widest are made narrower first.

    Example:
        >>> _fit([4, 6, 6], [40, 6, 20], 60), _fit([4, 6, 6], [40, 6, 20], 40), _fit([4, 6, 6], [40, 6, 20], 10)
        ([34, 6, 20], [17, 6, 17], [4, 6, 6])
    """
    excess, limit = sum(most) - room, max(most, default=0)
    widths = list(most)
    while excess > 0 and limit > 0:
        limit -= 1
        widths = [max(low, min(high, limit)) for low, high in zip(least, most, strict=True)]
        excess = sum(widths) - room
    return widths


class _WholeTable(TableElement):
    """A table of a report."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            assert isinstance(table, Table)
            yield _Whole(table)


class _WholeCode(CodeBlock):
    """A command of a report, in lines that are as long as they are."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(str(self.text).rstrip(), no_wrap=True, overflow="ignore")


class _NoImage(ImageItem):
    """A picture of a report, of which the paragraph below it says what it shows."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("", end="")


class _Report(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "table_open": _WholeTable,
        "fence": _WholeCode,
        "code_block": _WholeCode,
        "image": _NoImage,
    }


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
