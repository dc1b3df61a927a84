"""The pictures of a study: quality against what was spent, who trained when, and the differences."""

import io
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from alternator.checks import printable
from alternator.recordings.plot import draw_line, literal_texts
from ur4rec.compare.arms import JOINT, MATCHED, PARITY, is_ratio, original_of
from ur4rec.compare.directory import StudyDirectory
from ur4rec.runs.plot import COLOURS, NAMES
from ur4rec.schedule.stages import BOTH, TURNS

NUM_COLOURS = 96
UNITS = {"updates": "module updates", "cost": "cost (s)"}


@literal_texts()
def draw_curves(summary: Mapping[str, Any]) -> bytes:
    """Validation NDCG@10 and NLL against updates and against cost, mean over seeds."""
    budgets = summary["budgets"]
    figure = Figure(figsize=(6.5 * len(budgets) + 2, 9), layout="constrained")
    panels = figure.subplots(2, len(budgets), squeeze=False)
    for column, (basis, budget) in enumerate(budgets.items()):
        styles = _styles(budget["curves"])
        for row, (key, label) in enumerate({"ndcg@10": "NDCG@10", "nll": "NLL of the target"}.items()):
            axes = panels[row][column]
            for arm, curves in budget["curves"].items():
                spent, quality = (_mean_over_seeds(curves, name) for name in (basis, f"validation_{key}"))
                draw_line(axes, spent, quality, label=printable(arm), **styles[arm])
            axes.set_xlabel(UNITS[basis])
            axes.set_ylabel(f"validation {label}")
            axes.grid(alpha=0.2)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return to_png(figure)


@literal_texts()
def draw_turns(directory: StudyDirectory) -> bytes:
    """Which module trained in each step of the first seed, one row per arm and module."""
    seed = directory.study.seeds[0]
    bases = directory.study.budgets
    figure = Figure(figsize=(12, 1.5 + 0.42 * len(directory.study.arms) * len(bases)), layout="constrained")
    for axes, basis in zip(figure.subplots(len(bases), 1, squeeze=False)[:, 0], bases, strict=True):
        keys = [directory.key_of(arm, seed, basis) for arm in directory.study.arms]
        keys = [key for key in keys if directory.is_done(key)]
        for row, key in enumerate(keys):
            _draw_tenures(axes, row, directory.read_run(key)["turns"]["tenures"], directory.study.modules)
        axes.set_yticks(range(len(keys)), [printable(key.arm) for key in keys], fontsize=8)
        axes.set_ylim(len(keys) - 0.5, -0.5)
        axes.set_xlabel(f"step (budget in {basis}, seed {seed})")
        axes.set_xlim(left=0)
        for module in directory.study.modules:
            axes.plot([], [], color=COLOURS[module], linewidth=6, label=NAMES[module])
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    return to_png(figure)


@literal_texts()
def draw_forest(summary: Mapping[str, Any]) -> bytes:
    """Relative differences with intervals: a column per metric, a row of panels per budget."""
    budgets = summary["budgets"]
    num_arms = max(len(budget["differences"]) for budget in budgets.values()) or 1
    figure = Figure(figsize=(14, (1.5 + 0.4 * num_arms) * len(budgets)), layout="constrained")
    panels = figure.subplots(len(budgets), 3, squeeze=False, sharey="row")
    metrics = {"ndcg@10": "NDCG@10", "hit@10": "Hit@10", "nll": "NLL (lower is better)"}
    for row, (basis, budget) in enumerate(budgets.items()):
        references = {
            "parity": "parity",
            "tuned": f"the tuned ratio ({printable(budget['tuned'])})",
            "joint": "joint training",
        }
        if budget["tuned"] == PARITY:
            del references["tuned"]
        for axes, (metric, title) in zip(panels[row], metrics.items(), strict=True):
            for number, (name, label) in enumerate(references.items()):
                offset = 0.25 * (number - (len(references) - 1) / 2)
                _draw_intervals(axes, budget["differences"], name, metric, f"against {label}", offset)
            axes.set_title(f"{title}, equal {basis}", fontsize=10)
            axes.axvline(0, color="0.5", linewidth=0.8)
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))
            axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{100 * value:+.4g}%"))
            axes.grid(alpha=0.2, axis="x")
        arms = [printable(arm) for arm in budget["differences"]]
        panels[row][0].set_yticks(range(len(arms)), arms, fontsize=8)
        panels[row][0].set_ylim(max(len(arms), 1) - 0.5, -0.5)
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        found, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=4, fontsize=8)
    return to_png(figure)


_MARKERS = {"parity": ("o", "#2a2a2a"), "tuned": ("s", "#1b9e77"), "joint": ("^", COLOURS[BOTH])}


def _draw_intervals(
    axes: Axes, differences: Mapping[str, Any], reference: str, metric: str, label: str, offset: float
) -> None:
    rows = [
        (place, against[reference][metric])
        for place, against in enumerate(differences.values())
        if reference in against
    ]
    if not rows:
        return
    places, values = zip(*rows, strict=True)
    estimates, lows, highs = np.array(values).T
    errors = np.maximum([estimates - lows, highs - estimates], 0)
    heights = np.array(places) + offset
    marker, colour = _MARKERS[reference]
    axes.errorbar(estimates, heights, xerr=errors, fmt=marker, color=colour, markersize=4, capsize=2, label=label)


def _draw_tenures(axes: Axes, row: int, tenures: list[tuple[str, int]], modules: Sequence[str]) -> None:
    ends = list(accumulate(length for _, length in tenures))
    height = 0.8 / len(modules)
    for lane, module in enumerate(modules):
        spans = [
            (end - length, length) for end, (turn, length) in zip(ends, tenures, strict=True) if module in TURNS[turn]
        ]
        axes.broken_barh(spans, (row - 0.4 + height * lane, 0.95 * height), facecolors=COLOURS[module], linewidth=0)


def _mean_over_seeds(curves: Mapping[str, Mapping[str, list[float]]], name: str) -> Any:
    length = min(len(curve[name]) for curve in curves.values())
    return np.mean([curve[name][:length] for curve in curves.values()], axis=0)


def _styles(arms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Ratios are thin and grey to blue, random controls dotted, rules in colours, parity and joint black and violet."""
    palette: list[Any] = [matplotlib.colormaps["Dark2"](place) for place in (0, 1, 3, 4, 5, 6, 7)]  # without its violet
    palette += ["#1f78b4", "#e31a1c", "#6a3d9a", "#17becf"]
    ratios = [arm for arm in arms if is_ratio(arm) and arm != PARITY]
    rules = [arm for arm in arms if arm not in (*ratios, PARITY, JOINT) and original_of(arm) is None]
    styles: dict[str, dict[str, Any]] = {}
    for arm in arms:
        original = original_of(arm) or arm
        if original in rules:
            dotted = "-" if arm == original else ":" if arm.startswith(MATCHED) else "-."
            styles[arm] = {
                "color": palette[rules.index(original) % len(palette)],
                "linestyle": dotted,
                "linewidth": 1.6,
            }
        elif arm in ratios:
            grey = 0.35 + 0.5 * ratios.index(arm) / len(ratios)
            styles[arm] = {"color": (grey * 0.7, grey * 0.85, grey), "linewidth": 1, "linestyle": "--"}
        else:
            styles[arm] = {"color": "black" if arm == PARITY else COLOURS[BOTH], "linewidth": 2.2}
    return styles


def to_png(figure: Figure, dpi: int = 90) -> bytes:
    """A figure as PNG with a palette, a third of the size of one in full colour."""
    drawn, picture = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    with_palette = (
        Image.open(drawn).convert("RGB").quantize(NUM_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    with_palette.save(picture, "png", optimize=True)
    return picture.getvalue()
