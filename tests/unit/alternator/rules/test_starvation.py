"""No sequence of losses starves a module beyond the bound that its rule documents."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alternator import Alternator, Balance, Cycle, Gain, Patience, Trend

MODULES = tuple("abcd")
RULES = {
    "balance": Balance(low=0.9, high=1.1, factor=1.4, max_steps=9, steps=3),
    "balance at a value": Balance(low=1.0, high=1.0, of=0, above=1, below=0, window=2, factor=3, max_steps=5),
    "cycle": Cycle(7),
    "patience": Patience(patience=3, cooldown=2, smoothing=0.3, max_steps=9),
    "patience that restarts": Patience(patience=2, mode="max", threshold_mode="abs", restart=True, max_steps=11),
    "trend": Trend(window=40, min_steps=3, max_steps=17, confirmations=1),
    "trend with votes": Trend(window=60, min_steps=12, max_steps=26),
    "gain": Gain(min_steps=4, max_wait=13, window=12),
    "gain with costs": Gain(min_steps=7, max_wait=22, window=10),
}
EVIL = (*(0.0, -0.0, 1.0, -1.0, 1e308, -1e308, 1.7e308, 5e-324, 1e-310, 1e-3), math.nan, math.inf, -math.inf)
LOSSES = st.one_of(st.floats(), st.sampled_from(EVIL), st.floats(0.5, 2.0))


def bound_of(rule, num_modules):
    """What the documentation promises: updated steps that a module may wait."""
    if isinstance(rule, Gain):
        return rule.max_wait + (num_modules - 2) * rule.min_steps
    return (num_modules - 1) * (rule.steps if isinstance(rule, Cycle) else rule.max_steps)


def longest_wait(alternator, steps):
    """Updated steps of others between two steps of a module; every decision is checked on the way."""
    waited = dict.fromkeys(alternator.modules, 0)
    longest = 0
    for losses, updated in steps:
        active = alternator.active
        for name in waited:
            waited[name] = 0 if name == active else waited[name] + updated
        longest = max(longest, *waited.values())
        for name, loss in losses.items():
            alternator.record(name, loss)
        decision = alternator.advance(updated=updated)
        assert not math.isnan(decision.value)
        assert not math.isnan(decision.limit)
        assert decision.explain()
    return longest


def check(name, num_modules, steps, nonfinite_limit):
    rule = RULES[name]
    if isinstance(rule, Gain) and rule.max_wait < (num_modules - 1) * rule.min_steps:
        rule = Gain(min_steps=rule.min_steps, max_wait=(num_modules - 1) * rule.min_steps, window=rule.window)
    alternator = Alternator(MODULES[:num_modules], rule, nonfinite_limit=nonfinite_limit)
    assert longest_wait(alternator, steps) <= bound_of(rule, num_modules)


@pytest.mark.parametrize("name", sorted(RULES))
@given(
    num_modules=st.integers(2, 4),
    nonfinite_limit=st.integers(1, 12),
    pieces=st.lists(
        st.tuples(st.lists(LOSSES, min_size=1, max_size=4), st.booleans(), st.integers(1, 40)), min_size=1, max_size=8
    ),
)
@settings(max_examples=150)
def test_no_sequence_found_starves_a_module(name, num_modules, nonfinite_limit, pieces):
    modules = MODULES[:num_modules]
    steps = [
        (dict(zip(modules, itertools.islice(itertools.cycle(losses), step, step + num_modules), strict=True)), updated)
        for losses, updated, length in pieces
        for step in range(length)
    ]
    check(name, num_modules, steps, nonfinite_limit)


@pytest.mark.parametrize("num_modules", [2, 3, 4])
@pytest.mark.parametrize("name", sorted(RULES))
def test_no_long_random_run_starves_a_module(name, num_modules):
    for seed in range(6):
        draw = random.Random(seed)
        levels = [draw.choice(EVIL[:-3]) for _ in range(num_modules)]

        def losses_of(draw=draw, levels=levels):
            kinds = [(level, draw.gauss(1, 0.1), draw.choice(EVIL)) for level in levels]
            return {name: draw.choice(kind) for name, kind in zip(MODULES, kinds, strict=False) if draw.random() < 0.9}

        steps = [(losses_of(), draw.random() < 0.8) for _ in range(600)]
        check(name, num_modules, steps, nonfinite_limit=draw.choice([1, 3, 10]))


@pytest.mark.parametrize("rule", [Trend(), Gain()])
def test_the_defaults_starve_nobody(rule):
    assert longest_wait(Alternator(tuple("ab"), rule), [({"a": 0.9**step}, True) for step in range(600)]) <= bound_of(
        rule, 2
    )


def test_gains_bound_is_reached():
    """Of three modules, one may wait min_steps longer than max_wait: while another one is served."""
    alternator = Alternator(tuple("abc"), Gain(min_steps=4, max_wait=13, window=12))
    assert longest_wait(alternator, [({}, True)] * 200) == bound_of(alternator.rule, 3) == 17
