"""Parquet files, read piece by piece, so that a small file that holds a huge table is refused."""

from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from alternator.checks import one_line
from ur4rec.data.reading.content import MAX_BYTES, MAX_RATIO, check_is_file
from ur4rec.data.reading.tables import Part, Table, check_header
from ur4rec.errors import DataError

_ROWS = 2**14
"""Rows that are read at once."""


def read_parquet_table(path: Path) -> Table:
    """Read a Parquet file.

    Raises:
        DataError: The file is missing or is not Parquet, or two columns have one name.
    """
    check_is_file(path)
    table = read_parquet(path)
    check_header(str(path), table.column_names)
    return Table(path, {name: table[name].combine_chunks() for name in table.column_names}, (Part(path, len(table)),))


def stream_parquet(path: Path, columns: Collection[str] | None) -> Iterator[tuple[Table, float]]:
    """A Parquet file in tables of some thousand rows, with the share of it that has been read.

    Args:
        path: The file.
        columns: What is read; None is all columns.

    Raises:
        DataError: The file is missing or is not Parquet, or two columns have one name.
    """
    check_is_file(path)
    try:
        with pa.parquet.ParquetFile(path, page_checksum_verification=True, buffer_size=2**20) as file:
            check_header(str(path), file.schema_arrow.names)
            names = [name for name in file.schema_arrow.names if columns is None or name in columns]
            done, total = 0, file.metadata.num_rows
            for batch in file.iter_batches(_ROWS, columns=names):
                part = Part(path, len(batch), first_row=done + 1)
                done += len(batch)
                if len(batch):
                    yield Table(path, {name: batch[name] for name in names}, (part,)), done / total
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet: {one_line(str(error), 200)}; write it again, or restore it"
        ) from error
    if not done:
        raise DataError(f"{path}: holds no row; give a file with at least one")


def read_parquet(path: Path) -> pa.Table:
    """The table of a Parquet file, read piece by piece: a file that is small and holds a huge table is refused.

    Raises:
        DataError: The file is missing or is not Parquet, or its table is far larger than the file.
    """
    try:
        limit = max(MAX_BYTES, MAX_RATIO * path.stat().st_size)
        with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            batches: list[pa.RecordBatch] = []
            for batch in file.iter_batches(_ROWS):
                batches.append(batch)
                if (limit := limit - batch.nbytes) < 0:
                    raise DataError(
                        f"{path}: a table must be at most {MAX_RATIO} times as large as its file, this one is "
                        "larger; write it without what repeats"
                    )
            table = pa.Table.from_batches(batches, file.schema_arrow)
            if len(table) != file.metadata.num_rows:
                raise DataError(
                    f"{path}: cannot be read as Parquet: its footer says {file.metadata.num_rows} rows, it has "
                    f"{len(table)}; write it again"
                )
            return table
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet: {one_line(str(error), 200)}; write it again, or restore it"
        ) from error
