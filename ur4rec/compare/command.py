"""What `ur4rec compare` does with its arguments."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ur4rec.compare.arms import PARITY
from ur4rec.compare.directory import StudyDirectory
from ur4rec.compare.study import StudyConfig
from ur4rec.errors import ConfigurationError


def open_study(
    path: Path | None,
    out: Path | None,
    given: Mapping[str, Any],
    *,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    budgets: Sequence[str] = (),
) -> StudyDirectory:
    """The study that a command means: a new one, or an earlier one with what is added to it.

    Args:
        path: An earlier study.
        out: Where a new one is to be, or an earlier one of the same conditions is.
        given: The conditions that were given; None where they were not.
        arms: Arms to compare; parity comes first in any case.
        seeds: Seeds.
        budgets: What is held equal.

    Raises:
        ConfigurationError: Both paths are given, or none; or the conditions are not those of the study.
    """
    if (path is None) == (out is None):
        raise ConfigurationError("give either --out DIR for a new study, or the DIR of an earlier one")
    conditions = {name: value for name, value in given.items() if value is not None}
    chosen = {"arms": tuple(arms), "seeds": tuple(seeds), "budgets": tuple(budgets)}
    chosen = {name: values for name, values in chosen.items() if values}
    if path is not None:
        there = StudyDirectory.reopen(path).study
        return StudyDirectory.begin(
            path, StudyConfig.from_json({**there.to_json(), **conditions, **_with_parity(chosen)})
        )
    assert out is not None
    if "eval_every" not in conditions and "updates" in conditions:
        conditions["eval_every"] = max(conditions["updates"] // 10, 1)
    if "preset" not in conditions:
        conditions["preset"] = "smoke" if conditions.get("dataset") == "synthetic" else "demo"
    return StudyDirectory.begin(out, StudyConfig(**conditions, **_with_parity(chosen)))


def _with_parity(chosen: Mapping[str, Any]) -> dict[str, Any]:
    arms = chosen.get("arms")
    return {**chosen, "arms": (PARITY, *(arm for arm in arms if arm != PARITY))} if arms else dict(chosen)
