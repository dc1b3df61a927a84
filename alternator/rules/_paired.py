"""Differences of losses on the same examples, in standard errors."""

from collections.abc import Sequence
from math import copysign, inf, isfinite, sqrt


def standard_score(differences: Sequence[float]) -> float:
    """The mean in standard errors.

    Of equal differences it is infinite, with their sign, or 0 where they are 0; it is infinite where the variance is
    not finite.

    Example:
        >>> standard_score([1.0, 3.0]), standard_score([-1.0, -1.0]), standard_score([0.0, 0.0])
        (2.0, -inf, 0.0)
    """
    count = len(differences)
    mean = sum(differences) / count
    variance = sum((each - mean) * (each - mean) for each in differences) / (count * (count - 1))
    if not isfinite(variance):
        return inf
    if variance > 0:
        return mean / sqrt(variance)
    return copysign(inf, mean) if mean else 0.0
