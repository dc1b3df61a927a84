"""Lists of ids: of the users to recommend to, of the items to leave out."""

from pathlib import Path

from ur4rec.data.reading.content import kind_of
from ur4rec.data.reading.layouts import ATOMIC, JSONS
from ur4rec.data.reading.opening import open_table
from ur4rec.data.reading.tables import require_columns
from ur4rec.data.reading.text import TextFormat, read_text_table
from ur4rec.errors import without_options
from ur4rec.options import DataOptions

_ONE_PER_LINE = "\x1f"
"""A separator of fields that no id has: a line is one field."""
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_ids(path: Path, names: tuple[str, ...]) -> list[str]:
    """Ids, in the order of a file: one per line, or a column of a table or of JSON lines.

    Args:
        path: The file. One that is neither a table nor JSON lines by its suffix has one id per line.
        names: What the column may be called, the first first.

    Raises:
        DataError: The file is missing, malformed or empty, or has no such column.
    """
    with without_options("write one id per line into a .txt file"):
        return _read_ids(path, names)


def _read_ids(path: Path, names: tuple[str, ...]) -> list[str]:
    kind = kind_of(path)
    if kind not in (*_SEPARATORS, *ATOMIC, *JSONS, ".parquet"):
        lines = read_text_table(path, TextFormat(separator=_ONE_PER_LINE, columns=(names[0],)))
        return list(lines.names(names[0]).to_pylist())
    table = open_table(path, DataOptions(separator=_SEPARATORS.get(kind)), known=False).table
    column = next((name for name in names if name in table.columns), names[0])
    require_columns(table, (column,), "rename it, or write one id per line into a .txt file")
    return list(table.names(column).to_pylist())
