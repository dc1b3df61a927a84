"""Reading recorded losses: a CSV file with a column per module, or the decision log of a run."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from alternator.checks import printable
from alternator.errors import LossError
from alternator.recordings.log import is_log, loss_columns

MAX_STEP = 2**53
"""The largest number of a step: what a plot can draw."""
MAX_LINE_BYTES = 2**24
"""The maximum length of a line."""
MAX_VALUES = 10
"""The number of values of a column that an error lists at most."""
Cells = dict[str, str]
"""The cells of a row, by column."""
Where = Sequence[tuple[str, str]]
"""Columns and values that choose rows: any of the values of a column, and that for every column."""


@dataclass(frozen=True, kw_only=True)
class LossTable:
    """Recorded losses."""

    steps: tuple[int, ...]
    """Number of each row's step."""
    losses: dict[str, list[float | None]]
    """Per module one value per step, None where it has none."""
    recorded: tuple[str, ...] | None = None
    """Per step, the module that trained in the recorded run, if known."""
    where: tuple[tuple[str, str], ...] = ()
    """The columns and values by which the rows were chosen."""
    stages: dict[str, int] = field(default_factory=dict)
    """The stages of a decision log and the number of rows of each, chosen or not."""


def read_losses(path: Path, modules: Mapping[str, str] | None = None, where: Where = ()) -> LossTable:
    """Read a CSV file.

    It has a header and one row per step: a column ``step`` (optional; rows count from 1 without it) and a column of
    losses per module. An empty cell is a loss that was not computed, and nan, inf or 1e400 one that was not finite.
    Rows are in the order of training, the oldest first. Steps only name them: they may repeat, or begin again as in
    every epoch, but steps that fall more often than they rise are those of a file in another order. A decision log
    (`alternator.recordings.log`) is recognised by its columns step, stage, active, next and reason; its losses are in
    columns such as ``encoder_loss``.

    Args:
        path: The file.
        modules: Name of each module and its column; by default all columns of losses, by their names.
        where: Use only the rows with these values, as in ``[("stage", "joint")]``. By default all rows; of a decision
            log with several stages those in which who trains, or the reason, changes from row to row, if there are any:
            elsewhere nothing was decided.

    Raises:
        LossError: The file cannot be read, or it is malformed; the message names the file, the line and the column.
    """
    (_, names), *rows = _read_rows(path)
    header = [name.strip() for name in names]
    columns = _choose_columns(path, header, modules, {column for column, _ in where})
    table = [(line, _match(path, line, header, values)) for line, values in rows]
    stages = Counter(cells["stage"] for _, cells in table) if is_log(header) else {}
    where = where or [("stage", stage) for stage in _deciding_stages(table, stages)]
    chosen = [(line, cells) for line, cells in table if _is_chosen(cells, where)]
    if not chosen:
        raise LossError(f"{path}: no row of losses" + _describe_missing(table, where))
    steps = tuple(
        _parse_step(path, line, cells["step"]) if "step" in cells else number
        for number, (line, cells) in enumerate(chosen, 1)
    )
    _refuse_other_orders(path, steps, [line for line, _ in chosen])
    return LossTable(
        steps=steps,
        losses={
            name: [_parse_loss(path, line, column, cells[column]) for line, cells in chosen]
            for name, column in columns.items()
        },
        recorded=tuple(cells["active"] for _, cells in chosen) if is_log(header) else None,
        where=tuple(where),
        stages=dict(stages),
    )


def _deciding_stages(table: Sequence[tuple[int, Cells]], stages: Mapping[str, int]) -> list[str]:
    """The stages in which who trains, or the reason, changes; none where that chooses nothing."""
    decided: dict[str, set[tuple[str, str, str]]] = {stage: set() for stage in stages}
    for _, cells in table if len(stages) > 1 else ():
        decided[cells["stage"]].add((cells["active"], cells["next"], cells["reason"]))
    found = [stage for stage, decisions in decided.items() if len(decisions) > 1]
    return found if len(found) < len(stages) else []


def _is_chosen(cells: Cells, where: Where) -> bool:
    accepted: dict[str, set[str]] = {}
    for column, value in where:
        accepted.setdefault(column, set()).add(value)
    return all(cells[column] in values for column, values in accepted.items())


def _describe_missing(table: Sequence[tuple[int, Cells]], where: Where) -> str:
    """Which conditions were not met, and which values would have been."""
    if not where or not table:
        return ""
    conditions = " ".join(f"{column}={value}" for column, value in where)
    column = where[0][0]
    found = sorted({cells[column] for _, cells in table})
    shown = ", ".join(found[:MAX_VALUES]) + (", ..." if len(found) > MAX_VALUES else "")
    return f" where {conditions}; column {column!r} has {shown}"


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Each row that is not empty, with the number of its (last) line."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 0
    try:
        for row in reader:
            line = reader.line_num
            if row:
                rows.append((line, [printable(cell.strip()) for cell in row]))
    except csv.Error as error:
        raise LossError(f"{path}, line {line + 1} is not CSV: {error}; look for a quote left open") from error
    if not rows:
        raise LossError(f"{path} is empty; the first line must name the columns: step and one per module")
    return rows


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LossError(f"{path} cannot be read: {error.strerror}") from error
    _refuse_long_lines(path, content)
    try:
        text = content.decode("utf-8-sig")
        place = content.find(b"\0")
    except UnicodeDecodeError as error:
        place = error.start
    if place >= 0:
        line = len(re.split(b"\r\n|\n|\r", content[:place]))
        raise LossError(
            f"{path}, line {line}: must be UTF-8 text, got the byte 0x{content[place]:02x}; is it a CSV file?"
        )
    return text


def _refuse_long_lines(path: Path, content: bytes) -> None:
    """Refuse what can be no row, before it is decoded and parsed: both take many times its memory."""
    start = 0
    while len(content) - start > MAX_LINE_BYTES:
        end = max(content.rfind(each, start, start + MAX_LINE_BYTES + 1) for each in (b"\n", b"\r"))
        if end < 0:
            line = len(re.split(b"\r\n|\n|\r", content[:start]))
            raise LossError(f"{path}, line {line}: a line must have at most {MAX_LINE_BYTES} bytes; is it a CSV file?")
        start = end + 1


def _choose_columns(
    path: Path, header: Sequence[str], modules: Mapping[str, str] | None, conditions: set[str]
) -> Mapping[str, str]:
    """The column of each module; columns of conditions are none unless they are named as such, which is refused."""
    known = set(header)
    if len(known) < len(header):
        raise LossError(f"{path}: columns must have different names, got {', '.join(header)}")
    if "" in known:
        raise LossError(
            f"{path}: every column must have a name, but column {header.index('') + 1} has none; name it or drop it"
        )
    if is_log(header):
        found = loss_columns(header)
    else:
        found = {column: column for column in header if column != "step" and column not in conditions}
    chosen = found if modules is None else {name: found.get(column, column) for name, column in modules.items()}
    for column in (*chosen.values(), *conditions):
        if column not in known:
            raise LossError(f"{path} has no column {column!r}; it has {', '.join(header)}")
    if len(chosen) < 2:
        raise LossError(f"{path}: two or more columns of losses are needed, one per module; got {', '.join(chosen)}")
    for column in conditions & {*chosen.values()}:
        raise LossError(f"{path}: --where needs a column that is not a loss, got {column!r}; name another")
    return chosen


def _match(path: Path, line: int, header: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    if len(values) != len(header):
        raise LossError(f"{path}, line {line}: a row must have {len(header)} cells, got {len(values)}")
    return dict(zip(header, map(str.strip, values), strict=True))


def _parse_step(path: Path, line: int, text: str) -> int:
    try:
        step = int(_plain(text))
    except ValueError:
        raise LossError(f"{path}, line {line}, column 'step': {text!r} is not a whole number") from None
    if abs(step) > MAX_STEP:
        raise LossError(
            f"{path}, line {line}, column 'step': {step} is beyond {MAX_STEP}; number the steps again from 1"
        )
    return step


def _refuse_other_orders(path: Path, steps: Sequence[int], lines: Sequence[int]) -> None:
    """Refuse rows that are not in the order of training, such as the newest first."""
    rises = sum(before < after for before, after in pairwise(steps))
    falls = [number for number, (before, after) in enumerate(pairwise(steps)) if before > after]
    if len(falls) > rises:
        number = falls[0]
        raise LossError(
            f"{path}, line {lines[number + 1]}, column 'step': rows must be in the order of training, the oldest "
            f"first, got {steps[number + 1]} after {steps[number]}, and {len(falls)} of {len(steps) - 1} steps fall; "
            "sort the rows by step"
        )


def _parse_loss(path: Path, line: int, column: str, text: str) -> float | None:
    if not text:
        return None
    try:
        return float(_plain(text))
    except ValueError:
        raise LossError(f"{path}, line {line}, column {column!r}: {text!r} is not a number") from None


def _plain(text: str) -> str:
    """The string, without what Python reads in numbers but files do not mean: 1_000."""
    if "_" in text:
        raise ValueError(text)
    return text
