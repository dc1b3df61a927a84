"""The copy of its data that a run keeps, as Parquet: with it a run stands alone, whatever becomes of the file.

Shapes: N interactions.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ur4rec.data.interactions import Interactions
from ur4rec.data.prepared import Prepared, is_prepared, read_prepared
from ur4rec.data.reading.parquet import read_parquet
from ur4rec.errors import DataError, refuse_malformed
from ur4rec.files import check_form, parse_object, write_directory

_REFERENCE = "prepared.json"
_INTERACTIONS, _USERS, _ITEMS = "interactions.parquet", "users.parquet", "items.parquet"
_TIMES = (pa.int64(), pa.float64())


def write_interactions(folder: Path, interactions: Interactions, extra: dict[str, bytes]) -> None:
    """Write the data of a run into a folder that never exists half-written.

    Args:
        folder: The folder; one that is there is replaced.
        interactions: The data.
        extra: Further files by name.

    Raises:
        OSError: The disk is full or not writable.
    """
    columns = {
        "user": to_arrow(interactions.users_N),
        "item": to_arrow(interactions.items_N),
        "timestamp": to_arrow(interactions.timestamps_N),
    }
    if interactions.parts_N is not None:
        columns["part"] = to_arrow(interactions.parts_N)
    described = {"name": interactions.name, "source": interactions.source}
    tables = {
        _INTERACTIONS: pa.table(columns).replace_schema_metadata(described),
        _USERS: pa.table({"id": pa.array(interactions.user_ids, pa.string())}),
        _ITEMS: pa.table(
            {
                "id": pa.array(interactions.item_ids, pa.string()),
                "title": pa.array(interactions.titles, pa.string()),
                "text": pa.array(interactions.texts, pa.string()),
            }
        ),
    }
    write_directory(folder, {**{name: _to_parquet(table) for name, table in tables.items()}, **extra})


def write_reference(folder: Path, prepared: Prepared, extra: dict[str, bytes]) -> None:
    """Write where the prepared data of a run is, in place of a copy, into a folder that never exists half-written."""
    reference = {"path": str(prepared.path), "contents_hash": prepared.contents_hash}
    write_directory(folder, {_REFERENCE: (json.dumps(reference) + "\n").encode(), **extra})


def read_interactions(folder: Path) -> Interactions:
    """What `write_interactions` wrote, or the prepared data that `write_reference` names.

    Raises:
        DataError: A file is missing, damaged or of another form. Whether it is the run's data is told by its hashes:
            see `hash_contents`. Or the prepared data is not where it was, or another.
    """
    if (folder / _REFERENCE).is_file():
        return _follow(folder / _REFERENCE)
    with refuse_malformed(f"the data in {folder}", "restore it, or take another copy of the run"):
        interactions, users, items = (read_parquet(folder / name) for name in (_INTERACTIONS, _USERS, _ITEMS))
        user_ids = _strings(users, "id")
        item_ids = _strings(items, "id")
        described = interactions.schema.metadata or {}
        return Interactions(
            users_N=_numbers(interactions, "user", len(user_ids), np.int32),
            items_N=_numbers(interactions, "item", len(item_ids), np.int32),
            timestamps_N=_times(interactions),
            user_ids=user_ids,
            item_ids=item_ids,
            titles=_strings(items, "title"),
            texts=_strings(items, "text"),
            name=described[b"name"].decode(),
            source=described[b"source"].decode(),
            parts_N=_numbers(interactions, "part", 4, np.int8) if "part" in interactions.column_names else None,
        )


def _follow(path: Path) -> Interactions:
    with refuse_malformed(path, "restore it, or take another copy of the run"):
        reference = parse_object(path.read_bytes())
        check_form(reference, {"path": str, "contents_hash": str})
        place, expected = Path(reference["path"]), reference["contents_hash"]
    if not is_prepared(place):
        raise DataError(
            f"{path}: the run's prepared data must be in {place}, it is not there; put it back, or write its new place "
            "into that file"
        )
    interactions = read_prepared(place)
    if (found := hash_contents(interactions)) != expected:
        raise DataError(f"{place}: must be the data of the run, {expected}, got {found}; put that back")
    return interactions


def hash_contents(interactions: Interactions) -> str:
    """SHA-256 of all that is kept of the data: of ids, titles, texts, times and parts too."""
    if interactions.prepared is not None:
        return interactions.prepared.contents_hash
    digest = hashlib.sha256(interactions.hash.encode())
    digest.update(interactions.timestamps_N.astype(interactions.timestamps_N.dtype.newbyteorder("<")).tobytes())
    if interactions.parts_N is not None:
        digest.update(interactions.parts_N.tobytes())
    for strings in (interactions.user_ids, interactions.item_ids, interactions.titles, interactions.texts):
        digest.update(json.dumps(list(strings)).encode())
    return digest.hexdigest()


def to_arrow(array: NDArray[Any]) -> pa.Array:
    """A copy of an array of numbers in memory of Arrow's own, which its threads may free when the interpreter ends."""
    buffer = pa.allocate_buffer(array.nbytes)
    np.frombuffer(buffer, array.dtype)[:] = array
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), len(array), [None, buffer])


def _to_parquet(table: pa.Table) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
    content: bytes = stream.getvalue().to_pybytes()
    return content


def _numbers(table: pa.Table, name: str, count: int, kind: type) -> NDArray[Any]:
    """A column of whole numbers from 0 to below a count."""
    numbers_N = np.from_dlpack(_column(table, name, (pa.from_numpy_dtype(kind),)))
    if len(numbers_N) and not 0 <= numbers_N.min() <= numbers_N.max() < count:
        raise ValueError(f"{name} must be in 0 .. {count - 1}")
    return numbers_N


def _times(table: pa.Table) -> NDArray[Any]:
    times_N = np.from_dlpack(_column(table, "timestamp", _TIMES))
    if not np.isfinite(times_N).all():
        raise ValueError("timestamps must be finite")
    return times_N


def _strings(table: pa.Table, name: str) -> list[str]:
    strings: list[str] = _column(table, name, (pa.string(),)).to_pylist()
    return strings


def _column(table: pa.Table, name: str, kinds: tuple[pa.DataType, ...]) -> pa.Array:
    column = table[name].combine_chunks()
    if column.type not in kinds or column.null_count:
        raise ValueError(f"column {name!r} must be {kinds[0]} without nulls, got {column.type}")
    return column
