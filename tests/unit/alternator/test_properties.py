"""Properties that hold for every rule and every sequence of losses, found or refuted by hypothesis."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alternator import Alternator, Plateau
from tests.unit.alternator.rule_table import RULES, losses_of, make

ANY_LOSS = st.floats(allow_nan=True, allow_infinity=True)
STEPS = st.lists(st.tuples(ANY_LOSS, st.booleans()), max_size=80)
rules = pytest.mark.parametrize("name", sorted(RULES))


@rules
@given(steps=STEPS)
@settings(max_examples=40)
def test_every_step_is_credited_to_one_module_and_shares_sum_to_one(name, steps):
    alternator = make(name)
    for loss, updated in steps:
        before = alternator.active
        decision = alternator.observe(loss, updated=updated)
        assert decision.previous == before
        assert decision.active == alternator.active
        assert decision.switched == (decision.active != decision.previous)
        assert decision.explain()
    modules = alternator.stats().modules.values()
    assert sum(module.training_steps for module in modules) == sum(updated for _, updated in steps)
    assert sum(module.skipped_steps for module in modules) == sum(not updated for _, updated in steps)
    shares = sum(module.training_ratio for module in modules)
    assert shares == pytest.approx(1.0 if any(updated for _, updated in steps) else 0.0)


@rules
@given(steps=STEPS, stop=st.integers(0, 80))
@settings(max_examples=40)
def test_resume_anywhere_is_never_stopped(name, steps, stop):
    whole = make(name)
    decisions = [whole.observe(loss, updated=updated) for loss, updated in steps]
    part, resumed = make(name), make(name)
    for loss, updated in steps[:stop]:
        part.observe(loss, updated=updated)
    resumed.load_state_dict(json.loads(json.dumps(part.state_dict(), allow_nan=False)))
    assert [resumed.observe(loss, updated=updated) for loss, updated in steps[stop:]] == decisions[stop:]


@given(
    steps=STEPS, min_steps=st.integers(1, 9), window=st.integers(3, 8), threshold=st.floats(1e-9, 10, allow_nan=False)
)
@settings(max_examples=100)
def test_no_rule_switches_twice_within_min_steps(steps, min_steps, window, threshold):
    alternator = Alternator(("a", "b"), Plateau(threshold=threshold, min_steps=min_steps, window=window))
    updates = 0
    for loss, updated in steps:
        updates += updated
        decision = alternator.observe(loss, updated=updated)
        if decision.switched and decision.reason != "nonfinite":
            assert updates >= min_steps
            updates = 0
        elif decision.switched:
            updates = 0


@rules
def test_memory_stays_flat(name):
    alternator = make(name)
    losses = losses_of(seed=5, num_steps=2000)
    tracemalloc.start()
    try:
        for loss in losses * 7:  # Python keeps up to 2,000 freed tuples of each size for reuse: let that settle
            alternator.observe(loss)
        before = tracemalloc.get_traced_memory()[0]
        for loss in losses * 3:
            alternator.observe(loss)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 10_000  # 6,000 losses kept would be 144,000
    assert len(alternator.loss_history("a")) <= max(alternator.rule.ring_size, 1)
