"""What arms of `quality.py` have come to: means, differences in pairs, by popularity, and the plot.

Shapes: S seeds, T test targets.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from strategies import figure_cell, paired_figure

from ur4rec.compare.plots import to_png
from ur4rec.compare.statistics import Resamples
from ur4rec.evaluation.metrics import ndcg
from ur4rec.evaluation.popularity import COLD


def ranks_of(results: Sequence[Mapping[str, Any]], scorer: str) -> NDArray[np.float64]:
    """The rank of every test target in the runs of an arm, (S, T)."""
    return np.array([found["ranks"][scorer] for found in results], np.float64)


METRICS = {
    "ndcg@10": lambda ranks_ST: ndcg(ranks_ST, 10),
    "hit@10": lambda ranks_ST: (ranks_ST <= 10).astype(np.float64),
}
"""Of each test target, from its rank."""


def compare(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], scorers: Sequence[str], baseline: tuple[str, str]
) -> list[dict[str, Any]]:
    """A row for each arm and scorer: means with intervals, their spread over seeds, and the difference to one of them.

    Args:
        runs: The runs of each arm, in the order of their seeds, which are the same for all.
        scorers: What is ranked, as a run's results name it; arms that do not train it have no row of it.
        baseline: The arm and the scorer that the others are compared with, in pairs.
    """
    cells = {
        (arm, scorer): found
        for arm, found in runs.items()
        for scorer in scorers
        if all(scorer in each["ranks"] for each in found)
    }
    ranks = {cell: ranks_of(found, cell[1]) for cell, found in cells.items()}
    if not ranks:
        return []
    num_seeds, num_targets = next(iter(ranks.values())).shape
    resamples = Resamples(num_seeds, num_targets)
    values = {metric: {cell: measure(ranks[cell]) for cell in cells} for metric, measure in METRICS.items()}
    rows = []
    for (arm, scorer), found in cells.items():
        results = [each["results"][scorer] for each in found]
        row: dict[str, Any] = {
            "arm": arm,
            "scorer": scorer,
            "seeds": [each["seed"] for each in found],
            "validation": float(np.mean([each["validation"]["ndcg@10"] for each in results])),
            "epochs": [each["epoch"] + 1 for each in results],
            "seconds": float(np.mean([each["seconds"][scorer] for each in found])),
        }
        has_baseline = (arm, scorer) != baseline and baseline in ranks
        for metric in METRICS:
            values_ST = values[metric][arm, scorer]
            row[metric] = paired_figure(values_ST, None, resamples)
            row[metric]["interval"] = list(resamples.mean(values_ST)[1:])
            if has_baseline:
                row[metric] |= resamples.relative_difference(values_ST, values[metric][baseline])._asdict()
        rows.append(row)
    return sorted(rows, key=lambda row: -row["validation"])


def compare_by_popularity(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], scorers: Sequence[str], baseline: tuple[str, str]
) -> list[dict[str, Any]]:
    """NDCG@10 for each decile of the targets' popularity, a row for each arm and scorer; see `compare`.

    Differences are not relative, as a baseline may find none of the rare items. What ranks as the baseline does has no
    row of its own.
    """
    if baseline[0] not in runs:
        return []
    first = runs[baseline[0]][0]
    deciles_T, uses_T = np.array(first["deciles"]), np.array(first["uses"])
    groups = [deciles_T == decile for decile in np.unique(deciles_T)]
    resamples = [Resamples(len(runs[baseline[0]]), int(group_T.sum())) for group_T in groups]
    cells = [(arm, scorer) for arm, found in runs.items() for scorer in scorers if scorer in found[0]["ranks"]]
    values = {cell: METRICS["ndcg@10"](ranks_of(runs[cell[0]], cell[1])) for cell in cells}
    rows = []
    for cell, values_ST in values.items():
        if cell != baseline and np.array_equal(values_ST, values[baseline]):
            continue
        found = []
        for group_T, draws in zip(groups, resamples, strict=True):
            group = {
                "name": str(deciles_T[group_T][0] or COLD),
                "uses": [int(uses_T[group_T].min()), int(uses_T[group_T].max())],
                "num_targets": int(group_T.sum()),
                "mean": float(values_ST[:, group_T].mean()),
            }
            if cell != baseline:
                group |= draws.mean(values_ST[:, group_T] - values[baseline][:, group_T])._asdict()
            found.append(group)
        rows.append({"arm": cell[0], "scorer": cell[1], "groups": found})
    return rows


def popularity_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of `compare_by_popularity` as Markdown, a column for each."""
    lines = [["decile", "training uses", "targets", *(f"`{row['arm']}`, {row['scorer']}" for row in rows)]]
    lines += [["---"] * len(lines[0])]
    for cells in zip(*(row["groups"] for row in rows), strict=True):
        uses = "–".join(f"{bound:,}" for bound in dict.fromkeys(cells[0]["uses"]))
        lines.append([cells[0]["name"], uses, f"{cells[0]['num_targets']:,}", *map(_popularity_cell, cells)])
    return [f"| {' | '.join(line)} |" for line in lines]


def _popularity_cell(group: Mapping[str, Any]) -> str:
    text = f"{group['mean']:.4f}"
    if "low" in group:
        text += f"; {group['estimate']:+.4f} [{group['low']:+.4f}, {group['high']:+.4f}]"
    return text


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as Markdown."""
    lines = [["arm", "scores of", "validation NDCG@10", "test NDCG@10", "test Hit@10", "epochs chosen", "seconds"]]
    lines += [["---"] * len(lines[0])]
    for row in rows:
        lines.append(
            [
                *(f"`{row['arm']}`", row["scorer"], f"{row['validation']:.4f}"),
                *(figure_cell(row[metric]) for metric in METRICS),
                *(", ".join(map(str, row["epochs"])), f"{row['seconds']:,.0f}"),
            ]
        )
    return [f"| {' | '.join(line)} |" for line in lines]


_ABOUT_POPULARITY = (
    "Test NDCG@10 by the decile of the target's training uses among the items that have any (10: the most popular); "
    "items of equal use are in one decile, so some are empty. Then the difference to SASRec alone, with its interval."
)


def render(study: Mapping[str, Any]) -> str:
    """The study as Markdown."""
    about = study["about"]
    lines = [
        f"# How good does a model get on {about['data']}?",
        "",
        f"`{about['command']}`, {about['processor']}, {about['date']}, commit `{about['commit']}`; "
        f"{about['num_users']:,} users, {about['num_items']:,} items, {about['num_interactions']:,} interactions "
        f"(split `{about['split_hash'][:12]}`). Leave-one-out, all items ranked but those that a user had before.",
        "",
        f"Base: {about['base']}.",
        "",
        "An arm is what is changed. Each run is tested at its best epoch by validation; rows are in the order of their "
        "validation, which alone may choose among them. Mean over seeds ± their standard deviation [95% interval]; "
        f"then the difference to SASRec alone of `{about['baseline']}` in percent of it, with its interval, in pairs. "
        "Intervals are from a bootstrap over seeds and users. Seconds: of training, one thread of a shared machine; a "
        "refit's are its own, and its validation is that of the model that was chosen.",
        "",
    ]
    for title, rows in study["comparisons"].items():
        lines += [f"## {title}", "", *table(rows), ""]
    if rows := study["by_popularity"]:
        lines += ["## By popularity", "", _ABOUT_POPULARITY, "", *popularity_table(rows), ""]
    return "\n".join(lines)


def plot(study: Mapping[str, Any], file: Path) -> None:
    """Two panels: the best validation NDCG@10 so far against the time, and what is gained where by popularity."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (over_time, by_decile) = pyplot.subplots(1, 2, figsize=(13, 6), layout="constrained")
    for number, (arm, curves) in enumerate(study["curves"].items()):
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
        for index, epochs in enumerate(curves):
            seconds = np.cumsum([epoch["train_seconds"] for epoch in epochs])
            found = [max((of["ndcg@10"] for of in epoch["validation"].values()), default=0) for epoch in epochs]
            points = [(at, best) for at, best in zip(seconds, np.maximum.accumulate(found), strict=True) if best]
            over_time.plot(*zip(*points, strict=True), **style, label=None if index else arm, zorder=-number)
    over_time.set_xlabel("seconds of training")
    over_time.set_ylabel("best validation NDCG@10 so far (of any scorer)")
    compared = [row for row in study["by_popularity"] if "low" in row["groups"][0]]
    by_decile.axhline(0, color="0.5", linewidth=0.8)
    for number, row in enumerate(compared):
        groups = row["groups"]
        places = np.arange(len(groups)) + (number - (len(compared) - 1) / 2) * 0.5 / len(compared)
        middle = np.array([group["estimate"] for group in groups])
        reach = [middle - [group["low"] for group in groups], [group["high"] for group in groups] - middle]
        colour = f"C{[*study['curves']].index(row['arm']) % 10}"
        style = {"fmt": "D" if row["scorer"] == "fused" else "o", "markersize": 4, "capsize": 2}
        by_decile.errorbar(places, middle, reach, color=colour, **style)
    by_decile.set_title("diamonds: fused; dots: SASRec alone", fontsize=9)
    names = [group["name"] for group in study["by_popularity"][0]["groups"]] if study["by_popularity"] else []
    by_decile.set_xticks(range(len(names)), names)
    by_decile.set_xlabel("decile of the target's training uses (10: the most popular)")
    by_decile.set_ylabel("test NDCG@10, difference to SASRec alone, 95% interval")
    handles, labels = over_time.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=7)
    file.write_bytes(to_png(figure))
    pyplot.close(figure)
