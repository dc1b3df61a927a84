"""Values without their names: every rule answers with the spelling that was meant."""

import inspect

import numpy as np
import pytest

from alternator import ConfigurationError, Cycle, Gain, Payoff, Plateau, RandomTenure, Trend
from alternator.rules.named import RULES


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cycle(5, 1), "Cycle takes steps as one number or one per module: Cycle(steps=(5, 1))"),
        (
            lambda: Cycle((5, 1), 2),
            "Cycle takes its parameters by name: Cycle(steps=(5, 1)); it has no more than steps",
        ),
        (lambda: Trend(0.01), "Trend takes its parameters by name: Trend(min_gain=0.01)"),
        (lambda: Trend(0.01, window=50), "Trend takes its parameters by name: Trend(min_gain=0.01, window=50)"),
        (lambda: Plateau(0.01, 5), "Plateau takes its parameters by name: Plateau(threshold=0.01, min_steps=5)"),
        (lambda: Payoff(3, 2, 2), "Payoff takes costs as one number per turn: Payoff(costs=(3, 2, 2))"),
        (lambda: Payoff((3, 2), 0.5), "Payoff takes its parameters by name: Payoff(costs=(3, 2), share=0.5)"),
        (lambda: Gain("x" * 500), f"Gain takes its parameters by name: Gain(min_steps='{'x' * 199}...)"),
        (
            lambda: RandomTenure(30, 1, 5, 2),
            "RandomTenure takes its parameters by name: RandomTenure(mean=30, seed=1, min_steps=5); "
            "it has no more than mean, seed, min_steps",
        ),
    ],
)
def test_the_spelling_that_was_meant(build, message):
    with pytest.raises(ConfigurationError) as refused:
        build()
    assert str(refused.value) == message


@pytest.mark.parametrize("name", RULES)
def test_no_rule_takes_a_value_too_many(name):
    many = len(inspect.signature(RULES[name]).parameters) + 1
    with pytest.raises(ConfigurationError, match=f"^{RULES[name].__name__} takes .* by name: "):
        RULES[name](*["x"] * many)


def test_what_is_meant_can_be_given():
    assert Cycle(steps=(5, 1)) == Cycle((5, 1)) == Cycle(np.array([5, 1]))
    assert RandomTenure(30, 1, 5) == RandomTenure(mean=30, seed=1, min_steps=5)
    assert str(inspect.signature(Cycle)) == "(steps: int | tuple[int, ...] = 1) -> None"
