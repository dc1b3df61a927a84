"""The form of what a study keeps as JSON: the report of a run, and the costs."""

from collections.abc import Mapping
from typing import Any

from alternator.checks import check_positive
from ur4rec.compare.costs import KINDS
from ur4rec.files import check_form
from ur4rec.schedule.stages import MODULES, TURNS, turns_of

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
        "turn_steps": dict.fromkeys(turns_of(MODULES), int),
        "shares": dict.fromkeys(MODULES, float),
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
_COSTS = {
    "seconds": dict.fromkeys(KINDS, float),
    "quartiles": {kind: [float] for kind in KINDS},
    "load_average_before": (float, None),
    "facts": {"load_average": (float, None)},
}


def check_report(report: Mapping[str, Any]) -> None:
    """Refuse what is no report of a run.

    Raises:
        ValueError: Says what it must have.
    """
    check_form(report, _REPORT)
    if per_user := report.get("targets_per_user"):
        check_form(per_user, {"validation": [int], "test": [int]}, "targets_per_user")
        if min(min(counts, default=0) for counts in per_user.values()) < 1:
            raise ValueError("targets_per_user must be numbers of at least 1")
    best, turns = report["best"], report["turns"]
    if not (best is None or 0 <= best < len(report["points"])):
        raise ValueError(f"best must be one of {len(report['points'])} points, got {best}")
    for turn, steps in turns["tenures"]:
        check_form(steps, int, "tenures")
        if not isinstance(turn, str) or turn not in TURNS or not 0 < steps <= turns["steps"]:
            raise ValueError(f"a tenure must be a turn and its steps, at most {turns['steps']}, got {(turn, steps)}")


def check_costs(costs: Mapping[str, Any]) -> None:
    """Refuse what are no costs of steps.

    Raises:
        ValueError: Says what they must have.
    """
    check_form(costs, _COSTS)
    for kind in KINDS:
        check_positive(f"the seconds of {kind!r}", costs["seconds"][kind])
