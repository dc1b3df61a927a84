"""A straight line through the newest losses: how fast they fall, and how certain that is.

Positions are 0, 1, 2, ... (one per loss) and centred, and the losses are centred before any sum, so that large offsets
cost no digits and float32 suffices on a device.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from math import sqrt
from operator import mul, sub
from typing import NamedTuple

TRIM = 3.5
"""Residuals beyond this number of robust standard deviations are outliers (Iglewicz and Hoaglin 1993, section 3.3)."""
MAD_TO_SD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
MEAN_TO_SD = 1.2533
"""The same for the mean absolute deviation, which stands in where the median is 0."""
MAX_POINTS = 32
"""The maximum number of points of a line: more losses are averaged in groups of equal size first (batch means)."""
MIN_RISE = 3
"""The minimum number of losses of which a rise can be told: a line through two is always certain."""
SURE_RISE = 1.645
"""The number of standard errors above 0 from which a slope is called a rise: a one-sided confidence of 95%."""
MAX_AUTOCORRELATION = 0.99
"""The maximum of the estimated autocorrelation: the standard error is inflated at most 14-fold."""

_SMALLEST, _LARGEST = 1e-100, 1e100  # beyond these, squares may vanish or overflow: losses are scaled first


class FittedLine(NamedTuple):
    """A fitted line.

    Attributes:
        slope: Change per position; negative while the loss falls.
        stderr: Standard error of the slope for independent residuals: √(SSE / (n - 2) / Sxx).
        end: Height of the line at the newest loss.
        deviation: Standard deviation of the residuals: √(SSE / (n - 2)).
    """

    slope: float
    stderr: float
    end: float
    deviation: float


class RelativeGain(NamedTuple):
    """How much the loss falls per position, as a fraction of its level.

    Attributes:
        rate: The fraction; negative while the loss rises.
        stderr: Its standard error, inflated for autocorrelation.
    """

    rate: float
    stderr: float


class _Fit(NamedTuple):
    mean: float
    slope: float
    residuals: list[float]
    squares: float


def least_squares(losses: Sequence[float]) -> FittedLine:
    """The ordinary least-squares line through three or more losses.

    Example:
        >>> least_squares([3.0, 2.0, 1.0, 0.0])
        FittedLine(slope=-1.0, stderr=0.0, end=0.0, deviation=0.0)
    """
    return _line(_fit(losses))


def robust_gain(losses: Sequence[float]) -> RelativeGain:
    """The relative gain of ten or more losses, robust to spikes and to autocorrelated noise.

    1. More than `MAX_POINTS` losses are averaged in groups of equal size, the newest complete: batch means keep
       almost everything that the losses say about the slope, and cost less. What follows is done on the means.
    2. Outliers are found by their residuals from a line that they cannot move: Theil's incomplete method (Theil 1950),
       the median slope between losses half the series apart, through the median height. Residuals beyond `TRIM` robust
       standard deviations (from the median absolute deviation) are pulled in to that distance, then the line is fitted
       by least squares: one step of Huber's pseudo-values (Huber 1981, section 7.8). Trimming acts on residuals, never
       on values: cutting off the largest losses of a falling series would bias its slope.
    3. The standard error is multiplied by √((1 + ρ) / (1 - ρ)), as AR(1) noise asks for. ρ is the residuals' lag-1
       autocorrelation, corrected for the bias that residuals from a line have, about -(2 + 4 ρ) / n (Kendall 1954),
       and not below 0.
    4. Both are divided by the level, max(abs(end), deviation, abs(slope)), end being the line's height at the newest
       loss. The other two keep losses around zero from dividing by nothing. Losses may be negative.

    The result does not depend on the unit of the losses; constant losses have gain 0 ± 0.

    Example:
        >>> gain = robust_gain([2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0])
        >>> round(gain.rate, 6), round(gain.stderr, 6)
        (0.1, 0.0)
    """
    points, size = _batch_means(losses)
    if not _SMALLEST < max(max(points), -min(points)) < _LARGEST:
        points, size = _batch_means(_scaled(losses))
    fit = _robust_fit(points)
    line = _line(fit)
    end = line.end + line.slope * (size - 1) / (2 * size)
    level = max(abs(end), line.deviation, abs(line.slope))
    if level == 0:
        return RelativeGain(0.0, 0.0)
    rho = _autocorrelation(fit)
    return RelativeGain(-line.slope / level / size, line.stderr / level / size * sqrt((1 + rho) / (1 - rho)))


def rises(losses: Sequence[float]) -> bool:
    """Whether the plain least-squares slope is above 0: a cheap first look.

    Example:
        >>> rises([1.0, 1.1, 1.2]), rises([1.0, 0.9, 0.8])
        (True, False)
    """
    moment: float = sum(map(mul, _positions(len(losses)), losses))
    return moment > 0


def surely_rises(losses: Sequence[float]) -> bool:
    """Whether the slope of three or more losses is above 0 by `SURE_RISE` standard errors; never of fewer.

    Example:
        >>> surely_rises([0.9, 1.0, 1.2, 1.3]), surely_rises([1.0, 1.3, 0.9, 1.1]), surely_rises([1.0, 1.1])
        (True, False, False)
    """
    if len(losses) < MIN_RISE:
        return False
    line = least_squares(losses)
    return line.slope > SURE_RISE * line.stderr


@lru_cache(maxsize=256)
def _positions(count: int) -> tuple[float, ...]:
    return tuple(position - (count - 1) / 2 for position in range(count))


def _fit(values: Sequence[float]) -> _Fit:
    count = len(values)
    mean = sum(values) / count
    positions = _positions(count)
    centred = [value - mean for value in values]
    slope = sum(map(mul, positions, centred)) / _spread(count)
    residuals = [value - slope * position for value, position in zip(centred, positions, strict=True)]
    return _Fit(mean, slope, residuals, sum(map(mul, residuals, residuals)))


def _spread(count: int) -> float:
    return count * (count * count - 1) / 12  # Sxx, the sum of squared centred positions


def _line(fit: _Fit) -> FittedLine:
    count = len(fit.residuals)
    variance = fit.squares / (count - 2)
    end = fit.mean + fit.slope * (count - 1) / 2
    return FittedLine(fit.slope, sqrt(variance / _spread(count)), end, sqrt(variance))


def _robust_fit(values: Sequence[float]) -> _Fit:
    count = len(values)
    half = count // 2
    positions = _positions(count)
    slope = sorted(map(sub, values[count - half :], values[:half]))[half // 2] / (count - half)
    heights = [value - slope * position for value, position in zip(values, positions, strict=True)]
    height = sorted(heights)[half]
    sizes = sorted(abs(value - height) for value in heights)
    cut = TRIM * (MAD_TO_SD * sizes[half] or MEAN_TO_SD * sum(sizes) / count)
    if sizes[-1] <= cut:
        return _fit(values)
    return _fit(
        [
            height + slope * position + min(max(value - height, -cut), cut)
            for value, position in zip(heights, positions, strict=True)
        ]
    )


def _autocorrelation(fit: _Fit) -> float:
    if fit.squares == 0:
        return 0.0
    count = len(fit.residuals)
    rho: float = sum(map(mul, fit.residuals, islice(fit.residuals, 1, None))) / fit.squares
    return min(max((count * rho + 2) / (count - 4), 0.0), MAX_AUTOCORRELATION)


def _scaled(losses: Sequence[float]) -> Sequence[float]:
    peak = max(max(losses), -min(losses))
    return [loss / peak for loss in losses] if peak else losses


def _batch_means(losses: Sequence[float]) -> tuple[Sequence[float], int]:
    size = -(-len(losses) // MAX_POINTS)
    if size == 1:
        return losses, 1
    newest = iter(losses[len(losses) % size :])
    return [total / size for total in map(sum, zip(*[newest] * size, strict=True))], size
