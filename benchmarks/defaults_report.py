"""What `benchmarks/defaults.py` concludes, as Markdown and as a picture.

Shapes: S seeds, T test targets.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from defaults_search import Cell
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from ur4rec.compare.plots import to_png
from ur4rec.compare.statistics import Resamples
from ur4rec.evaluation.intervals import Interval
from ur4rec.evaluation.metrics import ndcg
from ur4rec.runs.sizes import FROM_DATA

WITHIN = 0.05
Result = Mapping[str, Any]
"""What `defaults_search.run_cell` returned."""


class ShapeSummary(NamedTuple):
    """The default against random settings on one shape of data."""

    shape: str
    counts: Mapping[str, int]
    default: Sequence[Result]
    """Of each seed."""
    best: Sequence[Result]
    """The random setting that validation chose, of each seed."""
    searched: Sequence[Result]
    """All random settings, of the first seed."""
    difference: Interval
    """How far the default's test NDCG@10 is above the chosen setting's, relative to it."""

    @property
    def num_better(self) -> int:
        """Random settings whose validation is better than the default's, of the first seed."""
        return sum(each["validation"] > self.default[0]["validation"] for each in self.searched)

    @property
    def verdict(self) -> str:
        """What the interval allows us to conclude."""
        if not all(map(math.isfinite, self.difference)):
            return "too few targets to say"
        if self.difference.low >= -WITHIN:
            return f"within {WITHIN:.0%}"
        if self.difference.high < -WITHIN:
            return "worse"
        return f"within {WITHIN:.0%}, not for sure" if self.difference.estimate >= -WITHIN else "worse, not for sure"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the ranks."""
        runs = {"default": self.default, "best": self.best, "searched": self.searched}
        return {
            "shape": self.shape,
            "counts": dict(self.counts),
            "difference": [end if math.isfinite(end) else None for end in self.difference],
            "verdict": self.verdict,
            "num_better": self.num_better,
            **{name: [_without_ranks(each) for each in results] for name, results in runs.items()},
        }


def _without_ranks(result: Result) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("test_ranks", "facts", "counts")}


def choose_best(results: Mapping[Cell, Result], shape: str, seed: int) -> str | None:
    """The random setting with the best validation of a seed; None where there is none."""
    found = [(result["validation"], cell.arm) for cell, result in results.items() if _is_random(cell, shape, seed)]
    return max(found, key=lambda each: each[0], default=(0.0, None))[1]


def _is_random(cell: Cell, shape: str, seed: int) -> bool:
    return (cell.shape, cell.seed) == (shape, seed) and cell.arm != "default"


def summarise(results: Mapping[Cell, Result], shape: str, seeds: Sequence[int]) -> ShapeSummary | None:
    """A shape of which the default and the chosen setting have finished all seeds; None is not yet."""
    best = choose_best(results, shape, seeds[0])
    pairs = [[results.get(Cell(shape, arm, seed)) for seed in seeds] for arm in ("default", best or "")]
    default, chosen = ([each for each in runs if each is not None] for runs in pairs)
    if not len(default) == len(chosen) == len(seeds):
        return None
    qualities = [quality_ST(runs) for runs in (default, chosen)]
    with np.errstate(invalid="ignore"):  # of no hits at all
        difference = Resamples(len(seeds), qualities[0].shape[1]).relative_difference(*qualities)
    return ShapeSummary(
        shape=shape,
        counts=default[0]["counts"],
        default=default,
        best=chosen,
        searched=[result for cell, result in results.items() if _is_random(cell, shape, seeds[0])],
        difference=difference,
    )


def quality_ST(runs: Sequence[Result]) -> NDArray[np.float64]:  # noqa: N802  (a shape)
    """NDCG@10 of every test target of each seed."""
    return ndcg(np.array([run["test_ranks"] for run in runs], np.float64), 10)


def render(summaries: Sequence[ShapeSummary], about: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# How near does the default come to a search?",
        "",
        f"`{about['command']}`, {about['processor']}, commit {about['commit']}, {about['date']}. Synthetic data of "
        f"shapes that the default was not tuned to; test NDCG@10 of the fused scores, mean of {about['seeds']} seeds. "
        f"The best of {about['settings']} random settings is chosen by validation on the first seed, then run on all. "
        "Equal budgets: of epochs, at most as many of each stage for a random setting as the default may take, with "
        "early stopping for both; processor seconds differ and are shown. The difference has a 95% interval from a "
        "bootstrap over seeds and users, in pairs.",
        "",
        *_table(
            ["shape", "interactions, items, users", "default", "best random", "difference", "verdict", "better", "s"],
            [_row(each) for each in summaries],
        ),
        "",
        "*better*: random settings whose validation on the first seed is better than the default's. *s*: processor "
        "seconds of a run of the default, of the chosen setting, and of the whole search.",
    ]
    for each in summaries:
        lines += ["", f"## {each.shape}", "", *_settings(each)]
    return "\n".join(lines)


def _row(summary: ShapeSummary) -> list[str]:
    counts, difference = summary.counts, summary.difference
    sizes = ", ".join(f"{counts[f'num_{name}']:,}" for name in ("interactions", "items", "users"))
    default, best = (f"{quality_ST(runs).mean():.4f}" for runs in (summary.default, summary.best))
    seconds = [np.mean([run["cpu_seconds"] for run in runs]) for runs in (summary.default, summary.best)]
    searched = sum(run["cpu_seconds"] for run in summary.searched)
    interval = f"{difference.estimate:+.1%} [{difference.low:+.1%}, {difference.high:+.1%}]"
    better = f"{summary.num_better} of {len(summary.searched)}"
    return [
        *(summary.shape, sizes, default, best, interval, summary.verdict, better),
        f"{seconds[0]:,.0f}, {seconds[1]:,.0f}, {searched:,.0f}",
    ]


def _settings(summary: ShapeSummary) -> list[str]:
    known = [flat(runs[0]["config"]) for runs in (summary.default, summary.best)]
    done = [runs[0]["epochs"] for runs in (summary.default, summary.best)]
    rows = [[name, *(f"{each.get(name)}" for each in known)] for name in FROM_DATA]
    rows += [[f"epochs done of {stage}", *(f"{each[stage]}" for each in done)] for stage in done[0]]
    return _table(["setting", "default", f"best random ({summary.best[0]['arm']})"], rows)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run by name, whatever they belong to."""
    return {**config, **config["model"], **config["trainer"], **config["epochs"]}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def draw(summaries: Sequence[ShapeSummary]) -> bytes:
    """Every random setting of the first seed, and the default, relative to the chosen setting (PNG)."""
    figure = Figure(figsize=(9, 1.4 + 0.6 * len(summaries)), layout="constrained")
    axes = figure.subplots()
    for place, each in enumerate(summaries):
        reference = each.best[0]["test"]["fused"] or 1.0
        axes.plot(
            [run["test"]["fused"] / reference - 1 for run in each.searched],
            [place] * len(each.searched),
            *("|",),
            color="0.5",
            markersize=12,
            label="" if place else "a random setting, first seed",
        )
        difference = each.difference
        axes.plot([difference.low, difference.high], [place] * 2, color="#d95f02", linewidth=2)
        label = "" if place else "the default, all seeds, 95% interval"
        axes.plot(difference.estimate, place, "o", color="#d95f02", label=label)
    axes.axvline(0, color="0.2", linewidth=0.9)
    axes.axvline(-WITHIN, color="0.2", linewidth=0.9, linestyle="--")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yticks(range(len(summaries)), [each.shape for each in summaries])
    axes.set_ylim(len(summaries) - 0.5, -0.5)
    axes.set_xlabel("test NDCG@10 against the random setting that validation chose (dashed: 5% below)")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    return to_png(figure)
