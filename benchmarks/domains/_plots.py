"""The pictures: a forest for every domain, and one of all rules for the README."""

from collections.abc import Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from alternator.recordings.plot import literal_texts
from ur4rec.compare.plots import to_png
from ur4rec.evaluation.intervals import Interval

from ._regret import DomainSummary
from ._report import columns

COLOURS = {"joint": "black", "fixed": "#8090a8", "random": "#b0b0b0", "published": "#d08000", "ours": "#1b7837"}
WIDEST = 1.0
"""Regrets are drawn up to this; a triangle stands for larger ones."""
JOINT = "joint training"


@literal_texts()
def draw_forests(summaries: Sequence[DomainSummary]) -> bytes:
    """Every arm's regret with its interval, a panel for each domain."""
    num_rows = ceil(len(summaries) / 2)
    most = max(len(summary.arms) for summary in summaries)
    figure = Figure(figsize=(15, num_rows * (1.1 + 0.21 * most)), layout="constrained")
    panels = figure.subplots(num_rows, 2, squeeze=False).ravel()
    for axes, summary in zip(panels, summaries, strict=False):
        for place, arm in enumerate(summary.arms):
            _draw(axes, place, arm.regret, COLOURS[arm.kind])
        axes.set_yticks(range(len(summary.arms)), [each.arm for each in summary.arms], fontsize=7)
        axes.set_ylim(len(summary.arms) - 0.5, -0.5)
        facts = summary.facts
        axes.set_title(f"{facts.name} ({facts.metric}): regret against {summary.best}", fontsize=9)
        _finish(axes)
    for axes in panels[len(summaries) :]:
        axes.axis("off")
    handles = [figure.axes[0].plot([], [], "o", color=colour, label=kind)[0] for kind, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return to_png(figure)


@literal_texts()
def draw_summary(summaries: Sequence[DomainSummary]) -> bytes:
    """The regret of joint training and of every rule, domain by domain."""
    rules = columns(summaries)
    palette = ["#1b7837", "#7570b3", "#d95f02", "#1f78b4", "#e7298a", "#a6761d", "#66a61e", "#666666", "#17becf"]
    figure = Figure(figsize=(9, 1.2 + 0.55 * len(summaries)), layout="constrained")
    axes = figure.subplots()
    names = [JOINT, *rules]
    for number, name in enumerate(names):
        colour = "black" if name == JOINT else palette[(number - 1) % len(palette)]
        offset = 0.8 * ((number + 0.5) / len(names) - 0.5)
        for place, summary in enumerate(summaries):
            arm = summary.joint if name == JOINT else summary.arm(name)
            if arm is not None:
                _draw(axes, place + offset, arm.regret, colour)
        axes.plot([], [], "o", color=colour, label=name)
    labels = [each.facts.name if each.facts.has_signal else f"({each.facts.name})" for each in summaries]
    axes.set_yticks(range(len(summaries)), labels, fontsize=9)
    axes.set_ylim(len(summaries) - 0.5, -0.5)
    for place in range(1, len(summaries)):
        axes.axhline(place - 0.5, color="0.9", linewidth=0.8)
    axes.set_xlabel("regret: how much worse than the best of the grid of fixed schedules (left of 0: better)")
    _finish(axes)
    figure.legend(loc="outside upper center", ncols=min(len(names), 6), fontsize=8)
    return to_png(figure)


def _draw(axes: Axes, place: float, interval: Interval, colour: str) -> None:
    if not interval.low < WIDEST:  # NaN too
        axes.plot([WIDEST], [place], ">", color=colour, markersize=5)
        return
    axes.plot([max(interval.low, -WIDEST), min(interval.high, WIDEST)], [place] * 2, color=colour, linewidth=1.3)
    if abs(interval.estimate) <= WIDEST:
        axes.plot([interval.estimate], [place], "o", color=colour, markersize=4)


def _finish(axes: Axes) -> None:
    axes.axvline(0, color="0.4", linewidth=0.9)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.2, axis="x")
