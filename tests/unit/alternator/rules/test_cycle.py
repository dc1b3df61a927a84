"""Cycle: fixed tenures, parity among them."""

import pytest

from alternator import Alternator, ConfigurationError, Cycle
from tests.unit.alternator.rule_table import MODULES


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cycle(0), "steps must be an integer of at least 1, got 0"),
        (lambda: Cycle((1, 2.5)), "steps must be an integer of at least 1, got 2.5"),
        (lambda: Alternator(MODULES, Cycle((1, 2))), r"one per module \(3\), got 2"),
    ],
)
def test_what_cannot_work_is_refused_when_built(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


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
