"""Balance: outside the band the player trains that brings the signal back; inside, the modules take turns."""

import pytest

from alternator import Alternator, Balance, ConfigurationError, UnknownNameError
from alternator.rules.balance import BalanceState


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Balance(low=2, high=1), r"low must be at most high \(1\), got 2; exchange the two"),
        (lambda: Balance(low="0.5", high=1), "low must be at least -inf and below inf, got '0.5'"),
        (lambda: Balance(low=0, high=float("inf")), "high must be at least -inf and below inf, got inf"),
        (lambda: Balance(low=0, high=1, signal="ratio"), r"low must be above 0 for the signal 'ratio', a ratio, got 0"),
        (lambda: Balance(low=0, high=1, above=1), "above and below must be different modules, got 1 for both"),
        (lambda: Balance(low=0, high=1, of=-1), "of must be an integer of at least 0"),
        (lambda: Balance(low=0, high=1, window=0), "window must be an integer of at least 1"),
        (lambda: Balance(low=0, high=1, steps=(1, 0)), "steps must be an integer of at least 1"),
    ],
)
def test_what_cannot_work_is_refused_when_built(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


def test_an_unknown_signal_is_refused():
    with pytest.raises(UnknownNameError, match="unknown signal 'accuracy'; expected one of"):
        Balance(low=0, high=1, signal="accuracy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"of": 2}, "of must be the place of a module, 0 to 1, got 2"),
        ({"above": 5}, "above must be the place of a module, 0 to 1, got 5"),
        ({"steps": (1, 2, 3)}, r"steps must be one number or one per module \(2\), got 3"),
        ({"steps": (1, 60)}, "max_wait must be at least 60, the steps of the other modules in a round, got 50"),
    ],
)
def test_what_does_not_fit_the_modules_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Alternator(("a", "b"), Balance(low=0, high=1, **settings))


def trained(rule, signals, modules=("generator", "critic"), recorded="critic"):
    """Who trains after each value of a signal, and the reasons."""
    alternator = Alternator(modules, rule)
    decisions = []
    for value in signals:
        if value is not None:
            alternator.record(recorded, value)
        decisions.append(alternator.advance())
    return "".join(each.active[0] for each in decisions), [each.reason for each in decisions]


def test_the_player_trains_that_brings_the_signal_back():
    rule = Balance(low=0.6, high=0.8, window=1)
    actives, reasons = trained(rule, [0.9, 0.9, 0.5, 0.5, 0.9])
    assert actives == "ggccg"
    assert reasons == ["above", "above", "below", "below", "above"]


def test_inside_the_band_the_modules_take_turns():
    actives, reasons = trained(Balance(low=0.6, high=0.8, window=1, steps=(1, 2)), [0.6, 0.7, 0.8, 0.6, 0.6, 0.6])
    assert actives == "ccgccg"
    assert set(reasons) == {"scheduled", "min_steps"}


def test_while_nothing_is_known_of_the_signal_the_modules_take_turns():
    actives, _ = trained(Balance(low=0.6, high=0.8), [None] * 5)
    assert actives == "cgcgc"


def test_the_newest_values_are_averaged():
    actives, _ = trained(Balance(low=0, high=1, window=2), [0.5, 3.0, 0.0, 0.0])
    assert actives == "cggc"  # means 0.5, 1.75, 1.5, 0


def test_a_waiting_module_trains_whatever_the_signal():
    actives, reasons = trained(Balance(low=0, high=1, window=1, max_wait=4), [2.0] * 9)
    assert actives == "gggcggggc"
    assert reasons.count("stale") == 2
    assert Balance(low=0, high=1).tenure_limit == ("max_wait", 50)


def test_no_module_of_three_starves_between_two_players():
    rule = Balance(low=0.6, high=0.8, window=1, above=0, below=1, of=1, max_wait=6)
    actives, _ = trained(rule, [0.9, 0.5] * 20, modules=("generator", "critic", "judge"))
    assert 4 <= actives.count("j") <= 8
    assert max(map(len, actives.split("j"))) <= 7


def test_the_larger_loss_trains_under_a_ratio():
    alternator = Alternator(("a", "b"), Balance(low=0.5, high=2.0, signal="ratio", window=2))
    assert alternator.observe({"a": -6.0, "b": 2.0}).explain() == "step 1: a trains on (signal 3 > 2)"
    assert alternator.observe({"a": -2.0, "b": 16.0}).explain() == "step 2: a → b (signal 0.444 < 0.5)"


def test_the_loss_that_moves_faster_trains_under_changes():
    alternator = Alternator(("a", "b"), Balance(low=1, high=1, signal="change", window=1, max_wait=10))
    assert alternator.observe({"a": 1.0, "b": 1.0}).reason == "scheduled"
    assert alternator.observe({"a": 1.5, "b": 1.1}).explain() == "step 2: b → a (signal 5 > 1)"
    assert alternator.observe({"a": 1.6, "b": 2.1}).explain() == "step 3: a → b (signal 0.0733 < 1)"


@pytest.mark.parametrize("signal", ["ratio", "change"])
def test_losses_of_which_nothing_can_be_said_are_no_signal(signal):
    alternator = Alternator(("a", "b"), Balance(low=1, high=1, signal=signal))
    for _ in range(6):
        assert alternator.observe({"a": 0.0, "b": 0.0}).reason == "scheduled"
    huge = Alternator(("a", "b"), Balance(low=1, high=1, signal=signal))
    for _ in range(6):
        assert huge.observe({"a": 1e308, "b": 1e-308}).reason == "scheduled"


def test_it_has_no_state_of_its_own():
    assert Balance(low=0, high=1).init(2) == BalanceState()
