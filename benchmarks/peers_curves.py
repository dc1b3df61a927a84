"""Quality against time, from the epochs of training runs: the pure part of `peers.py`."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ur4rec.evaluation.metrics import ndcg

CLOCKS = ("wall", "processor")
SCORINGS = ("filtered", "unfiltered")
"""Whether items that a user has seen are kept out of the ranking."""
METRICS = ("ndcg@10", "hit@10")


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch of training and what it came to."""

    train_seconds: Mapping[str, float]
    """Seconds of training, by clock."""
    validation_seconds: Mapping[str, float]
    """Seconds of scoring and ranking after it, by clock; not of training."""
    validation: Mapping[str, Mapping[str, float]]
    """Validation metrics, by scoring."""
    test_ranks: Mapping[str, list[int]]
    """The rank of every user's test target, by scoring; only where validation by it is the best so far."""


@dataclass(frozen=True, kw_only=True)
class SystemRun:
    """One system trained once."""

    system: str
    """Which system."""
    seed: int
    """Its seed."""
    sitting: str
    """When the benchmark was started that trained it."""
    about: Mapping[str, Any]
    """Its settings and checks."""
    epochs: Sequence[Epoch]
    """Its epochs in order."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SystemRun":
        """The run that `to_json` gave."""
        return cls(**{**content, "epochs": [Epoch(**epoch) for epoch in content["epochs"]]})

    def curve(self, scoring: str) -> list[float]:
        """Validation NDCG@10 after each epoch."""
        return [epoch.validation[scoring]["ndcg@10"] for epoch in self.epochs]

    def seconds(self, clock: str) -> list[float]:
        """Seconds of training up to the end of each epoch; validation is not counted."""
        return list(accumulate(epoch.train_seconds[clock] for epoch in self.epochs))

    def best(self, scoring: str) -> int:
        """The first epoch (0-based) with the highest validation NDCG@10."""
        curve = self.curve(scoring)
        return curve.index(max(curve))

    def reported(self) -> "SystemRun":
        """The run with the test ranks of its best epochs alone: others are not reported."""
        best = {scoring: self.best(scoring) for scoring in SCORINGS} if self.epochs else {}
        epochs = [
            replace(epoch, test_ranks={name: each for name, each in epoch.test_ranks.items() if best[name] == index})
            for index, epoch in enumerate(self.epochs)
        ]
        return replace(self, epochs=epochs)


def seconds_to(run: SystemRun, target: float, scoring: str, clock: str) -> float | None:
    """Seconds of training until validation NDCG@10 first reached the target; None if it never did.

    Example:
        >>> epochs = [tiny_epoch(2.0, quality) for quality in (0.1, 0.3, 0.2)]
        >>> run = SystemRun(system="ours", seed=0, sitting="", about={}, epochs=epochs)
        >>> seconds_to(run, 0.2, "filtered", "wall"), seconds_to(run, 0.4, "filtered", "wall")
        (4.0, None)
    """
    for quality, seconds in zip(run.curve(scoring), run.seconds(clock), strict=True):
        if quality >= target:
            return seconds
    return None


def tiny_epoch(seconds: float, quality: float) -> Epoch:
    """An epoch of an example: the same seconds by each clock, the same quality by each scoring."""
    return Epoch(
        train_seconds=dict.fromkeys(CLOCKS, seconds),
        validation_seconds=dict.fromkeys(CLOCKS, 0.0),
        validation={scoring: {"ndcg@10": quality} for scoring in SCORINGS},
        test_ranks={scoring: [1, 2, 11] for scoring in SCORINGS},
    )


def time_ratio(run: SystemRun, peer: SystemRun, scoring: str, clock: str, part: float = 1.0) -> float | None:
    """Time to a part of the peer's best validation NDCG@10, ours over theirs; None if ours never gets there."""
    target = part * max(peer.curve(scoring))
    ours, theirs = (seconds_to(each, target, scoring, clock) for each in (run, peer))
    return None if ours is None or theirs is None else ours / theirs


def bounded_ratio(run: SystemRun, peer: SystemRun, scoring: str, clock: str) -> float:
    """Time to the best validation NDCG@10 of ours, over theirs, or over all of theirs where they never get there.

    With a peer that never gets there this is the most that the ratio can be.

    Example:
        >>> def trained(seconds, best):
        ...     epochs = [tiny_epoch(seconds, quality) for quality in (0.1, best)]
        ...     return SystemRun(system="", seed=0, sitting="", about={}, epochs=epochs)
        >>> bounded_ratio(trained(1.0, 0.3), trained(20.0, 0.2), "filtered", "processor")
        0.05
    """
    target = max(run.curve(scoring))
    ours, theirs = (seconds_to(each, target, scoring, clock) or each.seconds(clock)[-1] for each in (run, peer))
    return ours / theirs


def ratios(
    ratio: Callable[[SystemRun, SystemRun], float | None],
    runs: Sequence[SystemRun],
    peers: Sequence[SystemRun],
    draws: int = 2000,
) -> dict[str, Any]:
    """The ratios of all pairs of runs, and their median with a 95% interval: a bootstrap over seeds of either.

    A pair that never gets there counts as longer than all others: where it decides, the figure is None.
    """
    each_RP = [[ratio(run, peer) for peer in peers] for run in runs]
    known_RP = np.array([[np.inf if value is None else value for value in row] for row in each_RP], np.float64)
    generator = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        rows, columns = (generator.integers(size, size=size) for size in known_RP.shape)
        found.append(_median(known_RP[rows][:, columns]))
    low, high = (sorted(found)[round(share * (draws - 1))] for share in (0.025, 0.975))
    figures = {"median": _median(known_RP), "low": low, "high": high}
    each = [value for row in each_RP for value in row]
    return {"each": each, **{name: value if np.isfinite(value) else None for name, value in figures.items()}}


def _median(values: NDArray[np.float64]) -> float:
    """The upper median, so that infinity counts as a value like others."""
    ordered = np.sort(values, axis=None)
    return float(ordered[len(ordered) // 2])


def per_user(run: SystemRun, scoring: str, metric: str) -> NDArray[np.float64]:
    """The metric of each user on test, at the run's best validation by the same scoring."""
    ranks = np.asarray(run.epochs[run.best(scoring)].test_ranks[scoring], np.float64)
    return ndcg(ranks, 10) if metric == "ndcg@10" else (ranks <= 10).astype(np.float64)


def quality(runs: Sequence[SystemRun], scoring: str, metric: str) -> dict[str, float]:
    """Mean over the runs of a test metric, and its standard deviation over seeds."""
    values = [float(per_user(run, scoring, metric).mean()) for run in runs]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "deviation": deviation}


def difference(
    runs: Sequence[SystemRun], peers: Sequence[SystemRun], scoring: str, metric: str, draws: int = 2000
) -> dict[str, float]:
    """Test metric of ours minus theirs with a 95% interval: a bootstrap over seeds of either and over users, paired."""
    ours_RU, theirs_PU = (np.stack([per_user(run, scoring, metric) for run in side]) for side in (runs, peers))
    generator = np.random.default_rng(0)
    num_users = ours_RU.shape[1]
    found = []
    for _ in range(draws):
        users = generator.integers(num_users, size=num_users)
        sides = [side[generator.integers(len(side), size=len(side))].mean(0) for side in (ours_RU, theirs_PU)]
        found.append((sides[0] - sides[1])[users].mean())
    low, high = np.quantile(found, [0.025, 0.975])
    return {"value": float(ours_RU.mean() - theirs_PU.mean()), "low": float(low), "high": float(high)}
