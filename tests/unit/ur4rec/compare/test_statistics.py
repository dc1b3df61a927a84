import numpy as np
import pytest
from scipy import stats

from ur4rec.compare.statistics import Curves, Resamples, largest_drop, spent_to_reach, time_ratio


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_one_seed_is_the_paired_bootstrap_of_scipy(rng):
    reference_T = rng.gamma(2.0, size=200)
    arm_T = 1.1 * reference_T + rng.normal(0, 0.3, 200)
    ours = Resamples(1, 200, num_resamples=4000).relative_difference(arm_T[None], reference_T[None])
    theirs = stats.bootstrap(
        (arm_T, reference_T),
        lambda arm, reference, axis: arm.mean(axis) / reference.mean(axis) - 1,
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=rng,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.estimate == pytest.approx(arm_T.mean() / reference_T.mean() - 1)
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=0.06 * width)


def test_variance_is_the_sum_of_what_seeds_and_users_add(rng):
    seeds_S, users_T = rng.normal(0, 1, 5), rng.normal(0, 2, 300)
    means = Resamples(5, 300, num_resamples=8000).means(seeds_S[:, None] + users_T[None, :])
    assert means.var() == pytest.approx(seeds_S.var() / 5 + users_T.var() / 300, rel=0.06)
    assert means.mean() == pytest.approx(seeds_S.mean() + users_T.mean(), abs=0.03)


def test_pairing_takes_out_what_arms_share(rng):
    shared_ST = rng.gamma(1.0, size=(3, 400))
    resamples = Resamples(3, 400, num_resamples=1000)
    paired = resamples.relative_difference(1.05 * shared_ST, shared_ST)
    unpaired = resamples.relative_difference(1.05 * rng.permuted(shared_ST, axis=1), shared_ST)
    assert paired.low == pytest.approx(0.05)
    assert paired.high == pytest.approx(0.05)
    assert paired.excludes_zero
    assert not unpaired.excludes_zero


def test_equal_arms_differ_by_nothing(rng):
    values_ST = rng.random((2, 30))
    assert Resamples(2, 30, num_resamples=100).relative_difference(values_ST, values_ST) == (0, 0, 0)


def test_draws_are_reproducible():
    first, second, other = (Resamples(2, 9, num_resamples=50, seed=seed) for seed in (0, 0, 1))
    values_ST = np.arange(18.0).reshape(2, 9)
    assert (first.means(values_ST) == second.means(values_ST)).all()
    assert (first.means(values_ST) != other.means(values_ST)).any()


def test_the_targets_of_a_user_are_drawn_together(rng):
    values_SU, counts_U = rng.normal(size=(2, 40)), np.full(40, 3)
    one, three = (Resamples(2, 40, targets_per_user=counts, num_resamples=100) for counts in (None, counts_U))
    np.testing.assert_allclose(three.means(np.repeat(values_SU, 3, axis=1)), one.means(values_SU))


def test_a_resample_weighs_every_target_alike(rng):
    counts_U = np.array([1, 4, 2])
    values_ST = rng.normal(size=(1, 7))
    resamples = Resamples(1, 3, targets_per_user=counts_U, num_resamples=50)
    users_T = np.repeat(np.arange(3), counts_U)
    weights_RT = resamples._users_RU[:, users_T].astype(float)
    expected_R = (weights_RT * values_ST).sum(1) / weights_RT.sum(1)
    np.testing.assert_allclose(resamples.means(values_ST), expected_R)


@pytest.mark.parametrize(
    ("target", "spent"), [(0.05, 10.0), (0.1, 10.0), (0.15, 15.0), (0.3, 30.0), (0.4, 40.0), (0.41, None)]
)
def test_spent_to_reach_is_the_first_crossing(target, spent):
    assert spent_to_reach([10, 20, 30, 40], [0.1, 0.2, 0.3, 0.4], target) == (spent and pytest.approx(spent))


def test_spent_to_reach_counts_a_curve_that_falls_again():
    assert spent_to_reach([1, 2, 3], [0.0, 0.4, 0.1], 0.2) == pytest.approx(1.5)


def test_largest_drop_looks_only_after_the_best():
    assert largest_drop([0.0, 0.1, 0.8, 0.6, 0.4, 0.7]) == pytest.approx(0.5)
    assert largest_drop([0.5, 0.1, 0.8]) == 0
    assert largest_drop([0.0, 0.0]) == 0


def rising(rng, speed, num_seeds=3, num_users=200, noise=0.0):
    """Curves that come to 1 at a spending of 10 / speed, with noise of each user."""
    spent_SP = np.tile(np.arange(1.0, 11.0), (num_seeds, 1))
    mean_P = np.minimum(speed * spent_SP[0] / 10, 1.0)
    return Curves(spent_SP, mean_P[:, None] + noise * rng.normal(size=(num_seeds, 10, num_users)))


def test_time_ratio_is_how_much_sooner_a_curve_arrives(rng):
    resamples = Resamples(3, 200, num_resamples=200)
    slow, fast = resamples.curves(rising(rng, 1.0)), resamples.curves(rising(rng, 2.0))
    assert time_ratio(fast, slow) == pytest.approx((0.5, 0.5, 0.5))
    assert time_ratio(fast, slow, 0.8) == pytest.approx((0.5, 0.5, 0.5))
    assert time_ratio(slow, fast) == pytest.approx((2.0, 2.0, 2.0))
    assert time_ratio(slow, slow) == pytest.approx((1.0, 1.0, 1.0))


def test_a_curve_that_never_arrives_takes_for_ever(rng):
    low, whole = (Resamples(3, 200, num_resamples=50).curves(rising(rng, speed)) for speed in (0.5, 1.0))
    assert time_ratio(low, whole) == (np.inf, np.inf, np.inf)


def test_the_interval_of_a_time_ratio_covers_the_truth_and_is_wider_with_more_noise(rng):
    resamples = Resamples(3, 200, num_resamples=500)
    quiet, loud = (
        time_ratio(*(resamples.curves(rising(rng, speed, noise=noise)) for speed in (2.0, 1.0)))
        for noise in (0.05, 0.5)
    )
    assert quiet.low <= 0.5 <= quiet.high
    assert loud.high - loud.low > quiet.high - quiet.low > 0
