"""The warnings of a module that does not train for a tenth of the run: once each, and where there is reason to."""

import math
import warnings
from itertools import pairwise

import pytest

from alternator import (
    Alternator,
    ConfigurationError,
    Cycle,
    Gain,
    Patience,
    Payoff,
    Plateau,
    RandomTenure,
    Trend,
    Trial,
    UnknownModuleError,
)
from alternator.starvation import MIN_RUN, Starvation

FALLING = [0.99**step for step in range(1000)]


def warned(run):
    """The messages of a run's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in caught]


def feed(alternator, losses):
    for loss in losses:
        alternator.observe(loss)


def test_a_module_that_has_not_trained_for_a_tenth_is_named_once_at_that_step():
    alternator = Alternator(("encoder", "head"), Patience(), num_steps=1000)
    feed(alternator, FALLING[:101])
    with pytest.warns(UserWarning, match="^a module should train at least once in a tenth") as caught:
        alternator.observe(FALLING[101])
    assert str(caught[0].message) == (
        "a module should train at least once in a tenth of the run, but 'head' has not trained for 101 of 1,000 "
        "planned steps: give Patience max_steps=100 or less, or take Cycle, whose tenures are fixed"
    )
    assert caught[0].filename == __file__
    feed(alternator, FALLING[102:])  # and no second time


def test_who_has_trained_is_counted_from_there():
    alternator = Alternator(("a", "b"), Patience(), num_steps=1000)
    feed(alternator, FALLING[:60])
    alternator.force("b")
    feed(alternator, FALLING[:60])
    alternator.force("a")
    feed(alternator, FALLING[60:161])
    with pytest.warns(UserWarning, match="'b' has not trained for 101 of"):
        alternator.observe(FALLING[161])


@pytest.mark.parametrize(
    ("rule", "remedy"),
    [
        (Plateau(), "limit its tenures by another rule, such as Trend, or take Cycle, whose tenures are fixed"),
        (Patience(), "give Patience max_steps=50 or less, or take Cycle, whose tenures are fixed"),
    ],
)
def test_the_remedy_is_the_rules(rule, remedy):
    alternator = Alternator(("a", "b", "c"), rule, num_steps=1000)
    assert [message.split(": ")[-1] for message in warned(lambda: feed(alternator, FALLING))] == [remedy]


@pytest.mark.parametrize(
    ("rule", "limit", "remedy"),
    [
        (Trend(), "max_steps of Trend", "300"),
        (Patience(max_steps=101), "max_steps of Patience", "101"),
        (Gain(), "max_wait of Gain", "300"),
        (Cycle((1, 200)), "steps of Cycle", "200"),
        (Cycle(101), "steps of Cycle", "101"),
        (RandomTenure(100.5), "mean of RandomTenure", "100.5"),
    ],
)
def test_a_limit_beyond_a_tenth_is_named_when_the_length_is_known(rule, limit, remedy):
    with pytest.warns(UserWarning, match=f"^{limit} should be at most a tenth .* 1,000 planned .* got {remedy}, so"):
        alternator = Alternator(("a", "b"), rule, num_steps=1000)
    assert warned(lambda: alternator.expect(num_steps=1000)) == []
    later = Alternator(("a", "b"), rule)
    with pytest.warns(UserWarning, match=f"^{limit} ") as caught:
        later.expect(num_steps=1000)
    assert caught[0].filename == __file__
    assert later.num_steps == alternator.num_steps == 1000


def test_the_remedy_for_a_cycle_is_a_shorter_one():
    with pytest.warns(UserWarning, match="so that a module may starve: give Cycle steps=100 or less$"):
        Alternator(("a", "b"), Cycle(101), num_steps=1000)


@pytest.mark.parametrize("rule", [Trend(max_steps=100), Patience(max_steps=100), Gain(max_wait=100), Cycle(100)])
def test_limits_up_to_a_tenth_are_fine(rule):
    alternator = Alternator(("a", "b"), rule, num_steps=1000)
    feed(alternator, FALLING)
    assert alternator.stats().switch_count >= 9


@pytest.mark.parametrize("build", [lambda: Plateau(), lambda: Patience(), lambda: Cycle(150), lambda: Trend()])
def test_nothing_is_said_of_trials_nor_of_runs_whose_length_is_unknown(build):
    feed(Alternator(("a", "b"), build(), num_steps=MIN_RUN - 1), FALLING[: MIN_RUN - 1])
    feed(Alternator(("a", "b"), build()), FALLING)


def test_what_payoff_leaves_out_does_not_starve():
    alternator = Alternator(("both", "a"), Payoff(costs=(2.0, 1.0)), num_steps=1000)
    alternator.expect(turns={"both": ("a", "b"), "a": "a"})
    for _ in range(900):
        alternator.force("a")
        alternator.advance()
    assert alternator.stats().modules["both"].staleness == 900


def test_a_module_of_several_names_waits_while_none_of_them_trains():
    turns = {"both": ("a", "b"), "a": ("a",), "b": "b"}
    alternator = Alternator(turns, Plateau(), num_steps=1000)
    alternator.expect(turns=turns)
    feed(alternator, FALLING[:500])  # both train, neither waits
    alternator.force("a")
    feed(alternator, FALLING[:101])
    with pytest.warns(UserWarning, match="'b' has not trained for 101 of"):
        alternator.observe(1.0)


def test_a_restored_state_is_looked_at_again():
    first, second = (Alternator(("a", "b"), Patience(), num_steps=1000) for _ in range(2))
    feed(first, FALLING[:90])
    second.load_state_dict(first.state_dict())
    feed(second, FALLING[90:101])
    with pytest.warns(UserWarning, match="'b' has not trained for 101"):
        second.observe(1.0)
    second.reset()
    feed(second, FALLING)


def test_decisions_states_and_fingerprints_do_not_depend_on_it():
    known, unknown = Alternator(("a", "b"), Cycle(3), num_steps=500), Alternator(("a", "b"), Cycle(3))
    assert known.fingerprint() == unknown.fingerprint()
    assert [known.observe(loss) for loss in FALLING[:50]] == [unknown.observe(loss) for loss in FALLING[:50]]
    assert known.state_dict() == unknown.state_dict()
    unknown.load_state_dict(known.state_dict())


def test_a_refused_step_has_not_been_counted():
    alternator = Alternator(("a", "b"), Patience(), num_steps=1000)
    feed(alternator, FALLING[:101])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="'b' has not"):
            alternator.advance()
    assert alternator.step == 101


def test_looks_are_rare():
    starvation = Starvation(("a", "b"), Cycle(1))
    starvation.expect(1000)
    looks, trained_at = [], [0, 0]
    for updates in range(1000):
        trained_at[updates % 2] = updates
        if updates >= starvation.check_at:
            looks.append(updates)
            starvation.check(updates, trained_at)
    assert len(looks) <= 11
    assert all(later - earlier >= 100 for earlier, later in pairwise(looks))


def test_without_a_length_there_is_nothing_to_look_for():
    starvation = Starvation(("a", "b"), Cycle(1))
    starvation.check(10**6, [0, 10**6])
    assert starvation.check_at == math.inf


@pytest.mark.parametrize(
    ("planned", "error", "message"),
    [
        ({"num_steps": 0}, ConfigurationError, "num_steps must be an integer of at least 1, got 0"),
        ({"num_steps": 1.5}, ConfigurationError, "num_steps must be an integer of at least 1, got 1.5"),
        ({"turns": {"a": "a"}}, ConfigurationError, "turns must have all names of the alternator, but 'b' is missing"),
        ({"turns": {"c": "a"}}, UnknownModuleError, "unknown module 'c'"),
    ],
)
def test_what_cannot_be_planned_is_refused(planned, error, message):
    with pytest.raises(error, match=message):
        Alternator(("a", "b")).expect(**planned)


def test_what_a_trial_leaves_out_does_not_starve():
    alternator = Alternator(("both", "a"), Trial(start=2000, hold=8000, halvings=9), num_steps=1000)
    for _ in range(900):
        alternator.advance()
    assert alternator.stats().modules["a"].staleness == 900
