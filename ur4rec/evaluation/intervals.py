"""Bootstrap intervals: what one looks like, and that of a mean over users.

Shapes: T targets, U users, K kinds of users, R resamples.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ur4rec.evaluation.metrics import ndcg

NUM_RESAMPLES = 10_000
LEVEL = 0.95
_MAX_DRAWN, _LEAST_RESAMPLES, _CHUNK = 10**8, 1000, 500


class Interval(NamedTuple):
    """An estimate with its bootstrap interval."""

    estimate: float
    """What was measured."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""

    @property
    def excludes_zero(self) -> bool:
        """Whether all of it lies on one side of 0."""
        return self.low > 0 or self.high < 0


def percentile_interval(
    estimate: float, found_R: NDArray[Any], method: Literal["linear", "nearest"] = "linear"
) -> Interval:
    """An estimate with the middle `LEVEL` of what was found in resamples.

    Args:
        estimate: What was measured.
        found_R: The same of each resample.
        method: Of `numpy.quantile`: `nearest` where some may be infinite.

    Example:
        >>> [round(each, 9) for each in percentile_interval(20.0, np.arange(41.0))]
        [20.0, 1.0, 39.0]
    """
    low, high = np.quantile(found_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method=method)
    return Interval(estimate, float(low), float(high))


def metric_intervals(ranks_T: NDArray[Any], users_T: NDArray[Any], k: int = 10, seed: int = 0) -> dict[str, Interval]:
    """Hit@k and NDCG@k with percentile intervals; users are drawn with replacement, each with all its targets.

    Users with the same numbers of targets at each rank up to k are interchangeable, so that a resample draws how many
    there are of each kind: one multinomial number per kind in place of one draw per user, of the same distribution.
    With more than 10,000 kinds there are fewer resamples, 1,000 at least. Of a few targets an interval is too narrow,
    and where no rank is up to k it is [0, 0]: look at the number of targets too.

    Args:
        ranks_T: The rank of each target, from 1.
        users_T: The user of each target.
        k: Ranks above it count 0.
        seed: Seed of the draws.

    Returns:
        Intervals by name of the metric.

    Example:
        >>> found = metric_intervals(np.array([1, 30, 2, 50] * 25), np.arange(100))
        >>> {name: tuple(round(end, 2) for end in interval) for name, interval in found.items()}
        {'hit@10': (0.5, 0.4, 0.6), 'ndcg@10': (0.41, 0.32, 0.49)}
    """
    _, users_of_T = np.unique(users_T, return_inverse=True)
    num_users = int(users_of_T.max()) + 1
    cells_T = users_of_T * (k + 1) + np.minimum(ranks_T, k + 1) - 1
    counts_UK = np.bincount(cells_T, minlength=num_users * (k + 1)).reshape(num_users, k + 1)
    kinds_K, num_of_K = np.unique(counts_UK, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    num_resamples = min(NUM_RESAMPLES, max(_MAX_DRAWN // len(kinds_K), _LEAST_RESAMPLES))
    chunks = [min(_CHUNK, num_resamples - first) for first in range(0, num_resamples, _CHUNK)]
    shares_K = num_of_K / num_users
    sums_R = np.concatenate([rng.multinomial(num_users, shares_K, size) @ kinds_K for size in chunks])
    gains = {f"hit@{k}": np.ones(k), f"ndcg@{k}": ndcg(np.arange(1, k + 1), k)}
    measured = num_of_K @ kinds_K
    return {name: _interval(measured, sums_R, gains_k) for name, gains_k in gains.items()}


def _interval(measured_K: NDArray[Any], sums_RK: NDArray[Any], gains_k: NDArray[np.float64]) -> Interval:
    k = len(gains_k)
    means_R = sums_RK[:, :k] @ gains_k / sums_RK.sum(1)
    return percentile_interval(float(measured_K[:k] @ gains_k / measured_K.sum()), means_R)
