"""Plateau: the original rule's numbers."""

import pytest

from alternator import Alternator, ConfigurationError, Plateau
from tests.unit.alternator.rule_table import losses_of


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
    ],
)
def test_what_cannot_work_is_refused_when_built(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


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


@pytest.mark.parametrize(
    ("newest", "base", "text"),
    [
        (1.1, 1.0, "the loss rises: change rate 0.1 ≥ 0.01"),
        (0.9, 1.0, "change rate 0.1 ≥ 0.01"),
        (0.5, 0.0, "the loss rises: change rate inf ≥ 0.01"),
        (-0.5, 0.0, "change rate inf ≥ 0.01"),
        (1.001, 1.0, "change rate 0.001 < 0.01"),
    ],
)
def test_it_says_where_the_loss_rises(newest, base, text):
    alternator = Alternator(("a", "b"), Plateau(min_steps=1, window=3))
    decision = [alternator.observe(loss) for loss in (3.0, base, newest)][-1]
    assert f"({text})" in decision.explain()
