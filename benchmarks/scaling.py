"""How do time, memory and files grow?  `python benchmarks/scaling.py` measures both backends along four axes.

Each cell of the table is a process of its own with one thread. Finished cells are kept in the work folder, so that the
same command continues after Ctrl-C; the small sizes come first, and the result files hold whatever is finished.
Growth with interactions is measured by `python benchmarks/scaling_data.py`, whose newest result is a part of the table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from scaling_measures import AXES, BACKENDS, MEASURES, Figures, Subject, measure
from scaling_measures import resident_peak as resident_peak
from scaling_report import QUESTION, label, save

from ur4rec.training.slices import DEFAULT_MEMORY, parse_memory

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "runs" / "scaling"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PJRT_NPROC"), "1")
USUAL_SECONDS = 15.0
"""Of a cell of which nothing is known yet."""
HELP = """examples:
  python benchmarks/scaling.py                        all cells (hours), or what is missing of them
  python benchmarks/scaling.py --list                 what there is to measure, and what is finished
  python benchmarks/scaling.py --only "joint step"    the cells whose name holds this: "AXIS: MEASURE, BACKEND"
  python benchmarks/scaling.py --only catalogue --backend torch --largest 30000
  python benchmarks/scaling.py --only TF-IDF --again  measure these again
  python benchmarks/scaling.py --report-only          the tables and the plot of what is finished
"""


class Cell(NamedTuple):
    """One measurement."""

    axis: str
    size: int
    measure: str
    backend: str

    @property
    def subject(self) -> tuple[Any, ...]:
        """What is measured of what: at its usual size, all axes have the same."""
        field, _ = AXES[self.axis]
        usual = getattr(Subject(backend=self.backend), field)
        return self.measure, self.backend, *(() if self.size == usual else (self.axis, self.size))

    def __str__(self) -> str:
        return f"{self.axis}: {label(self.measure, self.backend)}, {self.size:,}"


def all_cells() -> list[Cell]:
    """All that is measured, the small sizes first."""
    found = [
        (step, Cell(axis, size, name, backend))
        for name, each in MEASURES.items()
        for axis in each.axes
        for step, size in enumerate(AXES[axis][1])
        for backend in each.backends
        if each.largest is None or size <= each.largest
    ]
    return [cell for _, cell in sorted(found, key=lambda pair: pair[0])]


class Kept:
    """The finished cells, a line of JSON for each in a file; the newest of a cell counts."""

    def __init__(self, work: Path) -> None:
        self._file = work / "cells.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        rows = [Figures(**json.loads(line)) for line in lines]
        self.rows = {Cell(each.axis, each.size, each.measure, each.backend): each for each in rows}

    def twin(self, cell: Cell) -> Figures | None:
        """What another axis has found of the same, if it has."""
        found = (each for key, each in self.rows.items() if key.subject == cell.subject and not each.failed)
        return next((replace(each, axis=cell.axis, size=cell.size) for each in found), None)

    def add(self, cell: Cell, figures: Figures) -> None:
        """Keep what a cell found."""
        self.rows[cell] = figures
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as file:
            file.write(json.dumps(asdict(figures)) + "\n")

    def expected_seconds(self, cell: Cell) -> float:
        """How long a cell will take, by the nearest size of its series."""
        finished = [each for key, each in self.rows.items() if (key.axis, *key[2:]) == (cell.axis, *cell[2:])]
        if not finished:
            return USUAL_SECONDS
        nearest = max(finished, key=lambda each: each.size)
        return nearest.wall * max(1.0, cell.size / nearest.size) ** 0.8  # starting Python does not grow


def measure_apart(cell: Cell, memory: int, timeout: float) -> Figures:
    """One measurement, in a process of its own, whose files are removed; says why where it did not end well."""
    started = time.monotonic()
    failed = Figures(axis=cell.axis, size=cell.size, measure=cell.measure, backend=cell.backend)
    command = [sys.executable, __file__, "--one", json.dumps(cell), "--memory", str(memory)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **ONE_THREAD, "TMPDIR": folder}
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return replace(failed, failed=f"over {timeout:.0f} s", wall=time.monotonic() - started)
    wall = time.monotonic() - started
    if ended.returncode:
        sys.stderr.write(ended.stderr[-2000:])
        return replace(failed, failed=f"exit code {ended.returncode}", wall=wall)
    return replace(Figures(**json.loads(ended.stdout.splitlines()[-1])), wall=wall)


def describe(figures: Figures) -> str:
    """What a cell found, in a line."""
    if figures.failed:
        return f"failed, {figures.failed}"
    files = ", ".join(f"{name.removesuffix('_MB')} {value:.3g} MB" for name, value in figures.extra.items())
    more = figures.peak_MB - figures.before_MB
    return f"{figures.seconds:.3g} s, {more:.0f} MB more" + (f", {files}" if files else "")


def run_cells(cells: list[Cell], kept: Kept, options: argparse.Namespace, memory: int) -> None:
    """Measure cells, with a line for each."""
    for index, cell in enumerate(cells):
        left = sum(map(kept.expected_seconds, cells[index:]))
        sys.stderr.write(f"[{index + 1}/{len(cells)}, about {left / 60:.0f} min left] {cell} ... ")
        sys.stderr.flush()
        figures = (None if options.again else kept.twin(cell)) or measure_apart(cell, memory, options.timeout)
        kept.add(cell, figures)
        sys.stderr.write(f"{describe(figures)}\n")


def report(kept: Kept, options: argparse.Namespace, memory: int) -> str:
    """Write the result files; returns the tables."""
    facts = {"date": datetime.now(UTC).date().isoformat(), **machine()}
    stem = options.out / f"scaling_cpu{os.cpu_count()}_{facts['date']}"
    measured = [kept.rows[cell] for cell in all_cells() if cell in kept.rows]
    return save([*data_figures(options.out), *measured], stem, memory, facts)


def machine() -> dict[str, Any]:
    """Where it was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": models[0] if models else "unknown processor", "cores": os.cpu_count()}


def data_figures(folder: Path) -> list[Figures]:
    """What `benchmarks/scaling_data.py` found last."""
    newest = sorted(folder.glob("scaling_data_*.json"))[-1:]
    rows = [row for file in newest for row in json.loads(file.read_text())["figures"]]
    return [
        Figures(
            axis="interactions",
            size=row["num_interactions"],
            measure=row["stage"],
            backend="",
            seconds=row["seconds"],
            calls=1,
            peak_MB=row["peak_MB"],
            extra={"file_MB": row["disk_MB"]},
        )
        for row in rows
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing, and save."""
    parser = argparse.ArgumentParser(
        description=QUESTION, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="the cells whose name holds this (see --list)")
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="default: both")
    parser.add_argument("--largest", type=int, help="no size above this, whatever the axis")
    parser.add_argument("--again", action="store_true", help="measure finished and failed cells again")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds of a cell at most (default: 1800)")
    parser.add_argument("--memory", default=str(DEFAULT_MEMORY), help="bytes that scores may take (default: 1GiB)")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of finished cells (default: runs/scaling)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--list", action="store_true", help="list the cells, measure nothing")
    parser.add_argument("--report-only", action="store_true", help="measure nothing, report what is finished")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    memory = parse_memory(options.memory)
    if options.one is not None:
        axis, size, name, backend = json.loads(options.one)
        sys.stdout.write(json.dumps(asdict(measure(name, axis, size, backend, memory))) + "\n")
        return 0
    kept = Kept(options.work)
    cells = [
        cell
        for cell in all_cells()
        if options.only in str(cell)
        and (not options.backend or cell.backend in options.backend)
        and cell.size <= (options.largest or cell.size)
    ]
    if options.list:
        for cell in cells:
            sys.stdout.write(f"{cell}{f': {describe(kept.rows[cell])}' if cell in kept.rows else ''}\n")
        return 0
    missing = [cell for cell in cells if options.again or cell not in kept.rows]
    try:
        run_cells([] if options.report_only else missing, kept, options, memory)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues\n")
    sys.stdout.write(report(kept, options, memory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
