"""Gain: the module that learns most per cost trains, and none waits too long."""

import math
import random

import pytest

from alternator import Alternator, ConfigurationError, Gain, Reason
from tests.unit.alternator.runs import shares


def train(alternator, rates, num_steps, noise=0.0):
    """Each module's loss falls by its own rate in each of its own updates; all losses are seen at every step."""
    draw = random.Random(0)
    own = dict.fromkeys(rates, 0)
    decisions = []
    for _ in range(num_steps):
        own[alternator.active] += 1
        losses = {name: math.exp(-rates[name] * own[name]) * (1 + noise * draw.gauss(0, 1)) for name in rates}
        decisions.append(alternator.observe(losses))
    return decisions


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_the_module_that_learns_most_gets_most_updates(noise):
    alternator = Alternator(tuple("abc"), Gain())
    train(alternator, {"a": 1e-4, "b": 5e-3, "c": 0.0}, 3000, noise)
    assert shares(alternator)["b"] > 0.7


def test_the_least_share_is_what_max_wait_grants():
    alternator = Alternator(tuple("ab"), Gain(min_steps=20, max_wait=100))
    train(alternator, {"a": 0.0, "b": 1e-3}, 2420)
    assert shares(alternator)["a"] == pytest.approx(20 / 120, abs=0.01)


def test_costs_divide_the_gain():
    rates = {"a": 2e-3, "b": 1e-3}
    cheap, dear = Alternator(("a", "b"), Gain()), Alternator(("a", "b"), Gain(costs=(10.0, 1.0)))
    train(cheap, rates, 2000)
    train(dear, rates, 2000)
    assert shares(cheap)["a"] > 0.8
    assert shares(dear)["b"] > 0.8


def test_what_it_costs_to_begin_divides_the_gain():
    rates = {"a": 2e-3, "b": 1e-3}
    dear = Alternator(("a", "b"), Gain(costs=(1.0, 1.0), switch_costs=(270.0, 0.0)))
    train(dear, rates, 2000)
    assert shares(dear)["b"] > 0.8
    assert dear.rule.step_costs == (10.0, 1.0)
    for costs in (None, (1.0, 1.0, 1.0)):
        with pytest.raises(ConfigurationError, match="switch_costs must be as many as costs, in the same unit"):
            Gain(costs=costs, switch_costs=(1.0, 0.0))


def test_a_diverging_module_yields():
    alternator = Alternator(tuple("ab"), Gain())
    train(alternator, {"a": -1e-3, "b": 0.0}, 2000)
    assert shares(alternator)["b"] > 0.8


def test_each_module_is_tried_first_and_reasons_say_so():
    alternator = Alternator(tuple("abc"), Gain(min_steps=20, max_wait=60))
    decisions = train(alternator, {"a": 1e-2, "b": 1e-3, "c": 2e-3}, 200)
    switches = [decision for decision in decisions if decision.switched]
    assert [(decision.previous, decision.active) for decision in switches[:4]] == [
        *(("a", "b"), ("b", "c"), ("c", "a"), ("a", "b"))
    ]
    assert [decision.reason for decision in switches[:4]] == [
        *(Reason.LESS_GAIN, Reason.LESS_GAIN, Reason.LESS_GAIN, Reason.STALE)
    ]
    assert switches[0].explain().endswith("(gain per cost 0.011 < inf of another module)")
    assert switches[3].explain().endswith("(a module has waited 60 of at most 60 steps)")
    held = next(decision for decision in decisions if decision.reason == Reason.BEST_GAIN)
    assert held.explain().endswith("(gain per cost 0.011 ≥ 0.00204 of the best other module)")


def test_with_too_few_losses_it_waits_until_a_module_is_stale():
    alternator = Alternator(tuple("ab"), Gain(min_steps=2, max_wait=5))
    decisions = [alternator.advance() for _ in range(10)]
    assert [decision.switched for decision in decisions] == [False] * 4 + [True] + [False] * 4 + [True]
    assert decisions[3].reason == Reason.FEW_LOSSES
    assert decisions[4].reason == Reason.STALE


def test_a_broken_module_yields_to_the_one_that_has_waited_too_long():
    alternator = Alternator(tuple("abc"), Gain(min_steps=4, max_wait=8), nonfinite_limit=2)
    for _ in range(4):
        alternator.observe(1.0)
    alternator.force("b")
    for _ in range(3):
        alternator.observe(1.0)
    alternator.force("a")
    decisions = [alternator.observe(math.nan) for _ in range(2)]
    assert decisions[-1].reason == Reason.NONFINITE
    assert decisions[-1].active == "c"  # b is next in order, c has waited 9 steps


def test_where_all_are_stale_the_longest_wait_comes_first():
    alternator = Alternator(tuple("abcd"), Gain(min_steps=3, max_wait=9))
    actives = [alternator.advance().active for _ in range(40)]
    tenures = [name for name, before in zip(actives, ["", *actives], strict=False) if name != before]
    assert tenures[:8] == list("abcdabcd")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gain(min_steps=0), "min_steps must be an integer of at least 1, got 0"),
        (lambda: Gain(window=9), "window must be an integer of at least 10, got 9"),
        (lambda: Gain(min_steps=30, max_wait=29), "max_wait must be an integer of at least 30, got 29"),
        (lambda: Gain(costs=0.5), "costs must be a tuple of numbers, one per module, got 0.5"),
        (lambda: Gain(costs=(1.0, 0.0)), "costs must be a finite number above 0, got 0.0"),
        (lambda: Alternator(tuple("abc"), Gain(costs=[1, 2])), r"costs must be one per module \(3\), got 2"),
        (
            lambda: Alternator(tuple("abc"), Gain(max_wait=50)),
            r"max_wait must be at least \(modules - 1\) · min_steps = 60",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_built(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()
