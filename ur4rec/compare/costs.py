"""What the steps of a study cost, measured once for all its runs."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ur4rec.compare.runner import build_trainer, machine_facts, prepare_study, study_facts
from ur4rec.compare.study import StudyConfig
from ur4rec.files import hash_bytes
from ur4rec.runs.step_costs import StepCosts, costs_of, median_seconds, time_steps
from ur4rec.schedule.stages import turns_of

ROUNDS = 40


def measure_costs(study: StudyConfig, data_dir: Path | None = None, rounds: int = ROUNDS) -> dict[str, Any]:
    """Time every kind of step under the study's loss; see `ur4rec.runs.step_costs.time_steps`.

    Returns:
        ``seconds`` per kind (the median), its quartiles, and the machine; see `read_costs`.
    """
    before, seed = machine_facts(), study.seeds[0]
    prepared = prepare_study(study, seed, data_dir)
    times = time_steps(
        lambda schedule: build_trainer(study, prepared, schedule, seed),
        prepared,
        turns_of(study.modules),
        study.device,
        rounds,
    )
    return {
        "seconds": median_seconds(times),
        "quartiles": {kind: statistics.quantiles(values, n=4)[::2] for kind, values in times.items()},
        "rounds": rounds,
        "load_average_before": before["load_average"],
        "facts": study_facts(prepared, study),
    }


def read_costs(content: Mapping[str, Any]) -> StepCosts:
    """The prices that `measure_costs` found."""
    return costs_of(content["seconds"])


def hash_costs(content: Mapping[str, Any]) -> str:
    """SHA-256 of the prices: runs that were charged with the same ones can be compared.

    Example:
        >>> hash_costs({"seconds": {"both": 0.5}})[:16]
        '03862d4bcba648bb'
    """
    return hash_bytes(json.dumps(content["seconds"], sort_keys=True).encode())
