"""Replay: it decides as a live run does, counts what it decided, and is honest about what it cannot know."""

import json
import math
import random

import numpy as np
import pytest

from alternator import Alternator, ConfigurationError, Cycle, LossError, Plateau, Reason, Trend, replay
from alternator.recordings.sweep import parse_grid, sweep
from alternator.rules.named import RULES


def columns_of(num_steps, seed=0):
    draw = random.Random(seed)
    return {
        "a": [math.exp(-0.01 * step) * draw.gauss(1, 0.02) for step in range(num_steps)],
        "b": [draw.gauss(1, 0.02) for _ in range(num_steps)],
    }


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_it_decides_as_a_live_run_does(delay):
    losses = columns_of(400)
    live = Alternator(("a", "b"), Trend(min_steps=5, max_steps=60))
    decisions = []
    for step in range(400):
        if step >= delay:
            live.record("a", losses["a"][step - delay], step=step - delay + 1)
            live.record("b", losses["b"][step - delay], step=step - delay + 1)
        decisions.append(live.advance())
    result = replay(losses, Trend(min_steps=5, max_steps=60), delay=delay)
    assert result.actives == tuple(decision.previous for decision in decisions)
    switches = [decision for decision in decisions if decision.switched]
    assert len(switches) > 5
    assert [(switch.step, switch.active, switch.reason) for switch in result.switches] == [
        (decision.step, decision.active, decision.reason) for decision in switches
    ]


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_can_be_replayed(name):
    needs = {"balance": {"low": 1, "high": 2}, "random_tenure": {"mean": 10}, "payoff": {"costs": (2, 1)}}
    rule = RULES[name](**needs.get(name, {}))
    result = replay(columns_of(300), rule)
    assert sum(result.training_steps.values()) == 300
    assert sum(result.holds.values()) + len(result.switches) == 300
    assert sum(result.shares.values()) == pytest.approx(1)
    assert json.loads(json.dumps(result.to_dict()))["num_steps"] == 300


def test_counts_waits_and_holds():
    result = replay({"a": [1.0] * 10, "b": [1.0] * 10}, Cycle((3, 1)), steps=range(100, 110))
    assert result.actives == tuple("aaabaaabaa")
    assert [(switch.step, switch.previous, switch.active) for switch in result.switches[:2]] == [
        (102, "a", "b"),
        (103, "b", "a"),
    ]
    assert result.longest_wait == {"a": 1, "b": 3}
    assert result.training_steps == {"a": 8, "b": 2}
    assert result.holds == {"tenure < min_steps": 6}
    assert result.last_decision == "step 109: a trains on (tenure 2 of 3)"
    assert "cannot know" in result.caveat


def test_where_the_record_has_no_loss_the_rule_is_blind():
    losses = {"a": [1.0] * 12, "b": [None] * 8 + [1.0] * 4}
    result = replay(losses, Plateau(min_steps=2, window=3))
    assert result.actives == tuple("aaabbbbbbbba")
    assert result.blind_steps == 5
    assert result.holds == {"too few losses seen": 7, "tenure < min_steps": 3}


def test_non_finite_losses_are_counted_and_switch():
    result = replay({"a": [math.nan] * 5, "b": [1.0] * 5}, nonfinite_limit=3)
    assert result.nonfinite_losses == {"a": 5, "b": 0}
    assert result.switches[0].reason == Reason.NONFINITE


def test_modules_choose_columns_and_their_order():
    losses = {**columns_of(20), "c": [1.0] * 20}
    result = replay(losses, Cycle(1), modules=("c", "a"))
    assert result.modules == ("c", "a")
    assert result.actives[:3] == ("c", "a", "c")


def test_columns_and_steps_may_be_arrays():
    losses = columns_of(40)
    arrays = {name: np.array(column) for name, column in losses.items()}
    result = replay(arrays, Cycle(3), steps=np.arange(40) * 10, delay=np.int64(1))
    assert result == replay(losses, Cycle(3), steps=range(0, 400, 10), delay=1)
    assert json.dumps(result.to_dict())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ({"a": [1.0], "b": [1.0, 2.0]}, {}, LossError, "the same number for each module; got {'a': 1, 'b': 2}"),
        ({"a": [], "b": []}, {}, LossError, "must have one row or more"),
        ({"a": [1.0], "b": [1.0]}, {"steps": [1, 2]}, LossError, "for 2 steps"),
        ({"a": [1.0], "b": [1.0]}, {"modules": ("a", "c")}, LossError, "no losses of module 'c'; got those of"),
        ({"a": [1.0], "b": [1.0]}, {"delay": -1}, ConfigurationError, "delay must be an integer of at least 0, got -1"),
        ({"a": [1.0]}, {}, ConfigurationError, "modules must be two or more names"),
    ],
)
def test_what_cannot_be_replayed_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        replay(arguments, **options)


def test_a_sweep_replays_every_combination():
    losses = columns_of(300)
    rows = sweep(losses, "plateau", parse_grid(["threshold=0.005,0.02", "min_steps=3,10"]), ["window=5"], delay=1)
    assert [row.settings for row in rows] == [
        {"threshold": threshold, "min_steps": min_steps} for threshold in (0.005, 0.02) for min_steps in (3, 10)
    ]
    for row in rows:
        assert row.result == replay(losses, Plateau(window=5, **row.settings), delay=1)
    assert json.dumps([row.to_dict() for row in rows])


def test_a_sweep_shows_what_is_refused_and_fails_if_all_are():
    rows = sweep(columns_of(50), "plateau", {"window": [2, 10]})
    assert rows[0].result is None
    assert rows[0].refusal == "window must be at least 3, got 2"
    assert rows[1].result is not None
    with pytest.raises(ConfigurationError, match="window must be at least 3, got 1"):
        sweep(columns_of(50), "plateau", {"window": [1, 2]})


@pytest.mark.parametrize("text", ["threshold", "=1", "threshold="])
def test_a_malformed_sweep_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"a sweep must read name=value,value,\.\.\., got"):
        parse_grid([text])


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("slope", [0.0, 0.0007, 0.005])
def test_a_larger_plateau_threshold_switches_at_least_as_often(slope, noise):
    """The guide said both; on the losses of the study it is this."""
    draw = random.Random(1)
    losses = [math.exp(-slope * step) * (1 + noise * draw.gauss(0, 1)) for step in range(2000)]
    rows = sweep({"a": losses, "b": losses}, "plateau", {"threshold": [0.0025, 0.005, 0.01, 0.02, 0.04, 0.08]})
    counts = [len(row.result.switches) for row in rows]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
