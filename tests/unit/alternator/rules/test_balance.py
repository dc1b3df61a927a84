"""Balance: players take turns, and the one that brings the signal back into its band gets longer ones."""

import pytest

from alternator import Alternator, Balance, ConfigurationError, StateError
from alternator.rules.balance import BalanceState

PLAYERS = ("generator", "critic")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Balance(low=2, high=1), r"low must be at most high \(1\), got 2; exchange the two"),
        (lambda: Balance(low="0.5", high=1), "low must be at least -inf and below inf, got '0.5'"),
        (lambda: Balance(low=0, high=float("inf")), "high must be at least -inf and below inf, got inf"),
        (lambda: Balance(above=1), "above and below must be different modules, got 1 for both"),
        (lambda: Balance(of=-1), "of must be an integer of at least 0"),
        (lambda: Balance(window=0), "window must be an integer of at least 1"),
        (lambda: Balance(factor=1), "factor must be at least 1.001 and below inf, got 1"),
        (lambda: Balance(steps=(1, 0)), "steps must be an integer of at least 1"),
        (lambda: Balance(steps=16), r"max_steps must be above steps \(16\), got 16"),
        (lambda: Balance(steps=(1, 9), max_steps=8), r"max_steps must be above steps \(9\), got 8"),
    ],
)
def test_what_cannot_work_is_refused_when_built(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"of": 2}, "of must be the place of a module, 0 to 1, got 2"),
        ({"above": 5}, "above must be the place of a module, 0 to 1, got 5"),
        ({"steps": (1, 2, 3)}, r"steps must be one number or one per module \(2\), got 3"),
    ],
)
def test_what_does_not_fit_the_modules_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Alternator(PLAYERS, Balance(**settings))


def trained(rule, signals, modules=PLAYERS, recorded="critic"):
    """Who trains in each step, where these values are recorded before it is counted; and the reasons."""
    alternator = Alternator(modules, rule)
    actives, reasons = "", []
    for value in signals:
        actives += alternator.active[0]
        if value is not None:
            alternator.record(recorded, value)
        reasons.append(alternator.advance().reason)
    return actives, reasons


def test_inside_the_band_the_modules_take_turns():
    actives, reasons = trained(Balance(window=1, steps=(1, 2)), [0.8, 0.85, 0.9, 0.8, 0.9, 0.8])
    assert actives == "gccgcc"
    assert set(reasons) == {"scheduled", "min_steps"}


def test_while_nothing_is_known_of_the_signal_they_take_turns():
    actives, reasons = trained(Balance(), [None] * 5)
    assert actives == "gcgcg"
    assert set(reasons) == {"scheduled"}


def test_below_the_band_the_critic_gets_longer_turns_round_by_round_up_to_the_longest():
    actives, reasons = trained(Balance(window=1, factor=2, max_steps=6), [0.5] * 24)
    assert actives == "g" + "cc" + "g" + "cccc" + "g" + "cccccc" + "g" + "cccccc" + "gc"
    assert reasons[:3] == ["below", "min_steps", "scheduled"]


def test_above_the_band_the_generator_does():
    actives, reasons = trained(Balance(window=1, factor=2, max_steps=4), [0.95] * 16)
    assert actives == "gc" + "ggc" + "ggggc" + "ggggc" + "g"
    assert reasons[0] == "above"


def test_a_turn_that_is_longer_becomes_shorter_again_before_the_other_becomes_longer():
    rule = Balance(window=1, factor=2, max_steps=4)
    actives, _ = trained(rule, [0.5] * 8 + [0.95] * 9)
    assert actives == "gcc" + "gcccc" + "gcc" + "gc" + "gc" + "gg"


def test_a_decision_says_what_the_signal_is():
    alternator = Alternator(PLAYERS, Balance())
    alternator.record("critic", 0.5)
    assert alternator.advance().explain() == "step 1: generator → critic (signal 0.5 < 0.8)"
    alternator.record("critic", 0.5)
    assert alternator.advance().explain() == "step 2: critic → generator (tenure 1 of 1 is over)"


def test_the_newest_values_are_averaged():
    _, reasons = trained(Balance(low=0.5, high=1, window=2), [0.6, 0.3, 0.8, 0.0, 2.4])
    assert reasons == ["scheduled", "scheduled", "scheduled", "scheduled", "above"]  # 0.6, .., 0.55, .., 1.2


def test_a_signal_of_another_module_with_the_sides_exchanged():
    """The critic's own loss: where it is high, the critic trains."""
    rule = Balance(low=0, high=1, of=1, above=1, below=0, window=1, factor=4)
    actives, _ = trained(rule, [3.0] * 8)
    assert actives == "gcgccccg"


def test_a_third_module_keeps_its_turn():
    rule = Balance(window=1, factor=2, steps=(1, 1, 3), max_steps=4)
    actives, _ = trained(rule, [0.95] * 14, modules=("generator", "critic", "judge"))
    assert actives == "gcjjj" + "ggcjjj" + "ggg"


def test_what_is_too_large_a_number_is_no_signal():
    _, reasons = trained(Balance(), [1e308] * 12)
    assert reasons[:2] == ["above", "scheduled"]
    assert set(reasons[2:]) == {"scheduled"}


def test_an_impossible_state_is_refused():
    rule = Balance()
    saved = Alternator(PLAYERS, rule).state_dict()
    assert rule.init(2) == BalanceState(0)
    for level, is_possible in ((rule.max_level, True), (-rule.max_level - 1, False)):
        saved["rule_state"] = {**saved["rule_state"], "level": level}
        alternator = Alternator(PLAYERS, rule)
        if is_possible:
            alternator.load_state_dict(saved)
        else:
            with pytest.raises(StateError):
                alternator.load_state_dict(saved)


def test_how_long_a_module_waits():
    assert Balance(max_steps=20).tenure_limit == ("max_steps", 20)


def test_the_ratio_finds_itself():
    """A game in which the critic's accuracy rises with its share of the steps."""
    alternator = Alternator(PLAYERS, Balance())
    accuracy = 0.5
    for _ in range(3000):
        accuracy += 0.01 * ((0.99 - accuracy) if alternator.active == "critic" else 4 * (0.5 - accuracy))
        alternator.record("critic", accuracy)
        alternator.advance()
    critic, generator = (alternator.stats().modules[name].training_steps for name in ("critic", "generator"))
    assert 0.79 < accuracy < 0.91
    assert 6 < critic / generator < 16
