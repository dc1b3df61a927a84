"""A saved state with one thing wrong is refused when it is loaded, or it works: it never fails later."""

import copy
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alternator import Alternator, Gain, Patience, Payoff, Plateau, RandomTenure, StateError, Trend
from tests.unit.alternator.rule_table import MODULES, RULES, losses_of, make

pytestmark = pytest.mark.filterwarnings("ignore:a Trial rule decides by the held-out losses:UserWarning")
"""A state of a trial that is to be measured is a possible one: it works, and says that nothing has measured it."""

VALUES = [
    *(None, True, False, "x", "1", "nan", "inf", "-inf", math.nan, math.inf, -math.inf),
    *(-1, 0, 1, 9, 0.5, 1.5, -1e300, 2**31, 2**62, 2**63, 10**400, 1j, [], [1.0], [None] * 3, [0] * 3, {}),
]
DELETE, DOUBLE = object(), object()


def saved_by(name, num_steps):
    alternator = make(name)
    for step, loss in enumerate(losses_of(seed=num_steps, num_steps=num_steps)):
        alternator.record("bca"[step % 3], loss)
        alternator.observe(loss, updated=step % 5 != 4)
    return json.loads(json.dumps(alternator.state_dict()))


def places(value, path=()):
    """Paths to everything in a nested structure."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(state, path, value):
    state = copy.deepcopy(state)
    *parents, last = path
    place = state
    for key in parents:
        place = place[key]
    if value is DELETE:
        del place[last]
    elif value is DOUBLE:
        place[last] = [*place[last], *place[last]] if isinstance(place[last], list) else place[last]
    elif callable(value):
        place[last] = value(place[last]) if type(place[last]) in (int, float) else place[last]
    else:
        place[last] = value
    return state


def works(alternator):
    for step, loss in enumerate(losses_of(seed=1, num_steps=60)):
        assert alternator.active in MODULES
        decision = alternator.observe(loss, updated=step % 7 != 6)
        assert decision.explain()
    assert alternator.stats()
    return json.dumps(alternator.state_dict(), allow_nan=False)


def load_or_refuse(name, state):
    """Whether it loads; then it works, and if not it says so and changes nothing."""
    alternator = make(name)
    before = alternator.state_dict()
    try:
        alternator.load_state_dict(state)
    except StateError:
        assert alternator.state_dict() == before
        return False
    assert works(alternator)
    return True


CHANGES = [*VALUES, DELETE, DOUBLE, lambda old: old + 1, lambda old: old - 1, lambda old: -old, lambda old: 3 * old + 7]


@pytest.mark.parametrize("name", sorted(RULES))
@given(data=st.data(), num_steps=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_any_one_change_is_refused_at_once_or_works(name, data, num_steps):
    state = saved_by(name, num_steps)
    path = data.draw(st.sampled_from([("rule_state",), ("counts",), *places(state)]))
    load_or_refuse(name, changed(state, path, data.draw(st.sampled_from(CHANGES))))


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("num_steps", [0, 23, 37])
def test_a_rules_state_of_another_shape_or_type_is_refused(name, num_steps):
    state = saved_by(name, num_steps)
    assert load_or_refuse(name, state)
    for field, value in state["rule_state"].items():
        wrong = [None, "x", 10**400, math.nan, {}, DELETE] + ([[], [1], DOUBLE] if isinstance(value, list) else [[]])
        for each in wrong:
            assert not load_or_refuse(name, changed(state, ("rule_state", field), each)), (field, each)


@pytest.mark.parametrize(
    ("rule", "path", "value", "message"),
    [
        (Patience(), ("rule_state", "best"), [1.0], r"best must be a list of 2, got \[1\.0\]"),
        (Patience(), ("rule_state", "best"), 9, "best must be a list of 2, got 9"),
        (Patience(), ("rule_state", "best"), ["nan", 1.0], r"Patience\(.*\) cannot be in PatienceState"),
        (Patience(), ("rule_state", "best"), ["-inf", 1.0], "cannot be in"),
        (Patience(), ("rule_state", "bad"), 1.5, "bad must be an integer, got 1.5"),
        (Patience(), ("rule_state", "bad"), 11, "cannot be in"),
        (Patience(), ("rule_state", "seen"), 10**6, "cannot be in"),
        (Patience(), ("rule_state", "cooldown"), [1, 0], "cannot be in"),
        (Trend(), ("rule_state", "hold"), 9, "cannot be in"),
        (Trend(), ("rule_state", "confirmations"), 2, "cannot be in"),
        (Trend(), ("rule_state", "next_look"), 10**6, "cannot be in"),
        (Trend(), ("rule_state", "value"), "nan", "cannot be in"),
        (Trend(), ("rule_state", "value"), True, "value must be a number, got True"),
        (Gain(), ("rule_state", "scores"), ["nan", 1.0], "cannot be in"),
        (Gain(), ("rule_state", "next_look"), 0, "cannot be in"),
        (Payoff(costs=(3, 2)), ("rule_state", "left_out"), [0, "inf"], "cannot be in"),
        (Payoff(costs=(3, 2)), ("rule_state", "confirmations"), [0, -1], "cannot be in"),
        (RandomTenure(3), ("rule_state", "draws"), 2**32, "cannot be in"),
        (Plateau(), ("counts", "rings"), [[1.0, math.nan], []], "counts contradict each other"),
        (Plateau(), ("counts", "rings"), [[1.0] * 11, []], "counts contradict each other"),
        (Plateau(), ("counts", "rings"), [[], []], "counts contradict each other"),
        (Plateau(), ("counts", "rings"), [[1.0] * 5], "counts contradict each other"),
        (Plateau(), ("counts", "step"), 10**400, "step must be an integer"),
        (Plateau(), ("counts", "step"), 9, "counts contradict each other"),
        (Plateau(), ("counts", "entered"), True, "counts contradict each other"),
        (Plateau(), ("counts", "entered"), "no", "entered must be true or false, got 'no'"),
        (Plateau(), ("counts", "nonfinite_streaks"), [1, 0], "counts contradict each other"),
        (Plateau(), ("version",), Fraction(10**5000), "version must be 2, got a huge Fraction"),
    ],
)
def test_damage_is_named(rule, path, value, message):
    alternator = Alternator(("a", "b"), rule)
    for _ in range(5):
        alternator.observe(1.0)
    with pytest.raises(StateError, match=message):
        alternator.load_state_dict(changed(alternator.state_dict(), path, value))


def test_what_numpy_has_made_of_a_state_is_the_same_state():
    """As a checkpoint library returns it: scalars and arrays in place of numbers and lists."""
    state = saved_by("patience", 23)
    counts = {name: np.array(value) for name, value in state["counts"].items() if name != "rings"}
    counts["rings"] = [np.array(ring, np.float64) for ring in state["counts"]["rings"]]
    rule_state = {name: np.array([float(item) for item in value]) for name, value in state["rule_state"].items()
                  if name in ("best", "smoothed")}  # fmt: skip
    rule_state |= {name: np.int64(state["rule_state"][name]) for name in ("seen", "bad")}
    rule_state["cooldown"] = [np.int32(item) for item in state["rule_state"]["cooldown"]]
    alternator = make("patience")
    alternator.load_state_dict({**state, "counts": counts, "rule_state": rule_state})
    assert json.loads(json.dumps(alternator.state_dict())) == state
    with pytest.raises(StateError, match="step must be an integer, got 5"):
        alternator.load_state_dict(changed(state, ("counts", "step"), np.float64(5)))
