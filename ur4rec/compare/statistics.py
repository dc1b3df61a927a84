"""Paired two-level bootstrap, and the speed and steadiness of a curve.

Shapes: S seeds, T targets, U users, R resamples, P evaluation points.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ur4rec.evaluation.intervals import NUM_RESAMPLES, Interval, percentile_interval

_CHUNK = 500


class Curves(NamedTuple):
    """An arm's quality against what was spent, of every seed and user."""

    spent_SP: NDArray[Any]
    """What had been spent."""
    quality_SPT: NDArray[Any]
    """What every target got; more is better."""


class Resamples:
    """The same draws of seeds and users for every arm and metric, so that everything is compared pairwise.

    Seeds and users are each drawn with replacement, independently (a two-way bootstrap: Owen 2007, "The pigeonhole
    bootstrap"); a resample's mean is over all drawn pairs. It errs on the wide side, but for the few seeds: with S of
    them their part of the variance is too small by a factor of (S - 1) / S.

    Args:
        num_seeds: Seeds.
        num_users: Users.
        targets_per_user: The number of targets of each user, whose targets are next to each other and drawn together;
            None is one of each.
        num_resamples: Number of resamples.
        seed: Seed of the draws.

    Example:
        >>> resamples = Resamples(2, 3)
        >>> arm, reference = np.array([[2.0, 4, 6], [2, 4, 6]]), np.array([[1.0, 2, 3], [1, 2, 3]])
        >>> resamples.relative_difference(arm, reference)
        Interval(estimate=1.0, low=1.0, high=1.0)
        >>> resamples.mean(np.full((2, 3), 4.0))
        Interval(estimate=4.0, low=4.0, high=4.0)
    """

    def __init__(
        self,
        num_seeds: int,
        num_users: int,
        *,
        targets_per_user: Sequence[int] | None = None,
        num_resamples: int = NUM_RESAMPLES,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        counts_U = np.ones(num_users, np.int64) if targets_per_user is None else np.array(targets_per_user)
        self._firsts_U = np.cumsum(counts_U) - counts_U
        self._seeds_RS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples) / num_seeds
        self._users_RU = np.empty((num_resamples, num_users), np.uint8)
        self._num_targets_R = np.empty(num_resamples, np.int64)
        for start in range(0, num_resamples, _CHUNK):
            rows = self._users_RU[start : start + _CHUNK]
            rows[:] = rng.multinomial(num_users, np.full(num_users, 1 / num_users), len(rows))
            self._num_targets_R[start : start + _CHUNK] = rows @ counts_U

    def means(self, values_ST: NDArray[Any]) -> NDArray[np.float64]:
        """The mean of each resample, (R,)."""
        sums_SU = np.add.reduceat(values_ST, self._firsts_U, axis=1)
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(self._users_RU), _CHUNK)]
        return np.concatenate(
            [
                np.einsum("ru,ru->r", self._seeds_RS[c] @ sums_SU, self._users_RU[c] / self._num_targets_R[c, None])
                for c in chunks
            ]
        )

    def mean(self, values_ST: NDArray[Any]) -> Interval:
        """The mean with its percentile interval."""
        return percentile_interval(float(values_ST.mean()), self.means(values_ST))

    def relative_difference(self, arm_ST: NDArray[Any], reference_ST: NDArray[Any]) -> Interval:
        """How far the arm's mean is above the reference's, relative to it, with the percentile interval.

        NaN where the reference's mean is 0.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            estimate = float(arm_ST.mean() / reference_ST.mean() - 1)
            ratios = self.means(arm_ST) / self.means(reference_ST) - 1
        return percentile_interval(estimate, ratios)

    def curves(self, curves: Curves) -> "ResampledCurves":
        """The mean curve of each resample."""
        quality_RP = np.stack([self.means(values_ST) for values_ST in curves.quality_SPT.swapaxes(0, 1)], axis=1)
        return ResampledCurves(
            (self._seeds_RS @ curves.spent_SP, quality_RP),
            (curves.spent_SP.mean(0)[None], curves.quality_SPT.mean((0, 2))[None]),
        )


_MeanCurves = tuple[NDArray[Any], NDArray[Any]]
"""What was spent and the mean quality at each point, (R, P) each."""


class ResampledCurves(NamedTuple):
    """Mean curves of an arm."""

    resamples: _MeanCurves
    """Of each resample."""
    measured: _MeanCurves
    """Of what was measured: one curve."""


def time_ratio(arm: ResampledCurves, reference: ResampledCurves, part: float = 1.0) -> Interval:
    """What an arm spends to reach a part of the reference's final quality, divided by what the reference spends on it.

    Infinite where the arm never reaches it, NaN where the reference does not. Each resample has its own mean curves,
    read as in `spent_to_reach`, and its own target.
    """
    ratios_R = _time_ratios(arm.resamples, reference.resamples, part)
    return percentile_interval(float(_time_ratios(arm.measured, reference.measured, part)[0]), ratios_R, "nearest")


def _time_ratios(arm: _MeanCurves, reference: _MeanCurves, part: float) -> NDArray[np.float64]:
    targets_R = part * reference[1][:, -1]
    spent_R, spent_by_reference_R = (
        np.array(
            [
                np.inf if (found := spent_to_reach(spent_P, quality_P, target)) is None else found
                for spent_P, quality_P, target in zip(*curves, targets_R, strict=True)
            ]
        )
        for curves in (arm, reference)
    )
    with np.errstate(invalid="ignore"):
        ratios: NDArray[np.float64] = spent_R / spent_by_reference_R
    return ratios


def spent_to_reach(spent: Sequence[float], quality: Sequence[float], target: float) -> float | None:
    """What had been spent when a curve first reached a target, with straight lines between its points; None if never.

    A target that the first point already reaches counts as reached there.

    Example:
        >>> spent_to_reach([10, 20, 30], [0.1, 0.2, 0.4], 0.3)
        25.0
        >>> spent_to_reach([10, 20], [0.1, 0.2], 0.3) is None
        True
    """
    for index, value in enumerate(quality):
        if value >= target:
            if index == 0:
                return float(spent[0])
            before = quality[index - 1]
            part = (target - before) / (value - before)
            return float(spent[index - 1] + part * (spent[index] - spent[index - 1]))
    return None


def largest_drop(quality: Sequence[float]) -> float:
    """How far, in parts of the best, a curve falls below its best after it.

    Example:
        >>> largest_drop([0.1, 0.5, 0.25, 0.35]), largest_drop([0.1, 0.2])
        (0.5, 0.0)
    """
    best = int(np.argmax(quality))
    return float(1 - min(quality[best:]) / quality[best]) if quality[best] > 0 else 0.0
