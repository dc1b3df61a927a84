"""`alternator.rules._regression` on the device: a robust line through the newest losses, whose count is known there.

Legend: R losses that the ring holds, P points (batch means of the losses, newest first), of which `count` are real.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from alternator.rules._regression import (
    MAD_TO_SD,
    MAX_AUTOCORRELATION,
    MAX_POINTS,
    MEAN_TO_SD,
    MIN_RISE,
    SURE_RISE,
    TRIM,
)


class _Points(NamedTuple):
    values_P: jax.Array
    positions_P: jax.Array
    real_P: jax.Array
    number: jax.Array
    spread: jax.Array


class _Fit(NamedTuple):
    mean: jax.Array
    slope: jax.Array
    residuals_P: jax.Array
    squares: jax.Array


def robust_gain(losses_R: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`alternator.rules._regression.robust_gain` of the last ``count`` losses: the rate, and its standard error.

    Losses are taken relative to the newest and to their range, so that neither an offset nor the unit costs digits.
    """
    real_R = jnp.arange(losses_R.shape[0]) >= losses_R.shape[0] - count
    newest = losses_R[-1]
    centred_R = jnp.where(real_R, losses_R - newest, 0)
    range_ = jnp.abs(centred_R).max()
    unit = jnp.where(range_ > 0, range_, 1)
    points, size = _batch_means(centred_R / unit, count)
    fit = _robust_fit(points)
    variance = fit.squares / (points.number - 2)
    end = newest / unit + fit.mean + fit.slope * ((points.number - 1) / 2 + (size - 1) / (2 * size))
    level = jnp.maximum(jnp.maximum(jnp.abs(end), jnp.sqrt(variance)), jnp.abs(fit.slope)) * size
    level = jnp.where((range_ > 0) & (level > 0), level, jnp.inf)
    rho = _autocorrelation(fit, points.number)
    stderr = jnp.sqrt(variance / points.spread) * jnp.sqrt((1 + rho) / (1 - rho))
    return -fit.slope / level, stderr / level


def rises(losses_R: jax.Array, count: jax.Array) -> jax.Array:
    """`alternator.rules._regression.rises` of the last ``count`` losses."""
    position_R = jnp.arange(losses_R.shape[0]) - (losses_R.shape[0] - count)
    weights_R = position_R - (count - 1) / 2
    return jnp.where(position_R >= 0, weights_R * (losses_R - losses_R[-1]), 0).sum() > 0


def surely_rises(losses_R: jax.Array, count: jax.Array) -> jax.Array:
    """`alternator.rules._regression.surely_rises` of the last ``count`` losses, at most `MAX_POINTS`."""
    real_R = jnp.arange(losses_R.shape[0]) >= losses_R.shape[0] - count
    centred_R = jnp.where(real_R, losses_R - losses_R[-1], 0)
    range_ = jnp.abs(centred_R).max()
    points, _ = _batch_means(centred_R / jnp.where(range_ > 0, range_, 1), jnp.maximum(count, MIN_RISE))
    fit = _fit(points, points.values_P)
    stderr = jnp.sqrt(fit.squares / (points.number - 2) / points.spread)
    return (count >= MIN_RISE) & (fit.slope > SURE_RISE * stderr)


def _batch_means(losses_R: jax.Array, count: jax.Array) -> tuple[_Points, jax.Array]:
    """Means of groups of equal size, the newest complete; the size is 1 for up to `MAX_POINTS` losses."""
    size = -(-count // MAX_POINTS)
    groups_R = jnp.arange(losses_R.shape[0])[::-1] // size
    sums_P = jax.ops.segment_sum(losses_R, groups_R, MAX_POINTS)  # groups beyond the last are dropped
    num_points = count // size
    real_P = jnp.arange(MAX_POINTS) < num_points
    number = num_points.astype(losses_R.dtype)
    positions_P = jnp.where(real_P, (number - 1) / 2 - jnp.arange(MAX_POINTS), 0)
    values_P = jnp.where(real_P, sums_P / size, 0)
    return _Points(values_P, positions_P, real_P, number, number * (number * number - 1) / 12), size


def _fit(points: _Points, values_P: jax.Array) -> _Fit:
    mean = values_P.sum() / points.number
    centred_P = jnp.where(points.real_P, values_P - mean, 0)
    slope = (points.positions_P * centred_P).sum() / points.spread
    residuals_P = centred_P - slope * points.positions_P
    return _Fit(mean, slope, residuals_P, (residuals_P * residuals_P).sum())


def _robust_fit(points: _Points) -> _Fit:
    """Least squares, with outliers from a line that they cannot move pulled in."""
    count = points.number.astype(jnp.int32)
    half = count // 2
    newer_P = jnp.arange(MAX_POINTS)
    falls_P = points.values_P - points.values_P[jnp.minimum(newer_P + count - half, MAX_POINTS - 1)]
    slope = _sorted(falls_P, newer_P < half)[half // 2] / (count - half)
    heights_P = points.values_P - slope * points.positions_P
    height = _sorted(heights_P, points.real_P)[half]
    distances_P = jnp.where(points.real_P, heights_P - height, 0)
    median = _sorted(jnp.abs(distances_P), points.real_P)[half]
    mean = jnp.abs(distances_P).sum() / points.number
    cut = TRIM * jnp.where(median > 0, MAD_TO_SD * median, MEAN_TO_SD * mean)
    pulled_P = height + slope * points.positions_P + jnp.clip(distances_P, -cut, cut)
    outliers = points.real_P & (jnp.abs(distances_P).max() > cut)
    return _fit(points, jnp.where(outliers, pulled_P, points.values_P))


def _sorted(values_P: jax.Array, real_P: jax.Array) -> jax.Array:
    return jnp.sort(jnp.where(real_P, values_P, jnp.inf))


def _autocorrelation(fit: _Fit, count: jax.Array) -> jax.Array:
    lagged = (fit.residuals_P[:-1] * fit.residuals_P[1:]).sum()
    rho = lagged / jnp.where(fit.squares == 0, 1, fit.squares)
    corrected = jnp.clip((count * rho + 2) / (count - 4), 0, MAX_AUTOCORRELATION)
    return jnp.where(fit.squares == 0, 0, corrected)
