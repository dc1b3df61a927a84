"""Where does deciding pay?  Runs all arms of all domains, or what is missing of them, and reports the rules' regret."""

import argparse
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ur4rec.compare.processes import StudyInterruptedError, interruptible, one_thread_processes
from ur4rec.compare.report import compact_json
from ur4rec.compare.runner import machine_facts, source_commit
from ur4rec.files import write_whole

from ._cells import Cell, Facts, Kept, Run, fingerprint, write_packed
from ._domain import NUM_SEEDS, Domain, all_domains
from ._plots import draw_forests, draw_summary
from ._regret import DomainSummary, summarise
from ._report import regret_table, render, to_json

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "runs" / "domains"
PACKED = Path(__file__).with_name("runs.parquet")
USUAL_SECONDS = 10.0
"""Of a run of which nothing is known yet."""
HELP = """examples:
  python benchmarks/domains.py                        all domains (25 minutes on two cores), or what is missing
  python benchmarks/domains.py --list                 the domains, their arms, and what is finished
  python benchmarks/domains.py --only few-shot        the runs whose name holds this: "DOMAIN: ARM, seed SEED"
  python benchmarks/domains.py --only ": Trial," --again   run these again
  python benchmarks/domains.py --report-only          the tables and pictures of what is finished or packed
  python benchmarks/domains.py --pack                 and put all finished runs into the committed file
"""


class Failure(NamedTuple):
    """A run that raised."""

    cell: Cell
    message: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, and report."""
    options = parse(arguments)
    domains = all_domains()
    kept = Kept(options.work, options.packed)
    marks = {
        Cell(name, arm, seed): fingerprint(domain, given)
        for name, domain in domains.items()
        for arm, given in domain.arms().items()
        for seed in range(options.first_seed, options.first_seed + (options.seeds or domain.num_seeds))
    }
    cells = [cell for cell in marks if any(word in str(cell) for word in options.only)]
    if not cells:
        print(f"no run's name holds any of {options.only}; --list shows all", file=sys.stderr)
        return 2
    missing = [cell for cell in cells if options.again or not kept.finished(cell, marks[cell])]
    if options.list:
        print(listing(domains, cells, missing))
        return 0
    failures: list[Failure] = []
    stopped = ""
    if not options.report_only:
        try:
            with interruptible():
                failures = run_cells(missing, domains, kept, options.jobs)
        except StudyInterruptedError as error:
            stopped = str(error)
    shown = [cell for cell in marks if cell in kept.runs and (options.report_only or kept.finished(cell, marks[cell]))]
    runs = [kept.runs[cell] for cell in shown]
    if not runs:
        print(stopped or "nothing is finished", file=sys.stderr)
        return 1
    stale = sum(not kept.finished(cell, marks[cell]) for cell in shown)
    if stale:
        print(f"{stale} of {len(shown)} runs were made with other settings than today's", file=sys.stderr)
    facts = {name: Facts.of(domain) for name, domain in domains.items()}
    if options.pack:
        write_packed(options.packed, [facts[name] for name in dict.fromkeys(run.cell.domain for run in runs)], runs)
        print(f"packed {len(runs)} runs into {options.packed.stat().st_size / 1e6:.2f} MB", file=sys.stderr)
    report(runs, facts, options)
    for failure in failures:
        print(f"failed: {failure.cell}\n{failure.message}", file=sys.stderr)
    if stopped:
        print(stopped, file=sys.stderr)
    return 1 if failures or stopped else 0


def run_cells(cells: Sequence[Cell], domains: dict[str, Domain], kept: Kept, jobs: int) -> list[Failure]:
    """Run cells, with a line for each; seed by seed, so that a report can be made early."""
    ordered = sorted(cells, key=lambda cell: cell.seed)
    waiting, failures = list(ordered), []
    for number, done in enumerate(_finished(ordered, domains, jobs), start=1):
        waiting.remove(done.cell)
        if isinstance(done, Run):
            kept.add(done)
        else:
            failures.append(done)
        left = sum(kept.expected_seconds(cell) or USUAL_SECONDS for cell in waiting) / jobs
        place = f"[{number}/{len(ordered)}, about {left / 60:.0f} min left]"
        print(f"{place} {done.cell}: {_describe(done, domains)}", file=sys.stderr, flush=True)
    return failures


def _finished(cells: Sequence[Cell], domains: dict[str, Domain], jobs: int) -> Iterator[Run | Failure]:
    if jobs == 1:
        yield from (run_cell(domains[cell.domain], cell) for cell in cells)
        return
    with one_thread_processes(min(jobs, max(len(cells), 1))) as pool:
        for future in as_completed([pool.submit(run_cell, domains[cell.domain], cell) for cell in cells]):
            yield future.result()


def run_cell(domain: Domain, cell: Cell) -> Run | Failure:
    """One run; what it raises is reported, so that the other runs go on."""
    arm = domain.arms()[cell.arm]
    started = time.perf_counter()
    try:
        outcome = domain.run(cell.arm, cell.seed)
    except Exception:  # noqa: BLE001  (reported in full)
        return Failure(cell, traceback.format_exc())
    return Run(
        cell=cell,
        kind=arm.kind,
        in_grid=arm.is_of_grid,
        note=arm.note,
        fingerprint=fingerprint(domain, arm),
        seconds=time.perf_counter() - started,
        outcome=outcome,
    )


def _describe(done: Run | Failure, domains: dict[str, Domain]) -> str:
    if isinstance(done, Failure):
        return f"failed, {done.message.strip().splitlines()[-1]}"
    outcome, domain = done.outcome, domains[done.cell.domain]
    over = "" if outcome.cost <= domain.budget else f", cost {outcome.cost:.5g} of {domain.budget:.5g}"
    return f"{domain.metric} {outcome.test:.4g} (held out {outcome.held_out:.4g}){over}, {done.seconds:.1f} s"


def listing(domains: dict[str, Domain], cells: Sequence[Cell], missing: Sequence[Cell]) -> str:
    """The domains and arms, and how many of their runs are finished."""
    lines, left = [], set(missing)
    for name, domain in domains.items():
        arms = {arm: [cell for cell in cells if cell[:2] == (name, arm)] for arm in domain.arms()}
        if any(arms.values()):
            lines.append(f"{name}: {domain.question} ({domain.metric}; {domain.budget:.4g} {domain.unit})")
        for arm, of_arm in arms.items():
            if of_arm:
                done = len(of_arm) - len(left.intersection(of_arm))
                lines.append(f"    {arm} ({domain.arms()[arm].kind}): {done} of {len(of_arm)} finished")
    return "\n".join(lines)


def summarise_all(runs: Sequence[Run], facts: dict[str, Facts]) -> list[DomainSummary]:
    """The domains of which there is enough to compare."""
    names = dict.fromkeys(run.cell.domain for run in runs)
    found = [summarise(facts[name], [run for run in runs if run.cell.domain == name]) for name in names]
    return [each for each in found if each is not None]


def report(runs: Sequence[Run], facts: dict[str, Facts], options: argparse.Namespace) -> None:
    """Write the result files, and print the table."""
    summaries = summarise_all(runs, facts)
    if not summaries:
        print("no domain has a seed that its fixed schedules have finished: no report yet", file=sys.stderr)
        return
    now = datetime.now(UTC).date().isoformat()
    about: dict[str, Any] = {"command": _command(options), "date": now, "commit": source_commit(), **machine_facts()}
    stem = options.out / f"{options.name}_cpu{os.cpu_count()}_{now}"
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(stem.with_suffix(".md"), (render(summaries, about) + "\n").encode())
    write_whole(stem.with_suffix(".json"), (compact_json(to_json(summaries, about)) + "\n").encode())
    write_whole(stem.with_suffix(".png"), draw_summary(summaries))
    write_whole(stem.with_name(f"{stem.name}-forest.png"), draw_forests(summaries))
    print("\n".join(regret_table(summaries)))
    print(f"wrote {stem}.md, .json, .png and {stem.name}-forest.png")


def _command(options: argparse.Namespace) -> str:
    """The command that gives these results, without the folders of this machine."""
    words = ["python", "benchmarks/domains.py"]
    words += ["--seeds", str(options.seeds)] if options.seeds else []
    words += ["--first-seed", str(options.first_seed)] if options.first_seed else []
    return shlex.join(words)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="domains.py", description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help="the runs whose name holds one of these (see --list)")
    parser.add_argument("--seeds", type=_positive, help=f"number of seeds (default: {NUM_SEEDS}, or the study's)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them, to tune on others (default: 0)")
    parser.add_argument(
        "--jobs",
        type=_positive,
        default=2,
        help="processes of one thread each; 1: this one, with its threads (default: 2)",
    )
    parser.add_argument("--again", action="store_true", help="run finished ones again")
    parser.add_argument("--list", action="store_true", help="list domains and arms, run nothing")
    parser.add_argument("--report-only", action="store_true", help="run nothing, report what is finished or packed")
    parser.add_argument("--pack", action="store_true", help="put all finished runs into the committed file")
    parser.add_argument("--name", default="domains", help="how the names of the result files begin")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of finished runs (default: runs/domains)")
    parser.add_argument("--packed", type=Path, default=PACKED, help="the committed file of finished runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    return parser.parse_args(arguments)


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
