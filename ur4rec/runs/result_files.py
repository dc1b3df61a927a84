"""The files in which a run says what came of it: its metrics, its ranks and the plot of its schedule."""

from collections.abc import Mapping, Sequence
from typing import Any

from ur4rec.data.columns import take_strings
from ur4rec.evaluation.popularity import PopularityGroup
from ur4rec.evaluation.results import Result, summarise_kinds
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.logs import RunLogs
from ur4rec.runs.plot import plot_schedule
from ur4rec.runs.prepared import PreparedData

_TURN = "_steps"
_COUNTS = ("steps", "switches", "nonfinite_steps")


class ResultFiles:
    """``metrics.json``, ``test_ranks.csv`` and ``schedule.png`` of a run.

    Args:
        directory: Of the run.
        prepared: Its data.
    """

    def __init__(self, directory: RunDirectory, prepared: PreparedData) -> None:
        self._directory = directory
        self._prepared = prepared
        self._ranked: list[Result] | None = None
        """The results whose ranks are written: they change at the end of a stage, and may be of millions of users."""

    def write(
        self,
        results: Mapping[str, Result],
        epochs: Sequence[Mapping[str, Any]],
        by_popularity: Sequence[PopularityGroup] | None,
        facts: Mapping[str, Any],
    ) -> None:
        """Write the metrics, and the ranks if they have changed.

        Args:
            results: The rows of the results table by their names.
            epochs: All so far.
            by_popularity: The test metrics by popularity of the target; None before the run has ended.
            facts: What a reader needs to run it again.
        """
        if self._ranked is None or list(map(id, self._ranked)) != list(map(id, results.values())):
            self._directory.write_csv("test_ranks.csv", self._rank_columns(results))
            self._ranked = list(results.values())
        repeated_T = self._prepared.split.test.is_repeated
        content = {
            "final": {
                name: {**result.to_json(), "test_by_kind": summarise_kinds(result.test_ranks, repeated_T)}
                for name, result in results.items()
            },
            **({} if by_popularity is None else {"by_popularity": [each.to_json() for each in by_popularity]}),
            "schedule": count_turns(epochs),
            "train_seconds": sum(row["train_seconds"] for row in epochs),
            "facts": facts,
            "epochs": epochs,
        }
        self._directory.write_json("metrics.json", content)

    def draw(self, logs: RunLogs, epochs: Sequence[Mapping[str, Any]], title: str) -> None:
        """Draw who trained when, and what the validations found; see `ur4rec.runs.plot`."""
        path = self._directory.path / "schedule.png"
        plot_schedule(path, logs.decisions.records, logs.payoffs.records, epochs, title)

    def _rank_columns(self, results: Mapping[str, Result]) -> dict[str, list[Any]]:
        interactions, test = self._prepared.interactions, self._prepared.split.test
        return {
            "user": take_strings(interactions.user_ids, test.users_T),
            "item": take_strings(interactions.item_ids, test.items_T),
            **{name: result.test_ranks.tolist() for name, result in results.items()},
        }


def count_turns(epochs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a schedule did in each stage: steps, switches, and the steps of each turn that it took.

    Args:
        epochs: The rows of ``metrics.json``.

    Returns:
        By stage ``steps``, ``switches``, ``nonfinite_steps`` (whose loss was NaN or infinite) and ``turns``, the steps
        by what trained in them.

    Example:
        >>> counts = {"steps": 3, "switches": 1, "nonfinite_steps": 0, "sasrec_steps": 2, "both_steps": 1}
        >>> rows = [{"stage": "joint_finetune", "train": {"total_loss": 0.5, **counts}}] * 2
        >>> count_turns(rows)
        {'joint_finetune': {'steps': 6, 'switches': 2, 'nonfinite_steps': 0, 'turns': {'sasrec': 4, 'both': 2}}}
    """
    found: dict[str, dict[str, Any]] = {}
    for row in epochs:
        stage = found.setdefault(row["stage"], {**dict.fromkeys(_COUNTS, 0), "turns": {}})
        for name, value in row["train"].items():
            if name in _COUNTS:
                stage[name] += value
            elif name.endswith(_TURN) and value:
                turn = name.removesuffix(_TURN)
                stage["turns"][turn] = stage["turns"].get(turn, 0) + value
    return found
