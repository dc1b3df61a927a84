"""Cycle, Plateau and RandomTenure."""

import statistics

import pytest

import alternator
from alternator import Alternator, ConfigurationError, Cycle, Plateau, RandomTenure
from alternator.rules.random_tenure import hash32
from tests.unit.alternator.rule_table import MODULES, losses_of


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Plateau(window=1), "window must be at least 3, got 1"),
        (lambda: Plateau(window=True), "window must be at least 3, got True"),
        (lambda: Plateau(window=10.0), "window must be at least 3, got 10.0"),
        (lambda: Plateau(threshold=0), "threshold must be a finite number above 0, got 0"),
        (lambda: Plateau(threshold=float("nan")), "threshold must be a finite number above 0, got nan"),
        (lambda: Plateau(threshold="0.1"), "threshold must be a finite number above 0, got '0.1'"),
        (lambda: Plateau(min_steps=0), "min_steps must be an integer of at least 1, got 0"),
        (lambda: Cycle(0), "steps must be an integer of at least 1, got 0"),
        (lambda: Cycle((1, 2.5)), "steps must be an integer of at least 1, got 2.5"),
        (lambda: Alternator(MODULES, Cycle((1, 2))), r"one per module \(3\), got 2"),
        (lambda: RandomTenure(0.5), r"mean must lie between min_steps \(1\)"),
        (lambda: RandomTenure(3, min_steps=4), r"mean must lie between min_steps \(4\)"),
        (lambda: RandomTenure(2.0**32), "mean must lie between"),
        (lambda: RandomTenure(-1), "mean must be a finite number above 0"),
        (lambda: RandomTenure(2, seed=2**32), r"seed must be below 2\*\*32"),
        (lambda: RandomTenure(2, seed=-1), "seed must be an integer of at least 0"),
    ],
)
def test_what_cannot_work_is_refused_when_built(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


def test_every_public_name_is_there():
    assert all(hasattr(alternator, name) for name in alternator.__all__)
    assert list(alternator.__all__) == sorted(alternator.__all__)


@pytest.mark.parametrize(("window", "lag"), [(3, 1), (5, 2), (10, 4), (20, 9)])
def test_plateau_looks_k_losses_back(window, lag):
    rule = Plateau(window=window, min_steps=1, threshold=1e-9)
    assert rule.lag == lag == window - 1 - window // 2
    alternator = Alternator(("a", "b"), rule)
    losses = [float(2**step) for step in range(window)]
    decisions = [alternator.observe(loss) for loss in losses]
    assert decisions[-1].value == abs(losses[-1] - losses[-1 - lag]) / losses[-1 - lag]


def test_a_larger_plateau_threshold_switches_at_least_as_often():
    losses = losses_of(seed=1, num_steps=2000)
    switches = []
    for threshold in (0.005, 0.01, 0.02, 0.05, 0.1, 0.5):
        alternator = Alternator(("a", "b"), Plateau(threshold=threshold))
        for loss in losses:
            alternator.observe({"a": loss, "b": loss})
        switches.append(alternator.stats().switch_count)
    assert switches == sorted(switches)
    assert switches[0] < switches[-1]


def test_parity_trains_the_first_module_on_even_steps():
    alternator = Alternator(("a", "b"), Cycle(1))
    trained = []
    for _ in range(6):
        trained.append(alternator.active)
        alternator.advance()
    assert trained == ["a", "b", "a", "b", "a", "b"]


def test_cycle_takes_one_tenure_per_module():
    assert Cycle([2, 1]) == Cycle((2, 1))
    alternator = Alternator(("a", "b"), Cycle([2, 1]))
    assert [alternator.advance().active for _ in range(6)] == ["a", "b", "a", "a", "b", "a"]


def tenures(rule, num_steps, seed=None):
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
    assert [hash32(0, 0), hash32(0, 1), hash32(7, 2**32 - 1)] == HASHES


HASHES = [2856213345, 1863002342, 4059397445]
