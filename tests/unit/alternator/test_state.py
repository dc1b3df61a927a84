"""Saving and loading: exact, JSON-safe, and refused where it does not belong."""

import copy
import json
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from alternator import Alternator, Cycle, Plateau, RandomTenure, StateError, Verdict
from tests.unit.alternator.rule_table import RULES, losses_of, make


@pytest.mark.filterwarnings("ignore:a Trial rule decides by the held-out losses")
@pytest.mark.parametrize("name", sorted(RULES))
def test_resume_anywhere_equals_never_stopped(name):
    losses = losses_of(seed=3, num_steps=60)
    whole = make(name)
    decisions = [whole.observe(loss, updated=step % 7 != 3) for step, loss in enumerate(losses)]
    for stop in range(0, 60, 7):
        part = make(name)
        for step, loss in enumerate(losses[:stop]):
            part.observe(loss, updated=step % 7 != 3)
        saved = json.dumps(part.state_dict(), allow_nan=False)
        resumed = make(name)
        resumed.load_state_dict(json.loads(saved))
        rest = [resumed.observe(loss, updated=step % 7 != 3) for step, loss in enumerate(losses) if step >= stop]
        assert rest == decisions[stop:]
        assert resumed.state_dict() == whole.state_dict()


def test_another_configuration_is_refused_saying_what_differs():
    state = Alternator(("a", "b"), Plateau(threshold=0.01)).state_dict()
    with pytest.raises(StateError, match=r"another configuration: rule\.threshold was 0\.01, is 0\.02"):
        Alternator(("a", "b"), Plateau(threshold=0.02)).load_state_dict(state)
    with pytest.raises(StateError, match=r"modules was \['a', 'b'\], is \['a', 'c'\]"):
        Alternator(("a", "c"), Plateau()).load_state_dict(state)
    with pytest.raises(StateError, match=r"rule was 'Plateau', is 'Cycle'.*rule\.min_steps was 5, is '\(absent\)'"):
        Alternator(("a", "b"), Cycle(1)).load_state_dict(state)


def test_the_fingerprint_tells_configurations_apart():
    first = Alternator(("a", "b"), Cycle(1))
    assert first.state_dict()["fingerprint"] == first.fingerprint() == Alternator(("a", "b"), Cycle(1)).fingerprint()
    assert first.fingerprint() != Alternator(("a", "b"), Cycle(2)).fingerprint()


def test_another_version_is_refused():
    alternator = Alternator(("a", "b"))
    with pytest.raises(StateError, match="version must be 2, got 99"):
        alternator.load_state_dict({**alternator.state_dict(), "version": 99})


def damage(state, path, value):
    damaged = copy.deepcopy(state)
    *parents, last = path
    place = damaged
    for key in parents:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return damaged


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), KeyError),
        (("counts",), KeyError),
        (("counts",), None),
        (("counts", "step"), -1),
        (("counts", "step"), "1"),
        (("counts", "tenure"), True),
        (("counts", "active"), 2),
        (("counts", "trained_at"), [0]),
        (("counts", "rings"), [[1.0], ["x"]]),
        (("counts", "rings"), [[]]),
        (("counts", "plateaued"), KeyError),
        (("rule_state",), {}),
        (("rule_state", "draws"), "one"),
        (("configuration",), None),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(path, value):
    alternator = Alternator(("a", "b"), RandomTenure(3))
    for _ in range(5):
        alternator.observe(1.0)
    before = alternator.state_dict()
    with pytest.raises(StateError):
        alternator.load_state_dict(damage(before, path, value))
    assert alternator.state_dict() == before


def test_a_state_that_is_no_mapping_is_refused():
    with pytest.raises(StateError, match="damaged"):
        Alternator(("a", "b")).load_state_dict([])


class Best(NamedTuple):
    best: tuple[float, ...]


@dataclass(frozen=True)
class KeepBest:
    """A rule of a third party whose state holds infinities: strict JSON has none, so they are saved as strings."""

    ring_size: int = 1

    def init(self, num_modules):
        return Best((math.inf,) * num_modules)

    def step(self, state, facts):
        best = list(state.best)
        best[facts.active] = min([best[facts.active], *facts.rings[facts.active]])
        return Best(tuple(best)), Verdict(facts.tenure >= 2, "two", facts.tenure, 2)


class Counted(NamedTuple):
    total: float
    calls: int
    seen: tuple[bool, ...]


@dataclass(frozen=True)
class OfNumpy:
    """A rule of a third party that computes with NumPy."""

    steps: int
    limit: float
    ring_size: int = np.int64(2)

    def init(self, num_modules):
        return Counted(np.float32(0), np.int64(0), tuple(np.zeros(num_modules, bool)))

    def step(self, state, facts):
        switch = np.bool_(facts.tenure >= self.steps)
        state = Counted(state.total + np.float32("inf"), state.calls + np.int64(1), tuple(np.ones(2, bool)))
        target = np.int64(1) - facts.active
        return state, Verdict(switch, "numpy", np.float32(1), np.float64(2), switch, target)


def test_what_a_rule_has_computed_with_numpy_is_saved_as_plain_json():
    rule = OfNumpy(np.int32(2), np.float32(0.5))
    alternator, other = (Alternator(("a", "b"), rule) for _ in range(2))
    for _ in range(5):
        alternator.observe(np.float32(0.5), updated=np.True_)
    saved = json.loads(json.dumps(alternator.state_dict(), allow_nan=False))
    assert saved["rule_state"] == {"total": "inf", "calls": 5, "seen": [True, True]}
    other.load_state_dict(saved)
    assert [other.advance().active for _ in range(4)] == [alternator.advance().active for _ in range(4)]
    assert other.state_dict() == alternator.state_dict()


def test_infinities_and_tuples_in_a_rules_state_survive_strict_json():
    alternator = Alternator(("a", "b"), KeepBest())
    alternator.observe(0.5)
    saved = json.loads(json.dumps(alternator.state_dict(), allow_nan=False))
    assert saved["rule_state"] == {"best": [0.5, "inf"]}
    resumed = Alternator(("a", "b"), KeepBest())
    resumed.load_state_dict(saved)
    assert resumed._rule_state == Best((0.5, math.inf))
