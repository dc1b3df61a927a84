"""Times: a column of numbers or of ISO 8601 dates as numbers."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_PER_SECOND = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}


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
