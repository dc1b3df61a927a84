"""Metrics by popularity of the target, as a table and as a picture."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alternator.checks import printable
from alternator.recordings.plot import literal_texts
from ur4rec.evaluation.intervals import LEVEL
from ur4rec.evaluation.popularity import PopularityGroup, popularity_columns
from ur4rec.files import write_whole
from ur4rec.runs.plan import TABLE_ROWS
from ur4rec.runs.plot import COLOURS, NAMES
from ur4rec.runs.rows import write_rows

_METRICS = {"ndcg@10": "NDCG@10", "hit@10": "Hit@10"}
_ORDER = ("sasrec", "retriever", "fused")


def scorer_rows(names: Iterable[str]) -> dict[str, str]:
    """By scorer, its first row of a results table: the one of a stage that trains it alone, if there is one.

    Example:
        >>> scorer_rows(["popularity", "SASRec alone", "SASRec in it", "retriever in it", "fused"])
        {'sasrec': 'SASRec alone', 'retriever': 'retriever in it', 'fused': 'fused'}
    """
    known = set(names)
    rows = {scorer: [row for _, each in TABLE_ROWS.values() if (row := each.get(scorer)) in known] for scorer in _ORDER}
    return {scorer: found[0] for scorer, found in rows.items() if found}


def write_popularity(
    folder: Path, groups: Sequence[PopularityGroup], title: str, rows: Mapping[str, str] | None = None
) -> None:
    """Write ``popularity.csv``, a row for each group and scorer, and ``popularity.png``.

    Args:
        folder: Where to.
        groups: From `ur4rec.evaluation.popularity.by_popularity`.
        title: What to write above the picture.
        rows: What to draw: by scorer, its name in the groups; None is each by its own name.
    """
    columns = popularity_columns(groups)
    text = write_rows(list(columns), list(zip(*columns.values(), strict=True)), header=True)
    write_whole(folder / "popularity.csv", text.encode())
    plot_popularity(folder / "popularity.png", groups, title, rows or {scorer: scorer for scorer in _ORDER})


@literal_texts()
def plot_popularity(path: Path, groups: Sequence[PopularityGroup], title: str, rows: Mapping[str, str]) -> None:
    """Draw bars of NDCG@10 and Hit@10 for each group of targets and scorer, with their intervals (PNG)."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(2, 1, sharex=True), _METRICS.items(), strict=True):
        _draw_bars(axes, groups, metric, rows)
        axes.set_ylabel(f"{label}, {LEVEL:.0%} interval")
        axes.spines[["top", "right"]].set_visible(False)
    names = [f"{each.name}\n{each.num_targets:,} targets" for each in groups]
    axes.set_xticks(range(len(groups)), names, fontsize=8)
    axes.set_xlabel("decile of the target's training interactions among the items that have any (10: the most popular)")
    axes.legend(fontsize=9)
    figure.suptitle(printable(title))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_whole(path, picture.getvalue())


def _draw_bars(axes: Axes, groups: Sequence[PopularityGroup], metric: str, rows: Mapping[str, str]) -> None:
    width = 0.8 / max(len(rows), 1)
    for number, (scorer, name) in enumerate(rows.items()):
        found = [(place, each.scorers[name][metric]) for place, each in enumerate(groups) if name in each.scorers]
        heights = [interval.estimate for _, interval in found]
        reach = [
            [interval.estimate - interval.low for _, interval in found],
            [interval.high - interval.estimate for _, interval in found],
        ]
        places = [place + (number - (len(rows) - 1) / 2) * width for place, _ in found]
        axes.bar(places, heights, width, color=COLOURS[scorer], label=NAMES[scorer])
        axes.errorbar(places, heights, reach, fmt="none", ecolor="0.4", elinewidth=1, capsize=2)
