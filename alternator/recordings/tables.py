"""Reading recorded losses: a CSV with a column per module, or the decision log of a run."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alternator.errors import LossError

STAGE = "joint_finetune"
"""The stage of a run in which modules alternate; rows of other stages are left out."""
MOST_STEPS = 2**53
"""The largest number of a step: what a plot can draw."""
_LOG_COLUMNS = frozenset({"step", "stage", "active", "next", "reason"})
_SUFFIX = "_loss"


@dataclass(frozen=True, kw_only=True)
class LossTable:
    """Recorded losses."""

    steps: tuple[int, ...]
    """Number of each row's step."""
    losses: dict[str, list[float | None]]
    """Per module one value per step, None where it has none."""
    recorded: tuple[str, ...] | None = None
    """Per step, the module that trained in the recorded run, if known."""
    left_out: int = 0
    """Rows of other stages."""


def read_losses(path: Path, modules: Mapping[str, str] | None = None) -> LossTable:
    """Read a CSV file.

    It has a header and one row per step: a column ``step`` (optional; rows count from 1 without it) and a column of
    losses per module. An empty cell is a loss that was not computed, and nan, inf or 1e400 one that was not finite.
    Steps may repeat or go back: they only name the rows. The ``decisions.csv`` of a run is known by its columns step,
    stage, active, next and reason; its losses are in columns such as ``sasrec_loss``.

    Args:
        path: The file.
        modules: Name of each module and its column; by default all columns of losses, by their names.

    Raises:
        LossError: The file cannot be read, or it is malformed; the message names the file, the line and the column.
    """
    (_, names), *rows = _read_rows(path)
    header = [name.strip() for name in names]
    is_log = set(header) >= _LOG_COLUMNS
    columns = _choose_columns(path, header, modules, is_log)
    steps: list[int] = []
    losses: dict[str, list[float | None]] = {name: [] for name in columns}
    recorded: list[str] = []
    for line, values in rows:
        cells = _match(path, line, header, values)
        if is_log and cells["stage"] != STAGE:
            continue
        steps.append(_parse_step(path, line, cells["step"]) if "step" in cells else len(steps) + 1)
        recorded.append(cells.get("active", ""))
        for name, column in columns.items():
            losses[name].append(_parse_loss(path, line, column, cells[column]))
    if not steps:
        raise LossError(f"{path}: no row of losses" + (f" in stage {STAGE}, where modules alternate" if is_log else ""))
    return LossTable(
        steps=tuple(steps),
        losses=losses,
        recorded=tuple(recorded) if is_log else None,
        left_out=len(rows) - len(steps),
    )


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Each row that is not empty, with the number of its (last) line."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 0
    try:
        for row in reader:
            line = reader.line_num
            if row:
                rows.append((line, row))
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


def _choose_columns(
    path: Path, header: Sequence[str], modules: Mapping[str, str] | None, is_log: bool
) -> Mapping[str, str]:
    known = set(header)
    if len(known) < len(header):
        raise LossError(f"{path}: columns must have different names, got {', '.join(header)}")
    if "" in known:
        raise LossError(
            f"{path}: every column must have a name, but column {header.index('') + 1} has none; name it or drop it"
        )
    if is_log:
        found = {column.removesuffix(_SUFFIX): column for column in header if column.endswith(_SUFFIX)}
    else:
        found = {column: column for column in header if column != "step"}
    chosen = found if modules is None else {name: found.get(column, column) for name, column in modules.items()}
    for column in chosen.values():
        if column not in known:
            raise LossError(f"{path} has no column {column!r}; it has {', '.join(header)}")
    if len(chosen) < 2:
        raise LossError(f"{path}: two or more columns of losses are needed, one per module; got {', '.join(chosen)}")
    return chosen


def _match(path: Path, line: int, header: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    if len(values) != len(header):
        raise LossError(f"{path}, line {line}: a row must have {len(header)} cells, got {len(values)}")
    return dict(zip(header, values, strict=True))


def _parse_step(path: Path, line: int, text: str) -> int:
    try:
        step = int(_plain(text))
    except ValueError:
        raise LossError(f"{path}, line {line}, column 'step': {text!r} is not a whole number") from None
    if abs(step) > MOST_STEPS:
        raise LossError(f"{path}, line {line}, column 'step': {step} is beyond {MOST_STEPS}; number the steps anew")
    return step


def _parse_loss(path: Path, line: int, column: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(_plain(text))
    except ValueError:
        raise LossError(f"{path}, line {line}, column {column!r}: {text!r} is not a number") from None


def _plain(text: str) -> str:
    """The text, without what Python reads in numbers but files do not mean: 1_000."""
    if "_" in text:
        raise ValueError(text)
    return text
