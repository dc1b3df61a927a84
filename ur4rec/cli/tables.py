"""The tables of metrics that people look at."""

from collections.abc import Iterable, Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ur4rec.evaluation.results import K_LIST, Result


def results_table(results: Iterable[Result]) -> Table:
    """Test metrics of a run, one row per scorer, each at its best epoch by validation."""
    title = "Test: the whole catalogue ranked, at the best epoch by validation"
    rows = {result.name: result.test for result in results}
    return metrics_table(title, rows)


def metrics_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Hit@k and NDCG@k of named scorers."""
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("scorer", no_wrap=True)
    for k in K_LIST:
        table.add_column(f"Hit\n@{k}", justify="right", no_wrap=True)
        table.add_column(f"NDCG\n@{k}", justify="right", no_wrap=True)
    for name, metrics in rows.items():
        table.add_row(name, *(f"{metrics[f'{metric}@{k}']:.4f}" for k in K_LIST for metric in ("hit", "ndcg")))
    return table
