"""Which rule notices a plateau, and only a plateau?  `python benchmarks/rules.py` writes JSON, tables and a plot.

Losses exp(-slope·t)·(1 + noise·ε) are fed to a new alternator until its rule ends the first tenure. While they fall, an
end is a false switch; after a plateau or a divergence begins, its delay counts. Every rule runs with its defaults and
without ``max_steps``, so that nothing but the losses ends a tenure.
"""

import argparse
import datetime
import math
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alternator import Alternator, Cycle, Gain, Patience, Plateau, RandomTenure, Rule, Trend, replay
from alternator.recordings.tables import read_losses
from alternator.rules._regression import least_squares
from ur4rec.compare.processes import one_thread_processes
from ur4rec.compare.report import compact_json

SEED = 0
RESULTS = Path(__file__).parent / "results"
NOISES = (0.01, 0.03, 0.1, 0.2, 0.3)
SLOPES = (0.0, 0.0001, 0.0004, 0.0007, 0.002, 0.005)
RULES: dict[str, Rule] = {
    "Plateau": Plateau(),
    "Patience": Patience(),
    "Patience(100)": Patience(patience=100),
    "Trend": Trend(max_steps=None),
    "RandomTenure(150)": RandomTenure(150),
}
THRESHOLDS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Losses with a known truth."""

    slope: float = 0.0
    """Relative fall per step; negative for a rise."""
    noise: float = 0.1
    """Standard deviation of the noise, relative to the loss."""
    rho: float = 0.0
    """Autocorrelation of the noise: AR(1)."""
    spikes: float = 0.0
    """Share of the losses that are ten times as large."""
    change: int = 0
    """Step at which the slope becomes ``after``; 0 for never."""
    after: float = 0.0
    """The slope from then on."""
    num_steps: int = 2000
    """Steps to wait for a switch."""

    @property
    def name(self) -> str:
        """How tables call it."""
        parts = [f"{self.noise:.0%} noise" + (f", AR(1) ρ {self.rho:g}" if self.rho else "")]
        parts += [f"{self.spikes:.0%} spikes"] if self.spikes else []
        parts += (
            [f"slope {self.slope:g}"] if self.change == 0 else [f"{self.slope:g}, {self.after:g} from {self.change}"]
        )
        return ", ".join(parts)

    @property
    def truth(self) -> int | None:
        """Step after which the rule should switch: None while the loss falls for ever."""
        if self.change:
            return self.change
        return None if self.slope > 0 else 0

    def losses(self, num_runs: int) -> NDArray[np.float64]:
        """One row per run; runs of equal number and noise share their noise across slopes and rules."""
        random = np.random.default_rng([SEED, int(self.rho * 100)])
        noise_RT = random.standard_normal((num_runs, self.num_steps))
        for step in range(1, self.num_steps if self.rho else 0):
            noise_RT[:, step] *= math.sqrt(1 - self.rho**2)
            noise_RT[:, step] += self.rho * noise_RT[:, step - 1]
        steps = np.arange(self.num_steps)
        fallen = self.slope * (np.minimum(steps, self.change) if self.change else steps)
        fallen = fallen + (self.after * np.maximum(steps - self.change, 0) if self.change else 0)
        spiked = np.where(random.random((num_runs, self.num_steps)) < self.spikes, 10.0, 1.0)
        return np.exp(-fallen) * (1 + self.noise * noise_RT) * spiked


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One rule on one scenario."""

    rule: str
    scenario: Scenario
    false_switches: float | None
    """Share of the runs that switched while the loss still fell; None where it never falls."""
    delay: float | None
    """Median steps from the truth to the switch, of the runs without a false switch; None where there is no truth."""
    never: float
    """Share of the runs that did not switch."""
    diverging: float
    """Share of the runs that switched because the loss rises."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite delay (most runs never switched) is a string, and the scenario is by name."""
        delay = str(self.delay) if self.delay == math.inf else self.delay
        return {**asdict(self), "scenario": self.scenario.name, "delay": delay}


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A figure that Trend must reach with its defaults."""

    scenario: Scenario
    hold: float | None = None
    """Minimum share of the runs that hold."""
    delay: int | None = None
    """Maximum of the median steps until it switches."""

    def check(self, cell: Cell) -> tuple[str, str, bool]:
        """The bar, the figure, and whether it is kept."""
        if self.hold is not None:
            bar = f"holds {self.scenario.num_steps:,} steps in {self.hold:.0%}"
            return bar, f"{cell.never:.1%}", cell.never >= self.hold
        assert self.delay is not None
        return f"switches within {self.delay}", _number(cell.delay), (cell.delay or 0) <= self.delay


REQUIREMENTS = (
    Requirement(scenario=Scenario(noise=0.1), delay=200),
    Requirement(scenario=Scenario(noise=0.1, slope=0.002), hold=0.95),
    Requirement(scenario=Scenario(noise=0.2, slope=0.005), hold=0.95),
    Requirement(scenario=Scenario(noise=0.01), delay=200),
    Requirement(scenario=Scenario(noise=0.01, slope=0.0004, num_steps=1000), hold=0.95),
    Requirement(scenario=Scenario(noise=0.01, slope=0.0007, num_steps=1000), hold=0.95),
    Requirement(scenario=Scenario(noise=0.1, slope=0.002, rho=0.5), hold=0.90),
    Requirement(scenario=Scenario(noise=0.1, slope=-0.005, num_steps=500), delay=60),
)
EVENTS = (
    *(Scenario(noise=noise, slope=0.005, change=200) for noise in (0.01, 0.1)),
    *(Scenario(noise=noise, slope=0.002, change=400, after=-0.005, num_steps=1000) for noise in (0.01, 0.1)),
    *(Scenario(noise=0.03, slope=slope, spikes=0.02) for slope in (0.0, 0.0007, 0.002)),
)


# --- one rule on one scenario -----------------------------------------------------------------------------------------


def first_switch(rule: Rule, losses: Iterable[float]) -> tuple[float, str]:
    """Step of the first switch (infinite if there is none) and its reason."""
    observe = Alternator(("a", "b"), rule).observe
    for loss in losses:
        decision = observe(loss)
        if decision.switched:
            return decision.step, decision.reason
    return math.inf, ""


def run_cell(task: tuple[str, Rule, Scenario, int]) -> Cell:
    """All runs of a rule on a scenario."""
    name, rule, scenario, num_runs = task
    rules = [replace(rule, seed=run) if isinstance(rule, RandomTenure) else rule for run in range(num_runs)]
    ends = [first_switch(rule, row.tolist()) for rule, row in zip(rules, scenario.losses(num_runs), strict=True)]
    truth = scenario.truth
    falls = scenario.slope > 0
    false = [step <= (math.inf if truth is None else truth) and step < math.inf for step, _ in ends]
    delays = [step - (truth or 0) for (step, _), early in zip(ends, false, strict=True) if not (falls and early)]
    return Cell(
        rule=name,
        scenario=scenario,
        false_switches=statistics.mean(false) if falls else None,
        delay=None if truth is None or not delays else statistics.median(delays),
        never=statistics.mean(step == math.inf for step, _ in ends),
        diverging=statistics.mean(reason == "diverging" for _, reason in ends),
    )


def run_cells(tasks: list[tuple[str, Rule, Scenario, int]], processes: int) -> list[Cell]:
    """All cells, the longest first."""
    order = sorted(range(len(tasks)), key=lambda index: -tasks[index][2].num_steps * (tasks[index][0] == "Trend"))
    if processes == 1:
        return [run_cell(task) for task in tasks]
    with one_thread_processes(processes) as pool:
        cells = list(pool.map(run_cell, [tasks[index] for index in order]))
    return [cell for _, cell in sorted(zip(order, cells, strict=True), key=lambda pair: pair[0])]


# --- shares, thresholds, recorded losses ------------------------------------------------------------------------------


def shares(num_runs: int, num_steps: int = 4000) -> Iterator[dict[str, Any]]:
    """Who gets the updates, if the first module's loss falls in its own updates and the second's stays."""
    rules: dict[str, Rule] = {
        "Cycle": Cycle(),
        "Plateau": Plateau(),
        "Patience": Patience(max_steps=300),
        "Trend": Trend(),
        "Gain": Gain(),
    }
    for noise, slope in ((0.02, 0.0005), (0.02, 0.002), (0.1, 0.002)):
        for name, rule in rules.items():
            runs = [simulate(rule, slope, noise, num_steps, run) for run in range(num_runs)]
            share, switches, wait = (statistics.mean(column) for column in zip(*runs, strict=True))
            yield {"rule": name, "noise": noise, "slope": slope} | {
                "share": share,
                "switches": switches,
                "longest_wait": wait,
            }


def simulate(rule: Rule, slope: float, noise: float, num_steps: int, run: int) -> tuple[float, int, int]:
    """Share of the falling module, switches, and the longest wait of either."""
    errors_TM = 1 + noise * np.random.default_rng([SEED, run]).standard_normal((num_steps, 2))
    alternator = Alternator(("falls", "stays"), rule)
    updates = waited = longest = 0
    for first, second in errors_TM.tolist():
        updates += alternator.active == "falls"
        losses = {"falls": math.exp(-slope * updates) * first, "stays": second}
        waited = 0 if alternator.observe(losses).switched else waited + 1
        longest = max(longest, waited + 1)
    stats = alternator.stats()
    return stats.modules["falls"].training_ratio, stats.switch_count, longest


def thresholds(num_runs: int) -> Iterator[dict[str, Any]]:
    """Switches of Plateau over 2,000 steps by threshold: does a larger one switch more often?"""
    for noise in NOISES:
        for slope in SLOPES:
            rows = Scenario(noise=noise, slope=slope).losses(num_runs).tolist()
            counts = [
                sum(len(replay({"a": row, "b": row}, Plateau(threshold=threshold)).switches) for row in rows)
                for threshold in THRESHOLDS
            ]
            yield {"noise": noise, "slope": slope, "switches": counts, "grows": counts == sorted(counts)}


def recorded(path: Path) -> Iterator[dict[str, Any]]:
    """What each rule decides on the losses of a run, and how noisy and steep they are."""
    table = read_losses(path)
    character = {name: describe_losses(column) for name, column in table.losses.items()}
    for name, rule in {**RULES, "Trend": Trend(), "Gain": Gain()}.items():
        result = replay(table.losses, rule, steps=table.steps)
        yield {"losses": path.name, "character": character, "rule": name, "num_steps": len(table.steps)} | {
            "switches": len(result.switches),
            "shares": result.shares,
            "longest_wait": max(result.longest_wait.values()),
            "blind_steps": result.blind_steps,
        }


def describe_losses(column: Iterable[float | None], width: int = 100) -> dict[str, float]:
    """Median noise and slope, relative to the loss, of the pieces of ``width`` losses."""
    known = [loss for loss in column if loss is not None and math.isfinite(loss)]
    lines = [least_squares(known[start : start + width]) for start in range(0, len(known) - width + 1, width)]
    return {
        "noise": statistics.median(line.deviation / abs(line.end) for line in lines) if lines else math.nan,
        "slope": statistics.median(-line.slope / abs(line.end) for line in lines) if lines else math.nan,
    }


# --- the trade-off ----------------------------------------------------------------------------------------------------

PANELS = ((0.1, 0.002), (0.02, 0.0005))
FAMILIES: dict[str, list[tuple[str, Rule]]] = {
    "Plateau, threshold": [
        (f"{value:g}", Plateau(threshold=value)) for value in (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    ],
    "Patience, patience": [(f"{value}", Patience(patience=value)) for value in (10, 30, 60, 100, 150, 250)],
    "Patience, smoothing 0.95": [
        (f"{value}", Patience(patience=value, smoothing=0.95)) for value in (3, 10, 30, 60, 100, 200)
    ],
    "Trend, confidence": [
        (f"{value:g}", Trend(max_steps=None, confidence=value)) for value in (0.51, 0.55, 0.6, 0.67, 0.8, 0.9)
    ],
    "RandomTenure, mean": [(f"{value}", RandomTenure(value)) for value in (10, 30, 70, 150, 300, 600)],
}


def trade_off_tasks(num_runs: int) -> list[tuple[str, Rule, Scenario, int]]:
    """Each parameter of each family on a plateau and on a falling loss, both panels."""
    return [
        (f"{family}={label}", rule, Scenario(noise=noise, slope=either, num_steps=1000), num_runs)
        for noise, slope in PANELS
        for family, members in FAMILIES.items()
        for label, rule in members
        for either in (0.0, slope)
    ]


def trade_off_points(cells: list[Cell]) -> list[dict[str, Any]]:
    """Delay at slope 0 and false switches at the slope, per parameter."""
    points = []
    for flat, falling in zip(cells[::2], cells[1::2], strict=True):
        family, _, label = flat.rule.rpartition("=")
        assert flat.rule == falling.rule
        points.append(
            {"family": family, "label": label, "noise": flat.scenario.noise, "slope": falling.scenario.slope}
            | {"delay": min(flat.delay or 0.0, flat.scenario.num_steps), "false_switches": falling.false_switches}
        )
    return points


def plot(points: list[dict[str, Any]], file: Path) -> None:
    """False switches against delay, one curve per family."""
    from matplotlib.figure import Figure

    from ur4rec.compare.plots import to_png

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    for axes, (noise, slope) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True):
        for family in FAMILIES:
            mine = [point for point in points if point["family"] == family and point["noise"] == noise]
            x, y = [point["delay"] for point in mine], [point["false_switches"] for point in mine]
            style = {"marker": "o", "linewidth": 2.2} if family.startswith("Trend") else {"marker": ".", "linewidth": 1}
            axes.plot(x, y, label=family, linestyle=":" if family.startswith("Random") else "-", **style)
            for point in mine[:: len(mine) - 1]:
                where = (point["delay"], point["false_switches"])
                axes.annotate(point["label"], where, fontsize=7, xytext=(4, 4), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_title(f"noise {noise:.0%}; the falling loss falls by {slope:.2%} a step", fontsize=10)
        axes.set_xlabel("median steps until a plateau (slope 0) is noticed")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("share of runs that switch within 1,000 steps of falling loss")
    figure.suptitle("Better is lower and further left")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    file.write_bytes(to_png(figure))


# --- the report -------------------------------------------------------------------------------------------------------


def run_study(*, quick: bool, processes: int, logs: list[Path]) -> dict[str, Any]:
    """Everything, as plain JSON values."""
    num_runs = 20 if quick else 200
    required = [(name, rule, need.scenario, num_runs) for need in REQUIREMENTS for name, rule in RULES.items()]
    events = [(name, rule, scenario, num_runs) for scenario in EVENTS for name, rule in RULES.items()]
    grid = [
        (name, rule, Scenario(noise=noise, slope=slope, rho=rho), max(num_runs // 2, 10))
        for rho in ((0.0, 0.5) if quick else (0.0, 0.5, 0.9))
        for noise in NOISES
        for slope in SLOPES
        for name, rule in RULES.items()
    ]
    curves = trade_off_tasks(max(num_runs // 2, 10))
    cells = run_cells([*required, *events, *grid, *curves], processes)
    ends = [len(required), len(required) + len(events), len(required) + len(events) + len(grid)]
    return {
        "required": [cell.to_dict() for cell in cells[: ends[0]]],
        "checks": [check_row(need, cells[: ends[0]]) for need in REQUIREMENTS],
        "events": [cell.to_dict() for cell in cells[ends[0] : ends[1]]],
        "grid": [cell.to_dict() for cell in cells[ends[1] : ends[2]]],
        "trade_off": trade_off_points(cells[ends[2] :]),
        "shares": list(shares(2 if quick else 20)),
        "thresholds": list(thresholds(1 if quick else 10)),
        "recorded": [row for path in logs for row in recorded(path)],
        "num_runs": num_runs,
    }


def check_row(need: Requirement, cells: list[Cell]) -> dict[str, Any]:
    """Trend against a bar, with the other rules' figures beside it."""
    mine = {cell.rule: cell for cell in cells if cell.scenario == need.scenario}
    bar, figure, kept = need.check(mine["Trend"])
    others = {name: need.check(cell)[1] for name, cell in mine.items() if name != "Trend"}
    return {"scenario": need.scenario.name, "bar": bar, "Trend": figure, "kept": kept, "others": others}


def _number(value: float | None) -> str:
    return "" if value is None else "never" if value == math.inf else f"{value:.0f}"


def _rows(header: list[str], body: Iterable[Iterable[object]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines] + [""]


def _cells_table(cells: list[dict[str, Any]]) -> list[str]:
    """A row per scenario, a column per rule: false switches and delay."""
    names = list(dict.fromkeys(cell["scenario"] for cell in cells))
    found = {(cell["scenario"], cell["rule"]): cell for cell in cells}
    body = []
    for name in names:
        row = [name]
        for rule in RULES:
            cell = found[name, rule]
            false = "" if cell["false_switches"] is None else f"{cell['false_switches']:.0%} false"
            delay = "" if cell["delay"] is None else f"delay {_number(float(cell['delay']))}"
            row.append(", ".join(part for part in (false, delay) if part))
        body.append(row)
    return _rows(["losses", *RULES], body)


def render(study: dict[str, Any], about: dict[str, Any]) -> str:
    """The study as Markdown."""
    checks = study["checks"]
    lines = [
        "# Which rule notices a plateau, and only a plateau?",
        "",
        f"`{about['command']}` on {about['processor']}, Python {about['python']}; seed {SEED}; "
        f"{study['num_runs']} runs per figure, half as many in the grid and the plot.",
        "",
        "Losses exp(−slope·t)·(1 + noise·ε), fed to a new alternator until the first switch; no rule has max_steps. "
        "*False*: switched while the loss fell. *Delay*: median steps from the start of the plateau or the rise. "
        "A slope of 0.0001 falls by less than min_gain over the horizon: to Trend it is a plateau by definition.",
        "",
        "## What Trend must reach, with its defaults",
        "",
        *_rows(
            ["losses", "bar", "Trend", "kept", *checks[0]["others"]],
            [
                [row["scenario"], row["bar"], row["Trend"], "yes" if row["kept"] else "**no**", *row["others"].values()]
                for row in checks
            ],
        ),
        "## A drop and then a plateau, a late divergence, spikes",
        "",
        *_cells_table(study["events"]),
        "## Who gets the updates",
        "",
        "The first module's loss falls in its own updates only, the second's stays; 4,000 steps, rules with their "
        "defaults (Patience with max_steps=300).",
        "",
        *_rows(
            ["noise", "slope", "rule", "share of the module that learns", "switches", "longest wait"],
            [
                (
                    *(f"{row['noise']:.0%}", row["slope"], row["rule"]),
                    *(f"{row['share']:.0%}", f"{row['switches']:.0f}", f"{row['longest_wait']:.0f}"),
                )
                for row in study["shares"]
            ],
        ),
        "## A larger Plateau threshold switches at least as often",
        "",
        f"In {sum(row['grows'] for row in study['thresholds'])} of {len(study['thresholds'])} combinations of noise "
        "and slope. Switches in 2,000 steps, summed over runs:",
        "",
        *_rows(
            ["noise", "slope", *(f"threshold {value:g}" for value in THRESHOLDS)],
            [[f"{row['noise']:.0%}", row["slope"], *row["switches"]] for row in study["thresholds"]],
        ),
        *_render_recorded(study["recorded"]),
        "## All noises and slopes",
        "",
        *_cells_table(study["grid"]),
    ]
    return "\n".join(lines)


def _render_recorded(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["## Recorded losses, replayed", ""]
    for name in dict.fromkeys(row["losses"] for row in rows):
        mine = [row for row in rows if row["losses"] == name]
        parts = [
            f"{module}: noise {value['noise']:.2%}, falls by {value['slope']:.2e} a step"
            for module, value in mine[0]["character"].items()
        ]
        lines += [f"`{name}`, {mine[0]['num_steps']:,} steps; {'; '.join(parts)}.", ""]
        header = ["rule", "switches", "mean tenure", "shares", "longest wait", "blind steps"]
        body = [
            (
                *(row["rule"], row["switches"], f"{row['num_steps'] / (row['switches'] + 1):.0f}"),
                *(", ".join(f"{share:.0%}" for share in row["shares"].values()), row["longest_wait"]),
                row["blind_steps"],
            )
            for row in mine
        ]
        lines += _rows(header, body)
    return lines


def processor() -> str:
    """The processor's name where the system reports it."""
    file = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in file.read_text().splitlines() if line.startswith("model name")]
    return names[0] if file.exists() and names else platform.machine()


def main(arguments: list[str] | None = None) -> int:
    """Run, save, and fail if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs, for a look")
    parser.add_argument("--losses", type=Path, nargs="+", default=[], help="CSV files or decisions.csv of real runs")
    parser.add_argument("--processes", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    command = "python benchmarks/rules.py" + (" --quick" if options.quick else "")
    command += "".join([" --losses", *(f" {path.name}" for path in options.losses)]) if options.losses else ""
    about = {"command": command, "processor": processor(), "python": platform.python_version(), "seed": SEED}
    study = run_study(quick=options.quick, processes=options.processes, logs=options.losses)
    hardware = f"cpu{cpu_count()}" + ("-quick" if options.quick else "")
    stem = options.out / f"rules_{hardware}_{datetime.datetime.now(datetime.UTC).date()}"
    options.out.mkdir(parents=True, exist_ok=True)
    text = render(study, about)
    stem.with_suffix(".json").write_text(compact_json({"machine": about, **study}) + "\n")
    stem.with_suffix(".md").write_text(text)
    plot(study["trade_off"], stem.with_suffix(".png"))
    print(text.split("## A drop")[0])
    missed = [row["scenario"] for row in study["checks"] if not row["kept"]]
    print(f"bars missed: {'; '.join(missed)}" if missed else "every bar is kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
