"""The finished runs of a study as one Parquet file of less than a megabyte, from which its report can be made again.

There is a row per run: what it reported (points, turns, facts) and, of every test target, the rank and the likelihood
at the best validation point, from which differences between arms and their intervals are computed. The intervals of the
cost to parity's quality need every target at every point, which is ten times as much: they are computed when the runs
are packed, and kept in the metadata of the file.

Shapes: T targets.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ur4rec.compare.runner import RunKey
from ur4rec.data.reading.parquet import read_parquet
from ur4rec.errors import DataError, refuse_malformed
from ur4rec.files import check_form, parse_object, write_file

NLL_STEPS = 2**14
"""Likelihoods are rounded to 1/16384, which compresses: a mean over 1,000 targets moves by about 0.0000006."""
LAST_RANK = 11
"""Stands for every later rank too: metrics look at the first ten."""
_REMEDY = "restore it, or remove it and compare again"
_TARGETS = ("test_rank", "test_nll")
_TENURES = "turns.tenures.list.element"
_REPEATED = [
    "basis",
    "schedule",
    "facts",
    "costs_hash",
    f"{_TENURES}.turn",
    f"{_TENURES}.steps",
    "test_rank.list.element",
]
"""Columns with few different values."""


class KeptTargets(NamedTuple):
    """What every test target got at the best validation point of a run, in the precision that packed runs have."""

    ranks_T: NDArray[np.uint8]
    """Ranks up to `LAST_RANK`."""
    nll_T: NDArray[np.float32]
    """Minus the log-probability of each target, to the nearest 1 / `NLL_STEPS`."""

    @classmethod
    def of(cls, ranks_T: NDArray[Any], nll_T: NDArray[Any]) -> "KeptTargets":
        """Round to what is kept, so that a report is the same before and after its runs are packed."""
        rounded_T = np.round(nll_T.astype(float) * NLL_STEPS) / NLL_STEPS
        return cls(np.minimum(ranks_T, LAST_RANK).astype(np.uint8), rounded_T.astype(np.float32))


class PackedRuns:
    """Reads what `write_packed` wrote.

    Args:
        path: The file. It need not be there: then there are no runs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __contains__(self, key: RunKey) -> bool:
        return key in self._rows

    @property
    def keys(self) -> list[RunKey]:
        """The runs."""
        return list(self._rows)

    @property
    def time_ratios(self) -> dict[str, Any]:
        """By budget and arm: the ``seeds``, and the cost to parity's final quality by parity's, with its interval."""
        kept = (self._table.schema.metadata or {}).get(b"time_ratios", b"{}")
        with self._refuse_damage():
            ratios = parse_object(kept)
            check_form(ratios, {str: {str: {"seeds": [int], "ratios": {str: [(float, None)]}}}})
            return ratios

    def report(self, key: RunKey) -> dict[str, Any]:
        """What a run reported."""
        with self._refuse_damage():
            (row,) = self._table.drop_columns(list(_TARGETS)).slice(self._rows[key], 1).to_pylist()
            tenures = [[tenure["turn"], tenure["steps"]] for tenure in row["turns"]["tenures"]]
            facts = parse_object(row["facts"].encode())
            return {**row, "turns": {**row["turns"], "tenures": tenures}, "facts": facts}

    def targets(self, key: RunKey) -> KeptTargets:
        """What the test targets got."""
        with self._refuse_damage():
            ranks_T, nll_T = (self._table[name][self._rows[key]].values.to_numpy() for name in _TARGETS)
            if (ranks_T.dtype, nll_T.dtype) != (np.uint8, np.float32) or ranks_T.shape != nll_T.shape:
                raise TypeError(f"ranks and likelihoods of {ranks_T.dtype} and {nll_T.dtype}")
            return KeptTargets(ranks_T, nll_T)

    @cached_property
    def _table(self) -> pa.Table:
        if not self._path.exists():
            return pa.table({"arm": [], "seed": [], "basis": []})
        with self._refuse_damage():
            return read_parquet(self._path)

    @cached_property
    def _rows(self) -> dict[RunKey, int]:
        with self._refuse_damage():
            keys = self._table.select(list(RunKey._fields)).to_pylist()
            return {RunKey(**key): number for number, key in enumerate(keys)}

    @contextmanager
    def _refuse_damage(self) -> Iterator[None]:
        try:
            with refuse_malformed(self._path, _REMEDY):
                yield
        except pa.ArrowException as error:
            raise DataError(f"{self._path} is damaged ({error}); {_REMEDY}") from error


def write_packed(
    path: Path, reports: Iterable[Mapping[str, Any]], targets: Sequence[KeptTargets], time_ratios: Mapping[str, Any]
) -> None:
    """Write runs as one file.

    Args:
        path: The file.
        reports: What each run reported.
        targets: What its test targets got.
        time_ratios: As `PackedRuns.time_ratios` returns them.
    """
    table = pa.Table.from_pylist([_plain(report) for report in reports])
    table = table.append_column("test_rank", pa.array([each.ranks_T for each in targets], pa.list_(pa.uint8())))
    table = table.append_column("test_nll", pa.array([each.nll_T for each in targets], pa.list_(pa.float32())))
    table = table.replace_schema_metadata({"time_ratios": json.dumps(time_ratios, allow_nan=False)})
    write_file(path, lambda scratch: _write_table(table, scratch))


def _plain(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with a type for each column: tenures as records, and facts, which vary, as JSON."""
    tenures = [{"turn": turn, "steps": steps} for turn, steps in report["turns"]["tenures"]]
    turns = {**report["turns"], "tenures": tenures}
    # Runs of before they kept it have none; a row decides for all which columns there are.
    costs_hash = report.get("costs_hash")
    return {**report, "costs_hash": costs_hash, "turns": turns, "facts": json.dumps(report["facts"])}


def _write_table(table: pa.Table, path: Path) -> None:
    """Likelihoods byte by byte, since their high bytes repeat; one page per column, so that equal runs cost nothing."""
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=_REPEATED,
        use_byte_stream_split=["test_nll.list.element"],
        data_page_size=2**26,
        write_page_checksum=True,
    )
