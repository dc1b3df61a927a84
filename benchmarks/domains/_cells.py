"""Finished runs: kept one by one while the command runs, and packed into one file of less than a megabyte."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ur4rec.files import write_file

from ._domain import Arm, Domain, Kind, Outcome, Point

_CURVE = ("cost", "held_out", "test")


class Cell(NamedTuple):
    """One run."""

    domain: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.domain}: {self.arm}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a report says of a domain."""

    name: str
    question: str
    metric: str
    higher_is_better: bool
    budget: float
    unit: str
    has_signal: bool

    @classmethod
    def of(cls, domain: Domain) -> "Facts":
        """Those of a domain."""
        return cls(**{name: getattr(domain, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run and what it was a run of."""

    cell: Cell
    kind: Kind
    in_grid: bool
    note: str
    fingerprint: str
    seconds: float
    outcome: Outcome

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "cell": list(self.cell)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Run":
        """Of what `to_json` returned."""
        outcome = {**found["outcome"], "curve": tuple(Point(*point) for point in found["outcome"]["curve"])}
        return cls(**{**found, "cell": Cell(*found["cell"]), "outcome": Outcome(**outcome)})


def fingerprint(domain: Domain, arm: Arm) -> str:
    """Of all settings of a run but its seed: a kept run of other settings does not count."""
    return hashlib.sha256(f"{domain!r} {arm.setting!r}".encode()).hexdigest()[:16]


class Kept:
    """The finished runs: those packed, and those of the work folder, which count where both have a run.

    Args:
        work: The folder; a file of JSON lines for each domain.
        packed: The packed file; it need not be there.
    """

    def __init__(self, work: Path, packed: Path) -> None:
        self._work = work
        self.facts, self.runs = read_packed(packed) if packed.exists() else ({}, {})
        for file in sorted(work.glob("*.jsonl")):
            for run in _read_lines(file):
                self.runs[run.cell] = run

    def finished(self, cell: Cell, mark: str) -> bool:
        """Whether there is a run of these very settings."""
        return cell in self.runs and self.runs[cell].fingerprint == mark

    def add(self, run: Run) -> None:
        """Keep it."""
        self.runs[run.cell] = run
        self._work.mkdir(parents=True, exist_ok=True)
        with (self._work / f"{run.cell.domain}.jsonl").open("a") as file:
            file.write(json.dumps(run.to_json()) + "\n")

    def expected_seconds(self, cell: Cell) -> float | None:
        """What runs of that arm took, or of that domain; None where nothing is known."""
        of_domain = [run for run in self.runs.values() if run.cell.domain == cell.domain]
        times = [run.seconds for run in of_domain if run.cell.arm == cell.arm] or [run.seconds for run in of_domain]
        return sum(times) / len(times) if times else None


def _read_lines(file: Path) -> list[Run]:
    """The runs of a file; a last line that a killed command left half written is not one."""
    lines = file.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        file.write_text("".join(lines[:-1]))
        lines = lines[:-1]
    return [Run.from_json(json.loads(line)) for line in lines]


def write_packed(path: Path, facts: Iterable[Facts], runs: Iterable[Run]) -> None:
    """Write runs as one Parquet file, a row for each, with what the report says of their domains."""
    rows = [_row(run) for run in sorted(runs, key=lambda run: run.cell)]
    floats = {f"curve_{name}": pa.list_(pa.float32()) for name in _CURVE}
    plain = {"domain": pa.string(), "arm": pa.string(), "seed": pa.int32(), "kind": pa.string(), "in_grid": pa.bool_()}
    plain |= {"note": pa.string(), "fingerprint": pa.string(), "seconds": pa.float64(), "shares": pa.string()}
    plain |= {name: pa.float64() for name in _CURVE}
    metadata = {"domains": json.dumps([asdict(each) for each in facts])}
    table = pa.Table.from_pylist(rows, schema=pa.schema({**plain, **floats}, metadata=metadata))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda scratch: pq.write_table(table, scratch, compression="zstd", compression_level=19))


def _row(run: Run) -> dict[str, Any]:
    outcome = run.outcome
    row = {**run.cell._asdict(), **{name: getattr(outcome, name) for name in _CURVE}}
    row |= {name: getattr(run, name) for name in ("kind", "in_grid", "note", "fingerprint", "seconds")}
    row |= {f"curve_{name}": [getattr(point, name) for point in outcome.curve] for name in _CURVE}
    return {**row, "shares": json.dumps(dict(outcome.shares))}


def read_packed(path: Path) -> tuple[dict[str, Facts], dict[Cell, Run]]:
    """What `write_packed` wrote: domains by name, and runs."""
    table = pq.read_table(path)
    facts = [Facts(**each) for each in json.loads((table.schema.metadata or {})[b"domains"])]
    runs = {}
    for row in table.to_pylist():
        curve = tuple(map(Point, *(row.pop(f"curve_{name}") for name in _CURVE)))
        shares = json.loads(row.pop("shares"))
        outcome = Outcome(**{name: row.pop(name) for name in _CURVE}, curve=curve, shares=shares)
        cell = Cell(*(row.pop(name) for name in Cell._fields))
        runs[cell] = Run(cell=cell, outcome=outcome, **row)
    return {each.name: each for each in facts}, runs
