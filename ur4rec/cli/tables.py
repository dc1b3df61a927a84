"""The tables of metrics that people look at."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ur4rec.cli.output import Table, build_table
from ur4rec.evaluation.intervals import LEVEL
from ur4rec.evaluation.popularity import PopularityGroup
from ur4rec.evaluation.results import K_LIST, Result, summarise_rows


def results_table(
    results: Iterable[Result], is_repeated_T: NDArray[np.bool_], sampled: tuple[int, int] | None = None
) -> Table:
    """Test metrics of a run, one row per scorer, each at its best epoch by validation.

    Args:
        results: The rows.
        is_repeated_T: Which test targets their user had before; where there are both kinds, each has rows of its own.
        sampled: How many users validated, and how many there are to validate; None is all.
    """
    title = "Test: the whole catalogue ranked, at the best epoch by validation"
    if sampled is not None:
        title += f" (of a sample: {sampled[0]:,} of {sampled[1]:,} users)"
    return metrics_table(title, summarise_rows({result.name: result.test_ranks for result in results}, is_repeated_T))


def metrics_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Hit@k and NDCG@k of named scorers."""
    right = {"justify": "right", "no_wrap": True}
    heads = [f"{metric}\n@{k}" for k in K_LIST for metric in ("Hit", "NDCG")]
    cells = [
        [name, *(f"{metrics[f'{metric}@{k}']:.4f}" for k in K_LIST for metric in ("hit", "ndcg"))]
        for name, metrics in rows.items()
    ]
    return build_table({"scorer": {}, **dict.fromkeys(heads, right)}, cells, title=title)


def popularity_table(groups: Sequence[PopularityGroup], rows: Mapping[str, str]) -> Table:
    """NDCG@10 by popularity of the target, with half the width of its interval.

    Args:
        groups: From `ur4rec.evaluation.popularity.by_popularity`.
        rows: Which scorers: by the head of a column, the name in the groups.
    """
    cells = []
    for each in groups:
        most = f"-{each.most:,}" if each.most > each.least else ""
        known = [each.scorers[name]["ndcg@10"] if name in each.scorers else None for name in rows.values()]
        shown = ["" if one is None else f"{one.estimate:.3f} ±{(one.high - one.low) / 2:.3f}" for one in known]
        cells.append([each.name, f"{each.least:,}{most}", f"{each.num_targets:,}", *shown])
    right = {"justify": "right", "no_wrap": True}
    heads = ["decile", "uses in\ntraining", "targets", *(head.replace(" ", "\n") for head in rows)]
    title = f"NDCG@10 by popularity of the target (± half of the {LEVEL:.0%} interval)"
    return build_table(dict.fromkeys(heads, right), cells, title=title)
