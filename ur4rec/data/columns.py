"""Columns: Arrow files of one batch, uncompressed, that are filled in place and mapped into memory.

Shapes: N rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_ITERATED = 2**16
"""Strings that iterating makes at once."""


class ColumnWriter:
    """An Arrow file of numbers whose columns are written piece by piece, in any order, and are never in memory whole.

    Args:
        path: The file.
        kinds: The type of each column.
        num_rows: The number of rows.

    Raises:
        OSError: The disk is full or not writable.
    """

    def __init__(self, path: Path, kinds: Mapping[str, Any], num_rows: int) -> None:
        zeros = {name: np.zeros(num_rows, kind) for name, kind in kinds.items()}  # memory that is never touched
        batch = pa.record_batch({name: _borrow(zeros_N) for name, zeros_N in zeros.items()})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        self._kinds = {name: zeros_N.dtype for name, zeros_N in zeros.items()}
        self._starts = _find_columns(path)
        self._file = path.open("rb+")

    def write(self, name: str, first: int, values: NDArray[Any]) -> None:
        """Write values of a column from a row on."""
        kind = self._kinds[name]
        self._file.seek(self._starts[name] + first * kind.itemsize)
        self._file.write(np.ascontiguousarray(values, kind).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def write_columns(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of numbers as an Arrow file."""
    _write(path, pa.record_batch({name: _borrow(np.ascontiguousarray(each)) for name, each in columns.items()}))


def write_strings(path: Path, columns: Mapping[str, pa.Array]) -> None:
    """Write arrays of strings as an Arrow file."""
    _write(path, pa.record_batch({name: each.cast(pa.large_string()) for name, each in columns.items()}))


def map_columns(path: Path, kinds: Mapping[str, tuple[Any, ...]]) -> dict[str, NDArray[Any]]:
    """The columns of a file of numbers, mapped: nothing is read before it is used.

    Args:
        path: The file.
        kinds: The columns that it must have, and the types that each may have.

    Raises:
        ValueError, KeyError, OSError: It is another file.
    """
    batch = _map(path)
    found = {name: batch.column(name).to_numpy(zero_copy_only=True) for name in batch.schema.names}
    for name, allowed in kinds.items():
        if batch.column(name).null_count or found[name].dtype not in allowed:
            raise ValueError(f"column {name!r} must be one of {allowed}, got {found[name].dtype}")
    return found


def map_strings(path: Path, names: Sequence[str]) -> list["Strings"]:
    """The columns of a file of strings, mapped.

    Raises:
        ValueError, KeyError, OSError: It is another file.
    """
    batch = _map(path)
    for name in names:
        if not pa.types.is_large_string(batch.column(name).type) or batch.column(name).null_count:
            raise ValueError(f"column {name!r} must be strings without nulls, got {batch.column(name).type}")
    return [Strings(batch.column(name)) for name in names]


class Strings(Sequence[str]):
    """Strings that Arrow holds, perhaps in a mapped file: a Python string is made when it is asked for.

    Example:
        >>> strings = Strings(pa.array(["b", "a", "c"], pa.large_string()))
        >>> strings[0], strings[1:], len(strings), strings.find(["c", "x"]).tolist()
        ('b', ['a', 'c'], 3, [2, -1])
    """

    def __init__(self, array: pa.Array) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            found: list[str] = self.array[index].to_pylist()
            return found
        return str(self.array[int(index)].as_py())

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _ITERATED):
            yield from self[first : first + _ITERATED]

    def find(self, wanted: Iterable[str]) -> NDArray[np.int64]:
        """The index of each string, -1 for one that is not there."""
        return find_strings(self.array, pa.array(list(wanted), pa.large_string()))


def find_strings(known: pa.Array, wanted: pa.Array) -> NDArray[np.int64]:
    """The index of each wanted string among those known, -1 for one that is not there."""
    found = pc.fill_null(pc.index_in(wanted, value_set=known), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


def take_strings(strings: Sequence[str], indices: NDArray[Any]) -> list[str]:
    """The strings of some indices."""
    if isinstance(strings, Strings):
        found: list[str] = strings.array.take(pa.array(indices)).to_pylist()
        return found
    return [strings[index] for index in indices.tolist()]


def to_string_array(strings: Sequence[str]) -> pa.Array:
    """Strings as an array of Arrow's."""
    return strings.array.cast(pa.string()) if isinstance(strings, Strings) else pa.array(strings, pa.string())


def _write(path: Path, batch: pa.RecordBatch) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _map(path: Path) -> pa.RecordBatch:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.num_record_batches != 1:
            raise ValueError(f"{path.name} must be one batch, got {reader.num_record_batches}")
        batch = reader.get_batch(0)
        batch.validate(full=any(pa.types.is_large_string(kind) for kind in batch.schema.types))
        return batch
    except pa.ArrowException as error:
        raise ValueError(f"{path.name} is no Arrow file: {error}") from error


def _find_columns(path: Path) -> dict[str, int]:
    """Where the values of each column begin in a file."""
    source = pa.memory_map(str(path))
    whole = source.read_buffer(source.size())
    batch = pa.ipc.open_file(pa.BufferReader(whole)).get_batch(0)
    return {name: batch.column(name).buffers()[1].address - whole.address for name in batch.schema.names}


def _borrow(array_N: NDArray[Any]) -> pa.Array:
    """An array of Arrow's over the memory of one of NumPy's."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(array_N.dtype), len(array_N), [None, pa.py_buffer(array_N)])
