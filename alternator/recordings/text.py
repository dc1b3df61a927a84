"""Replays in words: what a person reads in the shell."""

import textwrap
from collections.abc import Iterable, Sequence

from alternator.recordings.replay import CAVEAT, Replay
from alternator.recordings.sweep import SweepRow
from alternator.recordings.tables import LossTable
from alternator.starvation import longest_sensible_wait

MAX_SWITCHES = 20
"""The number of switches that are listed at most."""


def render_replay(table: LossTable, result: Replay, *, all_switches: bool = False) -> str:
    """The whole answer: switches with reasons, shares, waits, and why it held."""
    parts = [
        *_render_head(table, result),
        "",
        *_render_switches(result, all_switches),
        "",
        *_render_shares(result),
        "",
        *_render_holds(result),
        *_render_notes(result),
        "",
        _wrap(f"Note: {CAVEAT}"),
    ]
    return "\n".join(parts)


def render_sweep(rows: Sequence[SweepRow]) -> str:
    """A table with one row per combination."""
    names = list(rows[0].settings)
    modules = next(row.result for row in rows if row.result is not None).modules
    header = [*names, "switches", "mean tenure", *(f"{name} share" for name in modules), "longest wait", "blind steps"]
    body = [[*(str(value) for value in row.settings.values()), *_sweep_cells(row)] for row in rows]
    return "\n".join([*_align([header, *body]), "", _wrap(f"Note: {CAVEAT}")])


def _render_head(table: LossTable, result: Replay) -> list[str]:
    steps = f"{len(result.steps)} steps, {result.steps[0]} to {result.steps[-1]}"
    return [
        f"Losses   {steps}; modules {', '.join(result.modules)}",
        *([_wrap(f"Rows     {_describe_rows(table)}", indent=9)] if table.where or len(table.stages) > 1 else []),
        _wrap(f"Rule     {result.rule}", indent=9),
    ]


def _describe_rows(table: LossTable) -> str:
    """Which rows were used, and which there are."""
    used = " ".join(f"{column}={value}" for column, value in table.where) or "all"
    if len(table.stages) < 2:
        return used
    stages = ", ".join(f"{stage} ({count})" for stage, count in table.stages.items())
    return f"{used}; the log has the stages {stages}: choose with --where stage={next(iter(table.stages))}"


def _render_switches(result: Replay, all_switches: bool) -> list[str]:
    count = len(result.switches)
    if count == 0:
        return [f"It would never have switched. {_capital(result.last_decision)}."]
    shown = result.switches if all_switches else result.switches[:MAX_SWITCHES]
    rows = [
        [f"  step {switch.step}", f"{switch.previous} → {switch.active}", switch.why + _mark(switch.all_plateaued)]
        for switch in shown
    ]
    rest = [f"  ... and {count - len(shown)} more (--all shows them)"] if count > len(shown) else []
    times = "once" if count == 1 else f"{count} times, every {len(result.steps) / count:.0f} steps on average"
    return [f"It would have switched {times}:", *_align(rows, right=()), *rest, f"At the end: {result.last_decision}."]


def _mark(all_plateaued: bool) -> str:
    return "; all modules have plateaued" if all_plateaued else ""


def _render_shares(result: Replay) -> list[str]:
    rows = [["", "steps", "share", "longest wait"]]
    for name in result.modules:
        share, wait = f"{result.shares[name]:.1%}", f"{result.longest_wait[name]} steps"
        rows.append([f"  {name}", str(result.training_steps[name]), share, wait])
    return ["Who would have trained:", *_align(rows)]


def _render_holds(result: Replay) -> list[str]:
    total = sum(result.holds.values())
    rows = [[f"  {count}×", reason, f"({count / total:.0%})"] for reason, count in result.holds.items()]
    return [f"Why it held, {total} times:", *_align(rows, right=(0,))] if rows else ["It switched after every step."]


def _render_notes(result: Replay) -> list[str]:
    notes = []
    if result.blind_steps:
        notes.append(
            f"Blind in {result.blind_steps} of {len(result.steps)} steps: the record has no loss of the module that "
            "would have trained (it was frozen then). The rule learned nothing there and is slower than it would be."
        )
    broken = [f"{count} of {name}" for name, count in result.nonfinite_losses.items() if count]
    if broken:
        notes.append(f"Non-finite losses: {', '.join(broken)}. They never count as convergence.")
    allowed = longest_sensible_wait(len(result.steps))
    waits = [f"{name} for {wait:,}" for name, wait in result.longest_wait.items() if allowed and wait > allowed]
    if waits:
        notes.append(
            f"Long waits: {', '.join(waits)} of {len(result.steps):,} steps, more than a tenth of them. Limit the "
            "tenures (max_steps, max_wait), or take cycle."
        )
    return ["", *map(_wrap, notes)] if notes else []


def _sweep_cells(row: SweepRow) -> list[str]:
    if row.result is None:
        return [f"refused: {row.refusal}"]
    result = row.result
    return [
        str(len(result.switches)),
        f"{len(result.steps) / (len(result.switches) + 1):.1f}",
        *(f"{share:.1%}" for share in result.shares.values()),
        str(max(result.longest_wait.values())),
        str(result.blind_steps),
    ]


def _align(rows: Iterable[Sequence[str]], right: Iterable[int] | None = None) -> list[str]:
    """Columns of equal width, two spaces apart; those in ``right`` (by default all but the first) to the right."""
    rows = list(rows)
    num_columns = max(len(row) for row in rows)
    to_right = set(range(1, num_columns) if right is None else right)
    widths = [max(len(row[k]) for row in rows if len(row) == num_columns) for k in range(num_columns)]
    lines = []
    for row in rows:
        cells = [cell.rjust(widths[k]) if k in to_right else cell.ljust(widths[k]) for k, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _wrap(text: str, indent: int = 0) -> str:
    return textwrap.fill(text, 110, subsequent_indent=" " * indent)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
