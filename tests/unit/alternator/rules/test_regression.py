"""The line through the losses: against scipy, against planted noise, spikes and autocorrelation, and in float32."""

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import linregress

from alternator.rules._regression import (
    MAD_TO_SD,
    MAX_AUTOCORRELATION,
    MAX_POINTS,
    TRIM,
    RelativeGain,
    least_squares,
    rises,
    robust_gain,
)
from tests.unit.alternator.runs import noisy


@given(
    count=st.integers(3, 200),
    seed=st.integers(0, 10**6),
    slope=st.sampled_from([0.0, 0.002, -0.01]),
    noise=st.sampled_from([1e-3, 0.1, 3.0]),
    offset=st.sampled_from([0.0, -5.0, 1e3, -1e5]),
    unit=st.sampled_from([1.0, 1e-30, 1e30]),
)
@settings(max_examples=200)
def test_slope_and_standard_error_agree_with_scipy(count, seed, slope, noise, offset, unit):
    losses = [loss * unit for loss in noisy(seed, count, slope, noise, offset=offset)]
    expected = linregress(np.arange(count), losses)
    line = least_squares(losses)
    size = noise * unit
    assert line.slope == pytest.approx(expected.slope, rel=1e-9, abs=1e-9 * size)
    assert line.stderr == pytest.approx(expected.stderr, rel=1e-9, abs=1e-9 * size)
    assert line.end == pytest.approx(expected.intercept + expected.slope * (count - 1), rel=1e-9)


def test_a_perfect_line_has_no_standard_error():
    line = least_squares([5.0 - 0.5 * step for step in range(20)])
    assert line == pytest.approx((-0.5, 0.0, -4.5, 0.0), abs=1e-14)


@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("count", [40, 120, 200])
def test_the_standard_error_is_the_spread_of_the_rate(rho, count):
    gains = [robust_gain(noisy(seed, count, rho=rho)) for seed in range(400)]
    spread = statistics.stdev(gain.rate for gain in gains)
    stated = statistics.median(gain.stderr for gain in gains)
    assert 0.8 < stated / spread < 1.25


def test_the_rate_is_relative_to_the_newest_level():
    falling = robust_gain([200.0 - step for step in range(101)])
    assert falling == pytest.approx((0.01, 0.0), abs=1e-9)
    assert robust_gain([-100.0 - step for step in range(101)]).rate == pytest.approx(1 / 200, rel=1e-9)


@pytest.mark.parametrize("factor", [1e-300, 1e-3, 1e3, 1e300])
def test_the_unit_of_the_losses_does_not_matter(factor):
    losses = noisy(1, 90, slope=0.002)
    assert robust_gain([loss * factor for loss in losses]) == pytest.approx(robust_gain(losses), rel=1e-9)


def test_spikes_are_pulled_in():
    clean = noisy(3, 200, slope=0.002, noise=0.05)
    spiked = [loss * (30 if step % 41 == 7 else 1) for step, loss in enumerate(clean)]
    assert abs(robust_gain(spiked).rate - robust_gain(clean).rate) < 2 * robust_gain(clean).stderr
    assert abs(least_squares(spiked).slope - least_squares(clean).slope) > 0.002  # what untrimmed spikes do
    assert robust_gain(spiked).stderr < 4 * robust_gain(clean).stderr


def test_trimming_residuals_does_not_bias_the_slope():
    slopes = [robust_gain(noisy(seed, 40, slope=0.005, noise=0.02)).rate for seed in range(300)]
    true = statistics.mean(-least_squares(noisy(0, 40, slope=0.005, noise=0.0)).slope for _ in range(1))
    true /= least_squares(noisy(0, 40, slope=0.005, noise=0.0)).end
    assert statistics.mean(slopes) == pytest.approx(true, rel=0.02)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e308, 5e-324, 0.1])
@pytest.mark.parametrize("count", [10, 41, 200])
def test_constant_losses_gain_nothing(value, count):
    gain = robust_gain([value] * count)
    assert gain == pytest.approx((0.0, 0.0), abs=1e-12)


def test_a_line_that_ends_at_zero_has_a_finite_rate():
    assert robust_gain([float(19 - step) for step in range(20)]) == RelativeGain(1.0, 0.0)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=10, max_size=90))
@settings(max_examples=300)
def test_any_finite_losses_give_finite_numbers(losses):
    gain = robust_gain(losses)
    assert math.isfinite(gain.rate)
    assert math.isfinite(gain.stderr)
    assert gain.stderr >= 0
    assert rises(losses) in (True, False)


def test_autocorrelation_is_neither_negative_nor_above_its_limit():
    alternating = [1.0 + 0.1 * (-1) ** step for step in range(30)]
    line = least_squares(alternating)
    assert robust_gain(alternating).stderr == pytest.approx(line.stderr / line.end)
    wave = [1.0 + 0.1 * math.sin(math.pi * step / 15) for step in range(30)]
    line = least_squares(wave)
    limit = math.sqrt((1 + MAX_AUTOCORRELATION) / (1 - MAX_AUTOCORRELATION))
    assert line.stderr / line.end * 4 < robust_gain(wave).stderr <= line.stderr / line.end * limit * (1 + 1e-12)


def gain_in_float32(losses):
    """The same formulas with every number in float32, as on a device."""
    f = np.float32

    def fit(values):
        position = np.arange(len(values), dtype=f) - f((len(values) - 1) / 2)
        mean = values.mean(dtype=f)
        slope = (position * (values - mean)).sum(dtype=f) / f(len(values) * (len(values) ** 2 - 1) / 12)
        return mean, slope, position, values - mean - slope * position

    def middle(values):
        return np.sort(values)[len(values) // 2]

    size = -(-len(losses) // MAX_POINTS)
    points = np.asarray(losses[len(losses) % size :], f).reshape(-1, size).mean(1, dtype=f)
    count, half = len(points), len(points) // 2
    steep = middle(points[count - half :] - points[:half]) / f(count - half)
    ramp = steep * (np.arange(count, dtype=f) - f((count - 1) / 2))
    height = middle(points - ramp)
    cut = f(TRIM * MAD_TO_SD) * middle(np.abs(points - ramp - height))
    mean, slope, position, residuals = fit(height + ramp + np.clip(points - ramp - height, -cut, cut))
    squares = (residuals * residuals).sum(dtype=f)
    deviation = np.sqrt(squares / f(count - 2))
    end = mean + slope * (position[-1] + f((size - 1) / (2 * size)))
    level = max(abs(end), deviation, abs(slope)) * f(size)
    rho = (residuals[1:] * residuals[:-1]).sum(dtype=f) / squares
    rho = np.clip((count * rho + f(2)) / f(count - 4), f(0), f(MAX_AUTOCORRELATION))
    stderr = deviation / np.sqrt(f(count * (count**2 - 1) / 12))
    return float(-slope / level), float(stderr / level * np.sqrt((1 + rho) / (1 - rho)))


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_float32_stays_within_the_stated_tolerance(offset):
    draw = random.Random(5)
    for seed in range(300):
        count = draw.choice([10, 20, 28, 50, 68, 95, 150, 200])
        slope, noise = draw.choice([0.0, 4e-4, 0.002, -0.005]), 10 ** draw.uniform(-3, -0.5)
        losses = [float(np.float32(loss)) for loss in noisy(seed, count, slope, noise, offset=offset)]
        gain, (rate, stderr) = robust_gain(losses), gain_in_float32(losses)
        assert abs(rate - gain.rate) < 1e-6
        assert abs(stderr - gain.stderr) < 0.01 * gain.stderr + 1e-7
