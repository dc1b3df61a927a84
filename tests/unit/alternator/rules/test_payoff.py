"""Payoff: all train together while they pay; what does not pay is left out for a while. Payoffs measures it."""

import random
from math import inf

import numpy as np
import pytest

from alternator import Alternator, ConfigurationError, LossError, Payoff, Payoffs, Reason
from tests.unit.alternator.runs import shares

TURNS = {"both": ("left", "right"), "left": ("left",), "right": ("right",)}
GROUPS = 8


def train(alternator, worth, num_steps, noise=0.05):
    """After every min_steps steps each trained turn gets what its modules' training was worth, with common noise."""
    draw = random.Random(0)
    decisions = []
    for step in range(1, num_steps + 1):
        tenure = alternator.stats().steps_since_switch + 1
        if tenure % alternator.rule.min_steps == 0:
            trained = TURNS[alternator.active]
            for _ in range(GROUPS):
                paid = {name: worth(name, step) * (1 + noise * draw.gauss(0, 1)) for name in trained}
                for turn, members in TURNS.items():
                    if set(members) <= set(trained):
                        alternator.record(turn, sum(paid[name] for name in members))
        decisions.append(alternator.advance())
    return decisions


def build(**settings):
    return Alternator(tuple(TURNS), Payoff(**{"costs": (3, 2, 2), "groups": GROUPS, "min_steps": 5} | settings))


def test_all_train_together_while_both_pay():
    alternator = build()
    train(alternator, lambda name, step: 1.0, 300)
    assert shares(alternator) == {"both": 1.0, "left": 0.0, "right": 0.0}


@pytest.mark.parametrize(("idle", "other"), [("left", "right"), ("right", "left")])
def test_what_does_not_pay_is_left_out_and_tried_again(idle, other):
    alternator = build(retry_after=50, max_retry_after=50)
    decisions = train(alternator, lambda name, step: 0.01 if name == idle else 1.0, 550)
    assert shares(alternator)[other] == pytest.approx(50 / 55, abs=0.03)
    reasons = {decision.reason for decision in decisions if decision.switched}
    assert reasons == {Reason.IDLE, Reason.STALE}
    assert decisions[4].reason == Reason.UNCONFIRMED
    assert "to be confirmed" in decisions[4].explain()
    assert "standard errors" in decisions[9].explain()


def test_costs_decide_what_pays():
    """A quarter of the payoff is too little for most of the cost, and enough for a tenth of it."""
    worth = {"left": 1.0, "right": 0.25}
    dear, cheap = build(costs=(10, 2, 9)), build(costs=(10, 9, 2), share=0.9)
    train(dear, lambda name, step: worth[name], 205)
    train(cheap, lambda name, step: worth[name], 200)
    assert shares(dear)["left"] > 0.9
    assert shares(cheap)["both"] == 1.0


def test_the_joint_turn_returns_when_the_smaller_one_has_nothing_left():
    alternator = build(retry_after=10_000, max_retry_after=10_000)
    decisions = train(alternator, lambda name, step: {"left": 1.0, "right": 0.1}[name] if step < 40 else 0.0, 80)
    switches = [(decision.step, decision.active, decision.reason) for decision in decisions if decision.switched]
    assert switches[:2] == [(10, "left", Reason.IDLE), (45, "both", Reason.LESS_GAIN)]
    assert decisions[39].reason == Reason.LESS_UNCONFIRMED
    assert decisions[39].explain().endswith("of another module; to be confirmed)")


def test_what_harms_is_left_out_although_nothing_is_saved():
    for worth, left_out in (({"left": 1.0, "right": -0.2}, True), ({"left": 1.0, "right": 0.01}, False)):
        alternator = build(costs=(2, 2, 2), retry_after=100, max_retry_after=100)
        train(alternator, lambda name, step, worth=worth: worth[name], 400)
        assert (shares(alternator)["left"] > 0.8) == left_out
        assert shares(alternator)["both"] == pytest.approx(1 - shares(alternator)["left"])


def test_what_it_costs_to_begin_counts():
    """What the right module pays is too little for half of the cost, and enough for a tenth of it."""
    worth = {"left": 1.0, "right": 0.08}
    free, dear = build(costs=(2, 1, 2)), build(costs=(2, 1, 2), switch_costs=(0, 90, 0))
    for alternator in (free, dear):
        train(alternator, lambda name, step: worth[name], 200)
    assert shares(free)["left"] > 0.4
    assert shares(dear)["both"] == 1.0
    assert dear.rule.saved == pytest.approx((0, 0.1, 0))


def test_noise_alone_leaves_nothing_out():
    alternator = build(confidence=0.99997)
    train(alternator, lambda name, step: 1.0 if name == "left" else 0.4, 400, noise=1.0)
    assert shares(alternator)["both"] > 0.9


@pytest.mark.parametrize(("confirmations", "expected"), [(1, "left"), (2, "both"), (3, "both")])
def test_one_bad_measurement_between_good_ones_freezes_nothing(confirmations, expected):
    """Training goes up and down: what seems idle once, at every second measurement, is not left out."""
    alternator = build(confirmations=confirmations, retry_after=10_000, max_retry_after=10_000)
    decisions = train(alternator, lambda name, step: 0.01 if name == "right" and step % 10 == 0 else 1.0, 412)
    assert decisions[11].active == expected
    assert (shares(alternator)["both"] == 1.0) == (expected == "both")


def test_what_is_found_idle_again_at_once_is_left_out_for_twice_as_long():
    alternator = build(confirmations=3, retry_after=10, max_retry_after=35)
    decisions = train(alternator, lambda name, step: 0.01 if name == "right" else 1.0, 150)
    switches = [(decision.step, decision.active) for decision in decisions if decision.switched]
    left = [(15, "left"), (30, "left"), (55, "left"), (95, "left"), (135, "left")]
    assert switches == sorted([*left, *((step, "both") for step in (25, 50, 90, 130))])
    assert decisions[49].explain() == "step 50: left → both (a module has waited 20 of at most 20 steps)"


def test_what_pays_again_must_be_found_idle_anew():
    """It paid in the first measurement after its return: the count and the wait start from scratch."""
    alternator = build(confirmations=2, retry_after=20, max_retry_after=80)
    decisions = train(alternator, lambda name, step: 0.01 if name == "right" and step != 35 else 1.0, 70)
    switches = [(decision.step, decision.active) for decision in decisions if decision.switched]
    assert switches == [(10, "left"), (30, "both"), (45, "left"), (65, "both"), (70, "left")]


def test_after_a_turn_that_ended_early_what_it_left_out_must_be_found_idle_anew():
    """The smaller turn had nothing left: that says nothing about what it left out."""
    alternator = build(confirmations=2, retry_after=20)
    worth = {"left": 1.0, "right": 0.1}
    decisions = train(alternator, lambda name, step: 0.0 if step in (15, 20) and name == "left" else worth[name], 40)
    switches = [(decision.step, decision.active, decision.reason) for decision in decisions if decision.switched]
    assert switches[1:3] == [(20, "both", Reason.LESS_GAIN), (30, "left", Reason.IDLE)]


def test_one_bad_measurement_of_the_smaller_turn_does_not_end_it():
    alternator = build(retry_after=100)
    worth = {"left": 1.0, "right": 0.1}
    decisions = train(
        alternator, lambda name, step: 0.0 if step in (15, 25, 35) and name == "left" else worth[name], 100
    )
    assert [decision.step for decision in decisions if decision.switched] == [10]


def test_a_wait_can_be_doubled_without_end():
    assert Payoff(costs=(3, 2)).retry_delay(10**6) == 800
    assert [Payoff(costs=(3, 2)).retry_delay(count) for count in (0, 2, 3, 4, 5, 6)] == [100, 100, 200, 400, 800, 800]


def test_nothing_is_decided_before_a_measurement_is_complete():
    alternator = build(groups=4, min_steps=1, confirmations=1)
    for observed in range(1, 4):
        decision = alternator.observe({"both": 1.0, "left": 1.0, "right": 0.0})
        assert decision.explain() == f"step {observed}: both trains on (not measured: {observed} of 4 payoffs recorded)"
    assert alternator.observe({"both": 1.0, "left": 1.0, "right": 0.0}).active == "left"


def test_between_two_measurements_it_waits_for_values():
    alternator = build(groups=2, min_steps=1, confirmations=9)
    reasons = [alternator.observe({"both": 1.0, "left": 1.0, "right": 0.0}).reason for _ in range(4)]
    assert reasons == [Reason.UNMEASURED, Reason.UNCONFIRMED, Reason.FEW_LOSSES, Reason.UNCONFIRMED]


def test_a_turn_that_ends_unmeasured_says_so():
    """It was left to itself: no payoffs were recorded, or too few."""
    alternator = build(groups=2, min_steps=1, confirmations=1, retry_after=3, max_retry_after=3)
    for _ in range(2):
        decision = alternator.observe({"both": 1.0, "left": 1.0, "right": 0.0})
    assert decision.active == "left"
    alternator.record("left", 1.0)
    decisions = [alternator.advance() for _ in range(3)]
    assert {decision.reason for decision in decisions} == {Reason.UNMEASURED}
    assert decisions[-1].explain() == "step 5: left → both (not measured: 1 of 2 payoffs recorded)"


@pytest.mark.parametrize("losses", [{}, {"both": 0.5}])
def test_losses_or_nothing_train_all_and_say_that_nothing_is_measured(losses):
    alternator = build(groups=2, min_steps=1)
    for name, value in losses.items():
        for _ in range(5):
            alternator.record(name, value)
    decisions = [alternator.advance() for _ in range(5)]
    assert decisions[0].explain() == "step 1: both trains on (not measured: 0 of 2 payoffs recorded)"
    assert not any(decision.switched for decision in decisions)


def test_a_turn_that_was_not_measured_is_never_chosen_and_infinite_payoffs_say_nothing():
    alternator = build(groups=2, min_steps=1)
    for _ in range(10):
        assert not alternator.observe({"both": 1.0}).switched
    for _ in range(10):
        assert not alternator.observe({"both": 1.7e308, "left": -1.7e308, "right": -1.7e308}).switched


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"costs": (2, 3)}, "costs must begin with the joint turn's, which no other may exceed"),
        ({"costs": (2, 1), "switch_costs": (1,)}, r"switch_costs must be one per turn \(2\), got 1"),
        ({"costs": (2, 1), "switch_costs": (1, -1)}, "switch_costs must be at least 0 and below inf, got -1"),
        ({"costs": (2, 1), "switch_costs": 3}, "switch_costs must be a tuple of numbers, one per turn, got 3"),
        ({"costs": (2,)}, "costs must begin"),
        ({"costs": 0.5}, "costs must be a tuple of numbers, one per turn, got 0.5"),
        ({"costs": (2, -1)}, "costs must be a finite number above 0"),
        ({"share": 1.0}, "share must be a number above 0 and below 1"),
        ({"confidence": 0.5}, "confidence must be"),
        ({"confirmations": 0}, "confirmations must be an integer of at least 1"),
        ({"groups": 1}, "groups must be an integer of at least 2"),
        ({"min_steps": 0}, "min_steps must be"),
        ({"retry_after": 3}, "retry_after must be an integer of at least 5"),
        ({"retry_after": 60, "max_retry_after": 50}, "max_retry_after must be an integer of at least 60"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        build(**settings)


def test_costs_are_one_per_turn():
    assert Payoff(costs=[3, 2]).costs == (3, 2)
    with pytest.raises(ConfigurationError, match=r"costs must be one per turn \(3\), got 2"):
        build(costs=(3, 2))


def test_payoffs_undo_one_modules_training_at_a_time():
    """An interaction: the loss falls by 4 together, by 1 and 2 alone."""
    state = {"left": 0, "right": 0}
    table = {(0, 0): 10.0, (1, 0): 9.0, (0, 1): 8.0, (1, 1): 6.0}
    payoffs = Payoffs(TURNS, lambda name: state[name], lambda mix: [table[mix["left"], mix["right"]]])
    state.update(left=1, right=1)
    assert payoffs.measure("both", 2) == {"both": [2.0], "left": [0.5], "right": [1.0]}
    assert payoffs.measure("left", 1) == {"left": [0.0]}
    state.update(left=0, right=0)
    payoffs.restart()
    state["right"] = 1
    assert payoffs.before == {"left": 0, "right": 0}
    assert payoffs.measure("right", 4) == {"right": [0.5]}


@pytest.mark.parametrize("loss", [np.complex128(1), 10**400, "1.0"])
def test_payoffs_are_measured_by_real_losses(loss):
    payoffs = Payoffs(TURNS, lambda name: 0, lambda mix: [loss])
    with pytest.raises(LossError, match="a loss must be a real scalar"):
        payoffs.measure("left", 1)
    with pytest.raises(ConfigurationError, match="num_steps must be an integer of at least 1, got 0"):
        payoffs.measure("left", 0)


def test_payoffs_need_turns():
    with pytest.raises(ConfigurationError, match="at least one turn"):
        Payoffs({}, lambda name: 0, lambda mix: [inf])
