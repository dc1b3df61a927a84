"""The form of what a study keeps as JSON: the report of a run, and the costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from alternator.checks import check_positive
from ur4rec.files import check_form
from ur4rec.runs.step_costs import kinds_of
from ur4rec.schedule.stages import MODULES, turns_of

_METRICS = dict.fromkeys(("ndcg@10", "hit@10", "nll"), float)
_SPENT = {"updates": float, "cost": float}
_REPORT = {
    "schedule": str,
    "error": (str, None),
    "budget": _SPENT,
    "spent": _SPENT,
    "best": (int, None),
    "points": [{**_SPENT, "validation": _METRICS, "test": _METRICS}],
    "turns": {
        "steps": int,
        "turn_steps": {str: int},
        "shares": {str: float},
        "switches": int,
        "mean_tenure": float,
        "tenures": [[]],
    },
    "seconds": float,
    "facts": {
        **dict.fromkeys(("split", "split_hash", "interactions_hash", "source", "python", "processor"), str),
        **dict.fromkeys(("num_users", "num_items", "num_interactions"), int),
        "commit": (str, None),
        "cores": (int, None),
        "versions": {str: str},
    },
}


def check_report(report: Mapping[str, Any], modules: Sequence[str] = MODULES) -> None:
    """Refuse what is no report of a run.

    Args:
        report: The report.
        modules: The modules of the study's model.

    Raises:
        ValueError: Says what it must have.
    """
    check_form(report, _REPORT)
    if per_user := report.get("targets_per_user"):
        check_form(per_user, {"validation": [int], "test": [int]}, "targets_per_user")
        if min(min(counts, default=0) for counts in per_user.values()) < 1:
            raise ValueError("targets_per_user must be numbers of at least 1")
    best, turns = report["best"], report["turns"]
    check_form(turns["turn_steps"], dict.fromkeys(turns_of(modules), int), "turn_steps")
    check_form(turns["shares"], dict.fromkeys(modules, float), "shares")
    if not (best is None or 0 <= best < len(report["points"])):
        raise ValueError(f"best must be one of {len(report['points'])} points, got {best}")
    for turn, steps in turns["tenures"]:
        check_form(steps, int, "tenures")
        if not isinstance(turn, str) or turn not in turns_of(modules) or not 0 < steps <= turns["steps"]:
            raise ValueError(f"a tenure must be a turn and its steps, at most {turns['steps']}, got {(turn, steps)}")


def check_costs(costs: Mapping[str, Any], modules: Sequence[str] = MODULES) -> None:
    """Refuse what are no costs of steps.

    Args:
        costs: The costs.
        modules: The modules of the study's model.

    Raises:
        ValueError: Says what they must have.
    """
    kinds = kinds_of(turns_of(modules))
    form = {
        "seconds": dict.fromkeys(kinds, float),
        "quartiles": {kind: [float] for kind in kinds},
        "load_average_before": (float, None),
        "facts": {"load_average": (float, None)},
    }
    check_form(costs, form)
    for kind in kinds:
        check_positive(f"the seconds of {kind!r}", costs["seconds"][kind])
