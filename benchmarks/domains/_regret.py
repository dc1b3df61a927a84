"""How much worse than the best fixed schedule an arm is, and how sure that is.

Shapes: S seeds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ur4rec.evaluation.intervals import LEVEL, Interval

from ._cells import Facts, Run
from ._domain import KINDS, Kind

Floats = NDArray[np.float64]


class ArmSummary(NamedTuple):
    """An arm over all seeds that the domain has of all arms."""

    arm: str
    kind: Kind
    in_grid: bool
    note: str
    test_S: Floats
    held_out_S: Floats
    regret: Interval
    """How much worse than the best of the grid, in parts of its value; negative where it is better."""
    from_joint: Interval | None
    """How much better than joint training, in parts of its value; negative where it is worse."""
    shares: dict[str, float]
    """Mean over seeds."""
    seconds: float
    """Mean over seeds."""


@dataclass(frozen=True, kw_only=True)
class DomainSummary:
    """All arms of a domain."""

    facts: Facts
    seeds: tuple[int, ...]
    best: str
    """The arm of the grid with the best held-out metric, its mean over seeds."""
    grid_size: int
    """The number of arms of the grid: what finding the best of them costs, in runs."""
    arms: tuple[ArmSummary, ...]
    """Best on test data first within each kind."""

    def arm(self, name: str) -> ArmSummary | None:
        """The arm of that name."""
        return next((each for each in self.arms if each.arm == name), None)

    @property
    def joint(self) -> ArmSummary | None:
        """Joint training."""
        return next((each for each in self.arms if each.kind == "joint"), None)


def summarise(facts: Facts, runs: Iterable[Run]) -> DomainSummary | None:
    """Compare the arms of a domain on the seeds that all of them have; None if there is no such seed or no grid."""
    by_arm: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_arm.setdefault(run.cell.arm, {})[run.cell.seed] = run
    most = max(map(len, by_arm.values()), default=0)
    by_arm = {arm: found for arm, found in by_arm.items() if len(found) > most // 2}  # one just begun waits
    seeds = sorted(set.intersection(*(set(found) for found in by_arm.values()))) if by_arm else []
    grid = {arm: [found[seed] for seed in seeds] for arm, found in by_arm.items() if _first(found).in_grid}
    if not seeds or not grid:
        return None
    sign = 1 if facts.higher_is_better else -1
    best = max(grid, key=lambda arm: sign * _column(grid[arm], "held_out").mean())
    joint = next((arm for arm, found in by_arm.items() if _first(found).kind == "joint"), None)
    tests = {arm: _column([found[seed] for seed in seeds], "test") for arm, found in by_arm.items()}
    summaries = [
        ArmSummary(
            arm,
            (first := _first(found)).kind,
            first.in_grid,
            first.note,
            tests[arm],
            _column([found[seed] for seed in seeds], "held_out"),
            regret=difference(-sign * tests[arm], -sign * tests[best]),
            from_joint=None if joint is None else difference(sign * tests[arm], sign * tests[joint]),
            shares=_mean_shares([found[seed] for seed in seeds]),
            seconds=float(np.mean([found[seed].seconds for seed in seeds])),
        )
        for arm, found in by_arm.items()
    ]
    summaries.sort(key=lambda each: (KINDS.index(each.kind), each.regret.estimate))
    return DomainSummary(facts=facts, seeds=tuple(seeds), best=best, grid_size=len(grid), arms=tuple(summaries))


def difference(arm_S: Floats, reference_S: Floats) -> Interval:
    """The mean difference in pairs, in parts of the reference's mean size, with Student's t interval over seeds.

    A bootstrap over five seeds would be too narrow: it excludes 0 whenever all differences have one sign. With one seed
    there is no interval.

    Example:
        >>> difference(np.array([0.4, 0.6, 0.5]), np.array([0.5, 0.5, 0.5]))
        Interval(estimate=0.0, low=-0.496827542373, high=0.496827542373)
    """
    size, above_S = abs(float(reference_S.mean())), arm_S - reference_S
    if size == 0:
        return Interval(*[float("nan")] * 3)
    num_seeds = len(above_S)
    stderr = float(np.std(above_S, ddof=1)) / num_seeds**0.5 if num_seeds > 1 else float("inf")
    half = float(stats.t.ppf((1 + LEVEL) / 2, max(num_seeds - 1, 1))) * stderr
    mean = float(above_S.mean())
    return Interval(*(round(value / size, 12) for value in (mean, mean - half, mean + half)))


def _first(found: Mapping[int, Run]) -> Run:
    return next(iter(found.values()))


def _column(runs: list[Run], name: str) -> Floats:
    return np.array([getattr(run.outcome, name) for run in runs], np.float64)


def _mean_shares(runs: list[Run]) -> dict[str, float]:
    turns = dict.fromkeys(turn for run in runs for turn in run.outcome.shares)
    return {turn: float(np.mean([run.outcome.shares.get(turn, 0.0) for run in runs])) for turn in turns}
