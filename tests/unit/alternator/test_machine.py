"""Counting, recording, forcing, refusing: what `Alternator` does whatever the rule."""

import json
import logging
import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest

from alternator import (
    Alternator,
    AlternatorError,
    ConfigurationError,
    Cycle,
    LossError,
    Plateau,
    Reason,
    UnknownModuleError,
    Verdict,
)
from alternator.reasons import describe, label

FLAT = Plateau(min_steps=2, window=3)


class Counted(NamedTuple):
    calls: int


@dataclass(frozen=True)
class JumpTo:
    """A rule of a third party: always switch to one target, with a reason of its own."""

    target: int
    ring_size: int = 0

    def init(self, num_modules):
        return Counted(0)

    def step(self, state, facts):
        return Counted(state.calls + 1), Verdict(facts.active != self.target, "jump", 1.5, 2.0, False, self.target)


def test_the_original_method_is_the_default():
    assert Alternator(("a", "b")).rule == Plateau(threshold=0.01, min_steps=5, window=10)


def test_first_module_trains_first_and_the_decision_says_who_and_why():
    alternator = Alternator(["a", "b"], FLAT)
    assert alternator.active == "a"
    assert alternator.modules == ("a", "b")
    first, second, third = (alternator.observe(1.0) for _ in range(3))
    assert (first.step, first.active, first.previous, first.switched, first.reason) == (1, "a", "a", False, "min_steps")
    assert (second.reason, second.value, second.limit) == ("few_losses", 2, 3)
    assert (third.step, third.active, third.previous, third.switched, third.reason) == (3, "b", "a", True, "steady")
    assert third.value == 0.0


def test_hold_and_switch_reasons_read_as_sentences():
    alternator = Alternator(("a", "b"), Plateau(min_steps=2, window=3, threshold=0.01))
    assert alternator.observe(1.0).explain() == "step 1: a trains on (tenure 1 of 2)"
    assert alternator.observe(0.9).explain() == "step 2: a trains on (2 of 3 losses seen)"
    assert alternator.observe(0.8719).explain() == "step 3: a trains on (change rate 0.0312 ≥ 0.01)"
    assert alternator.observe(0.8719).explain() == "step 4: a → b (change rate 0 < 0.01)"
    assert describe("mine", 1.0, 2.0) == "mine: 1 against 2"
    assert label("mine") == "mine"
    assert label(Reason.CHANGING) == "change rate ≥ threshold"


def test_modules_take_turns_in_order():
    alternator = Alternator(("a", "b", "c"), Cycle(1))
    assert [alternator.advance().active for _ in range(4)] == ["b", "c", "a", "b"]


def test_a_rule_may_pick_the_next_module_and_give_its_own_reason():
    alternator = Alternator(("a", "b", "c"), JumpTo(2))
    decision = alternator.advance()
    assert (decision.active, decision.reason) == ("c", "jump")
    assert decision.explain() == "step 1: a → c (jump: 1.5 against 2)"
    assert not alternator.advance().switched


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (("a",), "two or more names, got 1"),
        ((), "two or more names, got 0"),
        ("ab", "got the single string 'ab'"),
        (("a", "a"), "different names"),
        (("a", ""), "non-empty strings"),
        (("a", 3), "non-empty strings"),
    ],
)
def test_bad_modules_are_refused(modules, message):
    with pytest.raises(ConfigurationError, match=message):
        Alternator(modules)


@pytest.mark.parametrize("rule", [Plateau, "plateau", 3])
def test_a_rule_must_be_an_instance(rule):
    with pytest.raises(ConfigurationError, match="rule must be an instance such as"):
        Alternator(("a", "b"), rule)


def test_a_rule_must_be_a_dataclass_of_plain_values():
    class Bare:
        ring_size = 0

        def init(self, num_modules):
            return Counted(0)

        def step(self, state, facts):
            return state, Verdict(False, "never", 0.0, 0.0)

    with pytest.raises(ConfigurationError, match="must be a frozen dataclass"):
        Alternator(("a", "b"), Bare())
    with pytest.raises(ConfigurationError, match="numbers, strings or tuples"):
        Alternator(("a", "b"), JumpTo(object()))


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, None])
def test_bad_nonfinite_limit_is_refused(limit):
    with pytest.raises(ConfigurationError, match="nonfinite_limit must be an integer of at least 1"):
        Alternator(("a", "b"), nonfinite_limit=limit)


def test_unknown_names_are_errors_that_list_the_choices():
    alternator = Alternator(("sasrec", "retriever"))
    expected = r"unknown module 'rankr'; expected one of \('sasrec', 'retriever'\)"
    for call in (
        lambda: alternator.record("rankr", 1.0),
        lambda: alternator.observe({"sasrec": 1.0, "rankr": 1.0}),
        lambda: alternator.force("rankr"),
        lambda: alternator.loss_history("rankr"),
    ):
        with pytest.raises(UnknownModuleError, match=expected) as caught:
            call()
        assert isinstance(caught.value, AlternatorError)
        assert isinstance(caught.value, ValueError)
    with pytest.raises(UnknownModuleError):
        alternator.record(["sasrec"], 1.0)


def test_a_mapping_without_the_active_module_is_an_error_and_records_nothing():
    alternator = Alternator(("a", "b"))
    with pytest.raises(LossError, match="loss of the active module 'a' is missing; got only \\('b',\\)"):
        alternator.observe({"b": 1.0})
    with pytest.raises(LossError):
        alternator.observe({"a": 1.0, "b": "0.5"})
    assert alternator.loss_history("a") == alternator.loss_history("b") == []
    assert alternator.stats().total_steps == 0


HUGE = [pytest.param(10**digits, id=f"1e{digits}") for digits in (400, 5000)]


@pytest.mark.parametrize(
    "loss",
    [
        *("0.5", b"1", None, [1.0], 1j, np.ones(2), np.complex128(1), np.array(1 + 0j), np.str_("1")),
        *(Fraction(10**400), *HUGE),
    ],
)
def test_a_loss_must_be_a_real_scalar(loss):
    alternator = Alternator(("a", "b"))
    for losses in (loss, {"a": 0.5, "b": loss}):
        with pytest.raises(LossError, match="a loss must be a real scalar") as caught:
            alternator.observe(losses)
        assert len(str(caught.value)) < 200
        assert "\n" not in str(caught.value)
    assert alternator.stats().total_steps == 0


@pytest.mark.parametrize("loss", [1, True, np.float32(1), np.ones(()), np.int64(1), np.True_, Fraction(1), Decimal(1)])
def test_any_scalar_is_a_loss(loss):
    alternator = Alternator(("a", "b"))
    alternator.observe(loss)
    assert alternator.loss_history("a") == [1.0]


def test_nonfinite_losses_are_counted_and_kept_out_of_the_rings():
    alternator = Alternator(("a", "b"), FLAT)
    for loss in (1.0, float("nan"), float("inf"), -float("inf"), 1.0):
        alternator.observe(loss)
    assert alternator.loss_history("a") == [1.0, 1.0]
    assert alternator.stats().modules["a"].nonfinite_losses == 3
    assert alternator.active == "a"


def test_nonfinite_losses_in_a_row_force_a_switch():
    alternator = Alternator(("a", "b"), FLAT, nonfinite_limit=3)
    decisions = [alternator.observe(float("nan")) for _ in range(3)]
    assert [decision.switched for decision in decisions] == [False, False, True]
    assert decisions[-1].reason == Reason.NONFINITE
    assert decisions[-1].explain() == "step 3: a → b (3 non-finite losses in a row, limit 3)"
    assert not decisions[-1].all_plateaued
    assert alternator.stats().switch_count == 1
    alternator.observe(1.0)
    alternator.observe(1.0)
    assert alternator.observe(1.0).active == "a"
    assert [alternator.observe(float("nan")).switched for _ in range(3)] == [False, False, True]


def test_a_finite_loss_ends_the_row():
    alternator = Alternator(("a", "b"), Cycle(100), nonfinite_limit=2)
    assert not any(alternator.observe(loss).switched for loss in (float("nan"), 1.0, float("nan"), 1.0))


def test_skipped_steps_count_apart():
    alternator = Alternator(("a", "b"), Cycle(2))
    assert not alternator.observe(1.0, updated=False).switched
    assert not alternator.advance(updated=False).switched
    assert not alternator.advance().switched
    assert alternator.advance().switched
    module = alternator.stats().modules["a"]
    assert (module.training_steps, module.skipped_steps, module.training_ratio) == (2, 2, 1.0)
    assert alternator.stats().total_steps == 4


def test_a_late_loss_is_credited_to_its_module_and_not_to_the_new_tenure():
    alternator = Alternator(("a", "b"), FLAT)
    for _ in range(3):
        alternator.record("a", 1.0)
        alternator.advance()
    assert alternator.active == "b"
    alternator.record("a", 0.5)
    alternator.advance()
    assert alternator.loss_history("a") == [1.0, 1.0, 0.5]
    assert alternator.loss_history("b") == []
    assert alternator._facts.observed == 0
    alternator.record("b", 2.0)
    assert alternator._facts.observed == 1


@pytest.mark.parametrize("value", [2.0, math.nan])
def test_a_loss_that_is_older_than_the_tenure_is_kept_but_not_heard(value):
    alternator = Alternator(("a", "b"), Cycle(2), nonfinite_limit=1)
    for _ in range(2):
        alternator.advance()
    assert (alternator.active, alternator.step) == ("b", 2)
    alternator.record("b", value, step=2)
    assert (alternator._facts.observed, len(alternator.loss_history("b"))) == (0, int(value == value))
    assert alternator.stats().modules["b"].nonfinite_losses == int(value != value)
    assert not alternator.advance().switched
    alternator.record("b", 3.0, step=3)
    assert alternator._facts.observed == 1
    loaded = Alternator(("a", "b"), Cycle(2), nonfinite_limit=1)
    loaded.load_state_dict(json.loads(json.dumps(alternator.state_dict())))
    loaded.record("b", 2.0, step=2)
    assert loaded._facts.observed == 1


def test_force_starts_a_tenure_and_counts_no_step():
    alternator = Alternator(("a", "b", "c"), Cycle(2))
    alternator.advance()
    decision = alternator.force("c")
    assert (decision.active, decision.previous, decision.switched, decision.reason) == ("c", "a", True, "forced")
    assert decision.explain() == "step 1: a → c (forced)"
    assert alternator.stats().total_steps == 1
    assert alternator.stats().switch_count == 0
    assert alternator.stats().steps_since_switch == 0
    assert not alternator.force("c").switched
    assert [alternator.advance().active for _ in range(2)] == ["c", "a"]


def test_all_plateaued_when_every_module_has_in_one_round():
    alternator = Alternator(("a", "b"), Plateau(min_steps=1, window=3))
    flat = {"a": 1.0, "b": 1.0}
    decisions = [alternator.observe(flat) for _ in range(4)]
    assert [decision.all_plateaued for decision in decisions] == [False, False, False, True]
    alternator.force("a")
    assert not alternator.observe({"a": 2.0, "b": 1.0}).all_plateaued
    assert not Alternator(("a", "b"), Cycle(1)).advance().all_plateaued


def test_stats_in_both_forms():
    alternator = Alternator(("a", "b"), Cycle((1, 2)))
    assert alternator.get_stats() == {
        "total_steps": 0,
        "current_module": "a",
        "steps_since_switch": 0,
        "switch_count": 0,
        **{
            f"{name}{key}": value
            for name in "ab"
            for key, value in (
                *(("_training_steps", 0), ("_training_ratio", 0.0), ("_skipped_steps", 0)),
                *(("_nonfinite_losses", 0), ("_staleness", 0)),
            )
        },
        "recent_a_loss": None,
        "recent_b_loss": None,
    }
    for loss in (3.0, 2.0, 1.0, 0.5):
        alternator.observe(loss)
    stats = alternator.get_stats()
    assert (stats["total_steps"], stats["switch_count"], stats["current_module"]) == (4, 3, "b")
    assert (stats["a_training_steps"], stats["b_training_steps"]) == (2, 2)
    assert (stats["a_training_ratio"], stats["b_training_ratio"]) == (0.5, 0.5)
    assert (stats["recent_a_loss"], stats["recent_b_loss"]) == (0.5, 1.0)
    assert (stats["a_staleness"], stats["b_staleness"]) == (0, 1)
    json.dumps(stats)


def test_every_switch_is_logged_once(caplog):
    alternator = Alternator(("a", "b"), FLAT)
    with caplog.at_level(logging.INFO, logger="alternator"):
        for _ in range(3):
            alternator.observe(1.0)
        alternator.force("a")
        alternator.force("a")
    assert [record.getMessage() for record in caplog.records] == [
        "step 3: a → b (change rate 0 < 0.01), 1 switches",
        "step 3: b → a (forced), 1 switches",
    ]


def test_nothing_is_logged_below_info(caplog):
    with caplog.at_level(logging.WARNING, logger="alternator"):
        Alternator(("a", "b"), Cycle(1)).advance()
    assert caplog.records == []


def test_reset_forgets_everything_but_the_configuration():
    alternator = Alternator(("a", "b"), FLAT)
    fresh = alternator.state_dict()
    for loss in (1.0, 1.0, float("nan"), 1.0):
        alternator.observe(loss, updated=loss == 1.0)
    assert alternator.state_dict() != fresh
    alternator.reset()
    assert alternator.state_dict() == fresh


def test_repr_names_what_matters():
    assert repr(Alternator(("a", "b"), Cycle(1))) == "Alternator(('a', 'b'), rule=Cycle(steps=1), active='a', step=0)"
