"""Times: numbers, ISO 8601, dates with the day or the month first, or any format of strptime."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from alternator.checks import one_line
from ur4rec.data.reading.tables import Table, type_in_words
from ur4rec.errors import DataError

_PER_SECOND = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_SINCE_1973 = {"s": 1e8, "ms": 1e11, "us": 1e14, "ns": 1e17}
"""The lowest number that is taken for an epoch of each unit: in 1973. The highest is that of the next unit (5138)."""
_YEARS = 250e9
"""Seconds from 1970 to beyond the year 9890, where dates end."""
_NAMED = {"dayfirst": "dates with the day first", "monthfirst": "dates with the month first"}
_REMEDY = ("write seconds as a number, or an ISO 8601 date", "give a --time-format")
_OTHER_FORMAT = "give another --time-format"


def read_times(table: Table, column: str, time_format: str | None) -> tuple[NDArray[Any], str]:
    """A column of times as numbers that grow with them, and what they were read as, for people.

    Integers are int64, other numbers float64, both as they are; dates are seconds since 1970.

    Args:
        table: The table.
        column: The column.
        time_format: As in `ur4rec.options.DataOptions`; None finds out, and refuses what may be two things.

    Raises:
        DataError: A value is no such time, or they are of several kinds; says where.
    """
    reader = TimeReader(column, time_format)
    return reader.read(table), reader.describe()


class TimeReader:
    """A column of times in tables that come one after the other, all read in one way; see `read_times`.

    Args:
        column: The column.
        time_format: As for `read_times`.
    """

    def __init__(self, column: str, time_format: str | None) -> None:
        self._column, self._format = column, time_format
        self._kind, self._first_kind, self._unit = "", "", ""
        self._num_known = self._num_rows = 0
        self._least, self._most = np.inf, -np.inf

    def read(self, table: Table) -> NDArray[Any]:
        """The times of the next table.

        Raises:
            DataError: A value is no such time, or they are of another kind than those before; says where.
        """
        column = self._column
        if self._format is None:
            times, kind = _find(table, column)
        elif self._format in _PER_SECOND:
            times, kind = _epochs(table, column, self._format), f"epoch {_UNITS[self._format]}"
        elif self._format == "iso":
            times, kind = _find_iso(table, column)
        else:
            times, kind = _dates(table, column, self._format)
        self._check_kind(table, kind)
        if kind == "numbers":
            self._check_units(table, times)
        self._least, self._most = min(self._least, times.min()), max(self._most, times.max())
        return times

    def describe(self) -> str:
        """What the times were read as, for people."""
        known = self._unit and self._num_known * 2 > self._num_rows
        kind = f"epoch {_UNITS[self._unit]}" if known else self._kind
        return f"times read as {kind}, {_show(self._least, kind)} to {_show(self._most, kind)}"

    def _check_kind(self, table: Table, kind: str) -> None:
        beginning = Table(table.path, {self._column: table.columns[self._column].slice(0, 1)}, ())
        first = kind_of_time(str(beginning.strings(self._column)[0])) or kind
        self._kind, self._first_kind = self._kind or kind, self._first_kind or first
        if (kind, first) != (self._kind, self._first_kind):
            what = self._first_kind if first != self._first_kind else self._kind
            table.refuse(self._column, lambda _: f"must be {what}, as in the first row", *_REMEDY)

    def _check_units(self, table: Table, times: NDArray[Any]) -> None:
        """Refuse epochs in several units."""
        units = np.digitize(times, list(_SINCE_1973.values()))
        known = units[units > 0]
        self._num_known, self._num_rows = self._num_known + len(known), self._num_rows + len(units)
        if not len(known):
            return
        self._unit = self._unit or list(_UNITS)[known[0] - 1]
        number = list(_UNITS).index(self._unit) + 1
        if (known != number).any():
            other = set(np.asarray(times)[(units > 0) & (units != number)].tolist())
            table.refuse(
                self._column,
                lambda value: (
                    f"must be epoch {_UNITS[self._unit]}, as in the first row" if float(value) in other else None
                ),
                "write all in one unit",
                "say with --time-format s, ms, us or ns which it is",
            )


def _find(table: Table, column: str) -> tuple[NDArray[Any], str]:
    times = parse_times(table.columns[column])
    if times is None:
        first = str(table.strings(column)[0])
        if _format_with_zone(first):
            return _find_iso(table, column)
        if any(_ordered_formats(first)):
            return _find_order(table, column)
        _refuse_kinds(table, column)
        raise DataError(
            f"{table.path}, column {column!r}: must be times, got {type_in_words(table.columns[column].type)}",
            "write numbers",
        )
    return times, "numbers" if _is_numeric(table.columns[column]) else "dates"


def _is_numeric(array: pa.Array) -> bool:
    if pa.types.is_string(array.type) and len(array):
        return kind_of_time(array[0].as_py()) == "a number"
    return not pa.types.is_temporal(array.type)


def _epochs(table: Table, column: str, unit: str) -> NDArray[Any]:
    """Numbers in a unit that was given."""
    times = parse_times(table.columns[column])
    if times is None or not _is_numeric(table.columns[column]) or (abs(times) > _YEARS * _PER_SECOND[unit]).any():
        table.refuse(column, lambda value: _fault_of_epoch(value, unit), option=_OTHER_FORMAT)
        raise DataError(
            f"{table.path}, column {column!r}: must be numbers, got {type_in_words(table.columns[column].type)}",
            option=_OTHER_FORMAT,
        )
    return times


def _fault_of_epoch(value: str, unit: str) -> str | None:
    is_number = kind_of_time(value) == "a number"
    return None if is_number and abs(float(value)) <= _YEARS * _PER_SECOND[unit] else f"must be epoch {_UNITS[unit]}"


def _find_iso(table: Table, column: str) -> tuple[NDArray[Any], str]:
    """ISO 8601, or the same followed by the name of a zone."""
    array = table.columns[column]
    if (times := parse_times(array)) is not None and not _is_numeric(array):
        return times, "dates"
    first = str(table.strings(column)[0])
    if (with_zone := _format_with_zone(first)) is not None:
        return _parse_dates(table, column, with_zone, "a date with the name of a time zone, as in the first row")
    table.refuse(column, lambda value: None if "date" in (kind_of_time(value) or "") else "must be ISO 8601", *_REMEDY)
    _refuse_kinds(table, column)
    raise DataError(
        f"{table.path}, column {column!r}: must be ISO 8601, got {type_in_words(array.type)}", option=_OTHER_FORMAT
    )


def _find_order(table: Table, column: str) -> tuple[NDArray[Any], str]:
    """Dates whose first number is the day or the month, if only one of them can be."""
    strings = table.strings(column)
    found = {}
    for name, form in _ordered_formats(str(strings[0])):
        times = _to_seconds(strings, form)
        if not np.isnan(times).any():
            found[name] = times
    if len(found) == 1:
        ((name, times),) = found.items()
        return times, _NAMED[name]
    if found:
        table.refuse(
            column,
            lambda _: "may have the day or the month first",
            option="say which with --time-format dayfirst or --time-format monthfirst",
        )
    return _dates(table, column, next(name for name, _ in _ordered_formats(str(strings[0]))))


def _dates(table: Table, column: str, time_format: str) -> tuple[NDArray[Any], str]:
    """Dates in a format that was given."""
    if time_format not in _NAMED:
        return _parse_dates(table, column, time_format, f"a time such as {time_format!r} reads")
    form = dict(_ordered_formats(str(table.strings(column)[0]), both=True)).get(time_format, "%d/%m/%Y")
    times, _ = _parse_dates(table, column, form, f"{_NAMED[time_format]}, as in the first row ({form})")
    return times, _NAMED[time_format]


def _parse_dates(table: Table, column: str, form: str, what: str) -> tuple[NDArray[Any], str]:
    strings = table.strings(column)
    try:
        times = _to_seconds(strings, form)
    except (ValueError, OverflowError, re.error) as error:
        raise DataError(
            f"{table.path}, column {column!r}: cannot be read with the time format {form!r}: {one_line(str(error))}",
            option=_OTHER_FORMAT,
        ) from error
    if (bad_N := np.isnan(times)).any():
        bad = set(strings[bad_N].tolist())
        table.refuse(column, lambda value: f"must be {what}" if value in bad else None, option=_OTHER_FORMAT)
    return times, "dates"


def _to_seconds(strings: NDArray[Any], form: str) -> NDArray[np.float64]:
    """Seconds since 1970; NaN for what does not fit the format."""
    import pandas as pd  # half a second that hardly any file needs

    parsed = pd.to_datetime(pd.Series(strings, dtype=object), format=form, errors="coerce", utc=True)
    since = (parsed - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    return np.asarray(since, np.float64)


def _format_with_zone(value: str) -> str | None:
    """The format of an ISO date with the name of a zone, such as ``2014-01-01 12:00:00 Europe/Berlin``."""
    found = re.fullmatch(r"\d{4}-\d\d-\d\d([T ])\d\d:\d\d(:\d\d)?(\.\d+)? ?[A-Za-z][\w/+-]+", value)
    if found is None:
        return None
    blank = " " if re.search(r"\d [A-Za-z]", value) else ""
    return f"%Y-%m-%d{found[1]}%H:%M{':%S' if found[2] else ''}{'.%f' if found[3] else ''}{blank}%Z"


def _ordered_formats(value: str, *, both: bool = False) -> Iterator[tuple[str, str]]:
    """The names and formats of dates that a value such as ``31.12.2014 23:59`` may have."""
    found = re.fullmatch(r"\d\d?([/.-])\d\d?\1\d{4}( \d\d?:\d\d(:\d\d)?)?", value)
    if found is not None:
        clock = f" %H:%M{':%S' if found[3] else ''}" if found[2] else ""
        yield "dayfirst", f"%d{found[1]}%m{found[1]}%Y{clock}"
        if both or found[1] != ".":
            yield "monthfirst", f"%m{found[1]}%d{found[1]}%Y{clock}"


def _refuse_kinds(table: Table, column: str) -> None:
    kinds: list[str] = []

    def fault(value: str) -> str | None:
        kind = kind_of_time(value)
        if kind is None:
            return "must be a finite number or an ISO 8601 date"
        kinds.append(kind)
        return f"must be {kinds[0]}, as in the first row" if kind != kinds[0] else None

    table.refuse(column, fault, *_REMEDY)


def parse_times(array: pa.Array) -> NDArray[Any] | None:
    """Times as int64 or float64, or None where a value is not a time or they are of several kinds."""
    if array.null_count or pa.types.is_boolean(array.type):
        return None
    if pa.types.is_temporal(array.type):
        return _seconds(array) if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type) else None
    for kind in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            times = pc.cast(array, kind, safe=kind != pa.float64())  # not each integer beyond 2**53 is a float
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        if pa.types.is_timestamp(kind):
            return _seconds(times)
        numbers = times.to_numpy(zero_copy_only=False)
        return numbers if np.isfinite(numbers).all() else None
    return None


def _seconds(array: pa.Array) -> NDArray[np.float64]:
    if pa.types.is_date(array.type):
        array = pc.cast(array, pa.timestamp("s" if pa.types.is_date32(array.type) else "ms"))
    counts = pc.cast(array, pa.int64()).to_numpy(zero_copy_only=False)
    return np.asarray(counts / _PER_SECOND[array.type.unit], np.float64)


def kind_of_time(value: str) -> str | None:
    """The kind of time that a string holds: a number, a date or a date with a time zone; None if none of them."""
    if (times := parse_times(pa.array([value]))) is None or not np.isfinite(times).all():
        return None
    try:
        float(value)
    except ValueError:
        zoned = re.search(r"(Z|[+-]\d\d(:?\d\d)?)$", value.partition(":")[2])
        return "a date with a time zone" if zoned else "a date"
    return "a number"


def _show(time: float, kind: str) -> str:
    unit = next((unit for unit, name in _UNITS.items() if kind == f"epoch {name}"), "s")
    seconds = float(time) / _PER_SECOND[unit]
    if kind == "numbers" or not -62e9 < seconds < _YEARS:
        return f"{time}"
    return str(np.datetime64(int(seconds // 1), "s"))[:10]
