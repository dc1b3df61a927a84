"""The table and the plot of `benchmarks/scaling.py`: figures along each axis, and the exponents of their growth."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scaling_measures import Figures

QUESTION = "How do time, memory and files grow?"
UNITS = {
    "interactions": "interactions",
    "users": "users",
    "catalogue": "items",
    "length": "items of a history",
    "width": "width of vectors",
}
"""What is counted along each axis."""
LIMIT = 1.05
"""The exponent that nothing should exceed."""
Value = Callable[[Figures], float]

VALUES: dict[str, Value] = {
    "processor seconds": lambda each: each.seconds,
    "MB at most, beside what was there": lambda each: each.peak_MB - each.before_MB,
    "MB at most, all included": lambda each: each.peak_MB,
    "file MB": lambda each: each.extra.get("file_MB", 0.0),
    "MB of text vectors that all checkpoints share": lambda each: each.extra.get("shared_MB", 0.0),
    "MB of state.json": lambda each: each.extra.get("state_MB", 0.0),
}


def exponents(found: Iterable[Figures], value: Value) -> tuple[float, float]:
    """The slope of the logarithms: between the two largest sizes, and fitted to all; NaN where there are not two."""
    points = sorted((each.size, value(each)) for each in found if value(each) > 0)
    if len(points) < 2:
        return math.nan, math.nan
    sizes, values = np.log(np.array(points).T)
    return float((values[-1] - values[-2]) / (sizes[-1] - sizes[-2])), float(np.polyfit(sizes, values, 1)[0])


def series(found: Iterable[Figures]) -> dict[tuple[str, str], list[Figures]]:
    """The figures of each measure and backend, in the order of sizes; what failed is left out."""
    lines: dict[tuple[str, str], list[Figures]] = {}
    for each in sorted(found, key=lambda each: each.size):
        if not each.failed:
            lines.setdefault((each.measure, each.backend), []).append(each)
    return dict(sorted(lines.items()))


def table(found: list[Figures], axis: str, value: Value) -> list[str]:
    """A row per measure and backend; nothing where no measure has this value."""
    shown = {key: each for key, each in series(found).items() if any(value(figures) > 0 for figures in each)}
    if not shown:
        return []
    sizes = sorted({each.size for each in found})
    lines = [f"| {UNITS[axis]} | {' | '.join(f'{size:,}' for size in sizes)} | exponent, last two | fitted |"]
    lines += [f"|---|{'---|' * (len(sizes) + 2)}"]
    failed = {(each.measure, each.backend, each.size): each.failed for each in found if each.failed}
    for (name, backend), each in shown.items():
        by_size = {figures.size: f"{value(figures):.3g}" for figures in each}
        cells = [by_size.get(size, failed.get((name, backend, size), "–")) for size in sizes]
        slopes = ["–" if math.isnan(slope) else f"{slope:.2f}" for slope in exponents(each, value)]
        lines.append(f"| {label(name, backend)} | {' | '.join([*cells, *slopes])} |")
    return lines


def label(name: str, backend: str) -> str:
    """How a series is called.

    Example:
        >>> label("ranking", "torch"), label("reading", "")
        ('ranking, torch', 'reading')
    """
    return f"{name}, {backend}" if backend else name


def steep(found: list[Figures]) -> list[str]:
    """The series whose time or memory grows faster than in proportion, with their exponents between the last two."""
    rows = []
    for axis in UNITS:
        for (name, backend), each in series(figures for figures in found if figures.axis == axis).items():
            for title in ("processor seconds", "file MB"):
                slope = exponents(each, VALUES[title])[0]
                if slope > LIMIT:
                    rows.append(f"- {axis}: {label(name, backend)}, {title}: {slope:.2f}")
    return rows


def to_markdown(found: list[Figures], memory: int, facts: dict[str, Any]) -> str:
    """Tables per axis and value."""
    lines = [
        f"# {QUESTION}",
        "",
        f"`python benchmarks/scaling.py`, {facts['date']}, {facts['processor']}; one process of one thread for each "
        "cell, on a machine that other work shared: so processor seconds, and the least of several calls.",
        "Where nothing else is said: 512 users, 3,000 items, histories of 50, widths of 64, 64 rows per step, "
        f"`--memory` {memory / 2**20:.0f} MiB.",
        "",
        f"**Steeper than {LIMIT} between the two largest sizes:**",
        "",
        *(steep(found) or ["- nothing"]),
        "",
    ]
    for axis in UNITS:
        of_axis = [each for each in found if each.axis == axis]
        for title, value in VALUES.items():
            if rows := table(of_axis, axis, value):
                lines += [f"## {axis}: {title}", "", *rows, ""]
    return "\n".join(lines)


def draw(found: list[Figures], path: Path) -> None:
    """A column of panels per axis, on logarithmic axes, with lines that grow in proportion."""
    from matplotlib.figure import Figure

    axes_names = [axis for axis in UNITS if any(each.axis == axis and not each.failed for each in found)]
    titles = [*list(VALUES)[:2], "file MB"]
    figure = Figure(figsize=(4.6 * len(axes_names), 3.4 * len(titles) + 2.2), layout="constrained")
    panels = figure.subplots(len(titles), len(axes_names), squeeze=False)
    measures = list(dict.fromkeys(each.measure for each in found))
    colours = {name: f"C{index % 10}" for index, name in enumerate(measures)}
    for column, axis in enumerate(axes_names):
        lines = series(each for each in found if each.axis == axis)
        names = list(dict.fromkeys(name for name, _ in lines))
        for row, title in enumerate(titles):
            panel = panels[row][column]
            for (name, backend), each in lines.items():
                points = [(figures.size, VALUES[title](figures)) for figures in each if VALUES[title](figures) > 0]
                if points:
                    style = "--" if backend == "jax" else "-"
                    panel.plot(*zip(*points, strict=True), style, color=colours[name], marker="o", markersize=3)
            if not panel.lines:
                panel.set_axis_off()
                continue
            _guide(panel)
            panel.set(xscale="log", yscale="log", xlabel=UNITS[axis], ylabel=title)
            sizes = sorted({each.size for line in lines.values() for each in line})
            panel.set_xticks(sizes, [_short(size) for size in sizes])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        for name in names:
            panels[0][column].plot([], [], color=colours[name], label=name)
        panels[0][column].legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1.08), frameon=False)
        panels[0][column].set_title(axis, fontsize=11, fontweight="bold")
    figure.supxlabel("solid: PyTorch, or no framework; dashed: JAX; grey: growth in proportion", fontsize=9)
    figure.savefig(path, dpi=110)


def _short(size: int) -> str:
    """A size in a few characters.

    Example:
        >>> _short(500), _short(30_000), _short(100_000_000)
        ('500', '30k', '100M')
    """
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if size >= unit:
            return f"{size / unit:g}{name}"
    return str(size)


def _guide(panel: Any) -> None:
    """A grey line of slope 1 through what is drawn."""
    points = np.concatenate([line.get_xydata() for line in panel.lines]) if panel.lines else np.zeros((0, 2))
    if len(points):
        sizes = np.array([points[:, 0].min(), points[:, 0].max()])
        start = np.exp(np.log(points[points[:, 0] == sizes[0], 1]).mean())
        limits = points[:, 1].min() / 2, points[:, 1].max() * 2
        panel.plot(sizes, start * sizes / sizes[0], color="grey", linewidth=1, alpha=0.6, zorder=0)
        panel.set_ylim(limits)


def save(found: list[Figures], stem: Path, memory: int, facts: dict[str, Any]) -> str:
    """Write the figures, the tables and the plot; returns the tables."""
    content = {"question": QUESTION, "memory": memory, "facts": facts, "figures": [asdict(each) for each in found]}
    text = to_markdown(found, memory, facts)
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    draw(found, stem.with_suffix(".png"))
    return text
