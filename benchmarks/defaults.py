"""How near does the default come to a search?  Runs the preset `default` against random settings on shapes of data.

Five synthetic shapes that it was not tuned to (dense, sparse, long, few users, strong text). On each, N random settings
are trained on the first seed; the one with the best validation NDCG@10 and the default are trained on all seeds and
compared on the test targets. Budgets are equal in epochs, with early stopping. Finished runs are kept in
runs/defaults, so that the same command continues after Ctrl-C; a run counts as finished for the settings that it was
made with, so that after a change of `ur4rec/runs/sizes.py` the default alone runs again.
"""

import argparse
import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from defaults_report import ShapeSummary, choose_best, draw, render, summarise
from defaults_search import DEFAULT, SHAPES, Cell, Search, config_of, run_cell

from ur4rec.compare.processes import StudyInterruptedError, interruptible, one_thread_processes
from ur4rec.compare.report import compact_json
from ur4rec.compare.runner import machine_facts, source_commit
from ur4rec.files import write_whole
from ur4rec.training.backend import BACKENDS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "runs" / "defaults"
NUM_SETTINGS, NUM_SEEDS = 20, 3
HELP = """examples:
  python benchmarks/defaults.py                       everything, or what is missing of it (hours on two cores)
  python benchmarks/defaults.py --list                the shapes, and what is finished
  python benchmarks/defaults.py --only "few users"    the runs whose name holds this: "SHAPE: ARM, seed SEED"
  python benchmarks/defaults.py --only ": default,"   the default alone, after a change of ur4rec/runs/sizes.py
  python benchmarks/defaults.py --report-only         the report of what is finished
  python benchmarks/defaults.py --quick --settings 2 --seeds 1 --out /tmp/look    a first look in a minute or two
"""


class Failure(NamedTuple):
    """A run that raised."""

    cell: Cell
    message: str


class Kept:
    """Finished runs, a file each.

    Args:
        folder: Where they are.
        search: What is common to them.
    """

    def __init__(self, folder: Path, search: Search) -> None:
        self._folder = folder / search.backend / ("quick" if search.quick else "full")
        self._search = search

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """A finished run of the settings that the cell has now; None is none."""
        file = self._file(cell)
        if not file.is_file():
            return None
        result: dict[str, Any] = json.loads(file.read_text())
        same = result["config"] == json.loads(json.dumps(config_of(cell, self._search).to_json()))
        return result if same else None

    def write(self, result: dict[str, Any]) -> None:
        """Keep a finished run."""
        cell = Cell(result["shape"], result["arm"], result["seed"])
        write_whole(self._file(cell), (json.dumps(result) + "\n").encode())

    def _file(self, cell: Cell) -> Path:
        words = (cell.shape.replace(",", ""), cell.arm, f"seed {cell.seed}")
        return self._folder.joinpath(*(word.replace(" ", "-") for word in words)).with_suffix(".json")


def searched(shapes: Sequence[str], num_settings: int, seeds: Sequence[int]) -> list[Cell]:
    """The runs that are known from the start: the default on all seeds, the random settings on the first."""
    arms = [f"random {number:02d}" for number in range(num_settings)]
    return [
        *(Cell(shape, DEFAULT, seed) for shape in shapes for seed in seeds),
        *(Cell(shape, arm, seeds[0]) for arm in arms for shape in shapes),
    ]


def chosen(cells: Sequence[Cell], kept: Kept, seeds: Sequence[int]) -> list[Cell]:
    """The runs of the settings that validation chose on the other seeds, of the shapes whose search has ended."""
    found = []
    for shape in dict.fromkeys(cell.shape for cell in cells):
        results = {cell: kept.read(cell) for cell in cells if cell.shape == shape and cell.arm != DEFAULT}
        done = {cell: result for cell, result in results.items() if result is not None}
        best = choose_best(done, shape, seeds[0])
        if len(done) == len(results) and best is not None:
            found += [Cell(shape, best, seed) for seed in seeds[1:]]
    return found


def run_cells(cells: Sequence[Cell], kept: Kept, search: Search, jobs: int) -> list[Failure]:
    """Run what is missing, with a line for each."""
    missing = [cell for cell in cells if kept.read(cell) is None]
    failures = []
    for number, done in enumerate(_finished(missing, search, jobs), start=1):
        if isinstance(done, Failure):
            failures.append(done)
            said = f"{done.cell}: failed, {done.message.strip().splitlines()[-1]}"
        else:
            kept.write(done)
            cell = Cell(done["shape"], done["arm"], done["seed"])
            said = f"{cell}: validation NDCG@10 {done['validation']:.4f}, {done['cpu_seconds']:.0f} s"
        print(f"[{number}/{len(missing)}] {said}", file=sys.stderr, flush=True)
    return failures


def _finished(cells: Sequence[Cell], search: Search, jobs: int) -> Iterator[dict[str, Any] | Failure]:
    if jobs == 1:
        yield from (try_cell(cell, search) for cell in cells)
        return
    with one_thread_processes(min(jobs, max(len(cells), 1))) as pool:
        for future in as_completed([pool.submit(try_cell, cell, search) for cell in cells]):
            yield future.result()


def try_cell(cell: Cell, search: Search) -> dict[str, Any] | Failure:
    """One run; what it raises is reported, so that the other runs go on."""
    try:
        return run_cell(cell, search)
    except Exception:  # noqa: BLE001  (reported in full)
        return Failure(cell, traceback.format_exc())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, and report."""
    options = parse(arguments)
    search = Search(options.backend, options.quick)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    cells = searched(list(SHAPES), options.settings, seeds)
    kept = Kept(options.work, search)
    failures: list[Failure] = []
    stopped = ""
    if not any(word in str(cell) for cell in cells for word in options.only):
        print(f"no run's name holds any of {options.only}; --list shows all", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{'done' if kept.read(cell) else '    '}  {cell}" for cell in cells))
        return 0
    if not options.report_only:
        try:
            with interruptible():
                failures = run_cells(_wanted(cells, options), kept, search, options.jobs)
                failures += run_cells(_wanted(chosen(cells, kept, seeds), options), kept, search, options.jobs)
        except StudyInterruptedError as error:
            stopped = str(error)
    everything = [*cells, *chosen(cells, kept, seeds)]
    results = {cell: result for cell in everything if (result := kept.read(cell)) is not None}
    summaries = [found for shape in SHAPES if (found := summarise(results, shape, seeds)) is not None]
    if summaries:
        report(summaries, options)
    else:
        print("no shape has the default and the chosen setting on all seeds: no report yet", file=sys.stderr)
    for failure in failures:
        print(f"failed: {failure.cell}\n{failure.message}", file=sys.stderr)
    if stopped:
        print(stopped, file=sys.stderr)
    return 1 if failures or stopped or not summaries else 0


def _wanted(cells: Sequence[Cell], options: argparse.Namespace) -> list[Cell]:
    return [cell for cell in cells if any(word in str(cell) for word in options.only)]


def report(summaries: Sequence[ShapeSummary], options: argparse.Namespace) -> None:
    """Write the result files, and print the table."""
    now = datetime.now(UTC).date().isoformat()
    about = {
        "command": _command(options, [each.shape for each in summaries]),
        "date": now,
        "commit": source_commit(),
        "seeds": options.seeds,
        "settings": options.settings,
        **machine_facts(),
    }
    hardware = f"cpu{os.cpu_count()}" + ("-quick" if options.quick else "")
    stem = options.out / f"{options.name}_{hardware}_{now}"
    text = render(summaries, about)
    write_whole(stem.with_suffix(".md"), (text + "\n").encode())
    content = {"about": about, "shapes": [each.to_json() for each in summaries]}
    write_whole(stem.with_suffix(".json"), (compact_json(content) + "\n").encode())
    write_whole(stem.with_suffix(".png"), draw(summaries))
    print(text)
    print(f"wrote {stem}.md, .json and .png")


def _command(options: argparse.Namespace, shapes: Sequence[str]) -> str:
    """The command that gives these results, without the folders of this machine."""
    words = ["python", "benchmarks/defaults.py"]
    words += ["--only", *shapes] if len(shapes) < len(SHAPES) else []
    words += ["--settings", str(options.settings)] if options.settings != NUM_SETTINGS else []
    words += ["--seeds", str(options.seeds)] if options.seeds != NUM_SEEDS else []
    words += ["--first-seed", str(options.first_seed)] if options.first_seed else []
    words += ["--backend", options.backend] if options.backend != "torch" else []
    return shlex.join([*words, *(["--quick"] if options.quick else [])])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="defaults.py", description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help="the runs whose name holds one of these (see --list)")
    parser.add_argument(
        "--settings", type=_positive, default=NUM_SETTINGS, help=f"random settings of a shape (default: {NUM_SETTINGS})"
    )
    parser.add_argument("--seeds", type=_positive, default=NUM_SEEDS, help=f"number of seeds (default: {NUM_SEEDS})")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--jobs", type=_positive, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--backend", choices=list(BACKENDS), default="torch", help="default: torch")
    parser.add_argument("--list", action="store_true", help="list the runs, and which are finished; run nothing")
    parser.add_argument("--report-only", action="store_true", help="run nothing, report what is finished")
    parser.add_argument("--quick", action="store_true", help="a tenth of the users and one epoch of each stage")
    parser.add_argument("--name", default="defaults", help="how the names of the result files begin")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of finished runs (default: runs/defaults)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    return parser.parse_args(arguments)


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
