"""Files of recommendations: Parquet, CSV or JSON lines, written whole or not at all."""

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ur4rec.errors import ConfigurationError
from ur4rec.files import write_file
from ur4rec.runs.recommender import SCHEMA

SUFFIXES = (".parquet", ".csv", ".jsonl")
_ROW_GROUP = 2**17
"""Rows that are written at once at least: what repeats within them is kept once."""


def check_output(path: Path) -> None:
    """Refuse a path at which no file of recommendations can be written, before anything is computed.

    Raises:
        ConfigurationError: Its suffix is none of `SUFFIXES`, or it is a directory, or in none.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigurationError(f"--out must end in one of {SUFFIXES}, got {path.name!r}; rename it")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigurationError(f"--out must be a file in a directory that exists, got {path}; choose another")


def write_recommendations(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables of `SCHEMA` as one file; one that is there is replaced once the new one is whole.

    Strings are written byte for byte: a spreadsheet takes a CSV field that begins with ``=`` for a formula.

    Args:
        path: Its suffix says the format.
        tables: The tables, which are taken one after the other.

    Raises:
        OSError: The disk is full or not writable.
    """
    write = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_json_lines}[path.suffix]
    write_file(path, lambda scratch: write(scratch, tables))


def _write_parquet(path: Path, tables: Iterable[pa.Table]) -> None:
    waiting: list[pa.Table] = []
    with pa.parquet.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for table in tables:
            waiting.append(table)
            if sum(map(len, waiting)) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _write_csv(path: Path, tables: Iterable[pa.Table]) -> None:
    with pa.csv.CSVWriter(path, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)


def _write_json_lines(path: Path, tables: Iterable[pa.Table]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
