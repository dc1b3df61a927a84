"""RandomTenure: the lengths of its tenures, and draws that never change."""

import statistics

import pytest

from alternator import Alternator, ConfigurationError, RandomTenure
from alternator.rules.random_tenure import hash32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomTenure(0.5), r"mean must lie between min_steps \(1\)"),
        (lambda: RandomTenure(3, min_steps=4), r"mean must lie between min_steps \(4\)"),
        (lambda: RandomTenure(2.0**32), "mean must lie between"),
        (lambda: RandomTenure(-1), "mean must be a finite number above 0"),
        (lambda: RandomTenure(2, seed=2**32), r"seed must be an integer of at most 4294967295"),
        (lambda: RandomTenure(2, seed=-1), "seed must be an integer of at least 0"),
    ],
)
def test_what_cannot_work_is_refused_when_built(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


def tenures(rule, num_steps):
    alternator = Alternator(("a", "b"), rule)
    lengths, length = [], 0
    for _ in range(num_steps):
        length += 1
        if alternator.advance().switched:
            lengths.append(length)
            length = 0
    return lengths


@pytest.mark.parametrize(("mean", "min_steps"), [(1, 1), (2, 1), (7.5, 1), (12, 5), (40, 1), (5, 5)])
def test_random_tenures_have_the_mean_and_the_least_length(mean, min_steps):
    lengths = tenures(RandomTenure(mean, seed=11, min_steps=min_steps), 40_000)
    error = mean / len(lengths) ** 0.5
    assert statistics.mean(lengths) == pytest.approx(mean, abs=4 * error)
    assert min(lengths) == min_steps


def test_random_tenures_differ_by_seed_and_are_geometric():
    first, second = (tenures(RandomTenure(4, seed=seed), 20_000) for seed in (0, 1))
    assert first != second
    ones = first.count(1) / len(first)
    assert ones == pytest.approx(1 / 4, abs=0.03)


def test_random_tenure_draws_only_for_updated_steps():
    plain = Alternator(("a", "b"), RandomTenure(3, seed=5))
    skipping = Alternator(("a", "b"), RandomTenure(3, seed=5))
    for _ in range(200):
        assert not skipping.advance(updated=False).switched
        assert plain.advance().active == skipping.advance().active


def test_the_hash_is_fixed_so_that_saved_runs_go_on_alike():
    assert [hash32(0, 0), hash32(0, 1), hash32(7, 2**32 - 1)] == [2856213345, 1863002342, 4059397445]
