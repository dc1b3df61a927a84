"""What the page says of the run itself: its data, what its schedule decided and why, and its metrics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from alternator.checks import printable
from alternator.recordings.log import read_log
from ur4rec.data import Interactions
from ur4rec.errors import refuse_malformed
from ur4rec.evaluation.results import METRICS
from ur4rec.files import check_form
from ur4rec.runs.attempts import read_attempts
from ur4rec.runs.config import read_config
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.measurements import read_measurements
from ur4rec.runs.verdict import explain_decisions

_FINAL = {str: {"name": str, "epoch": int, "validation": METRICS, "test": METRICS}}
_REFIT = {str: {"name": str, "epoch": int, "test": METRICS}}
RecordT = TypeVar("RecordT")


def describe_run(directory: RunDirectory, interactions: Interactions, checkpoint: str) -> dict[str, Any]:
    """The run's name, facts in one sentence, what was decided, and its results, as plain JSON values.

    Args:
        directory: The run.
        interactions: Its data.
        checkpoint: The name of the checkpoint that scores.

    Raises:
        DataError: A file of the run is damaged.
    """
    config, path = read_config(directory), directory.path
    measurements = _read(path / "payoffs.csv", read_measurements)
    attempts = _read(path / "trials.csv", read_attempts)
    decisions = _read(path / "decisions.csv", read_log)
    with refuse_malformed(path / "metrics.json", "restore the file"):
        metrics = directory.read_json("metrics.json")
        final, refit = metrics["final"], metrics.get("refit", {})
        check_form(final, _FINAL)
        check_form(refit, _REFIT)
    return {
        "name": printable(path.resolve().name),
        "facts": printable(
            f"{interactions.name}: {interactions.num_users:,} users, {interactions.num_items:,} items, "
            f"{len(interactions):,} interactions. Schedule {config.schedule}, {config.backend}, seed {config.seed}. "
            f"Scores are those of its {checkpoint} checkpoint."
        ),
        "decided": explain_decisions(config.schedule, decisions, measurements, attempts),
        "results": [{**row, "name": printable(row["name"])} for row in (*final.values(), *refit.values())],
        "has_plot": (path / "schedule.png").is_file(),
    }


def _read(path: Path, parse: Callable[[str], list[RecordT]]) -> list[RecordT]:
    """The records of a log of the run; none where it has not been begun."""
    if not path.is_file():
        return []
    with refuse_malformed(path, "restore the file"):
        return parse(path.read_text(encoding="utf-8"))
