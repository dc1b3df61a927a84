"""Trend: the figures it must reach on noisy losses, and what its looks see."""

import math
import random
import statistics

import pytest

from alternator import Alternator, ConfigurationError, Reason, Trend
from alternator.rules._looks import look_spacing
from tests.unit.alternator.runs import noisy

LONG = Trend(max_steps=None)


def first_switch(losses, rule=LONG):
    """The decision that ends the first tenure, or None."""
    alternator = Alternator(("a", "b"), rule)
    return next((decision for loss in losses if (decision := alternator.observe(loss)).switched), None)


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_it_switches_within_200_steps_of_a_plateau(noise):
    steps = [first_switch(noisy(seed, 2000, 0.0, noise)).step for seed in range(60)]
    assert statistics.median(steps) <= 200


@pytest.mark.parametrize(
    ("slope", "noise", "rho", "num_steps", "share"),
    [
        (0.002, 0.1, 0.0, 2000, 0.95),
        (0.005, 0.2, 0.0, 2000, 0.95),
        (0.0004, 0.01, 0.0, 1000, 0.95),
        (0.0007, 0.01, 0.0, 1000, 0.95),
        (0.002, 0.1, 0.5, 2000, 0.90),
    ],
)
def test_it_holds_while_the_loss_falls(slope, noise, rho, num_steps, share):
    held = [first_switch(noisy(seed, num_steps, slope, noise, rho)) is None for seed in range(40)]
    assert statistics.mean(held) >= share


def test_divergence_is_caught_within_60_steps():
    decisions = [first_switch(noisy(seed, 400, -0.005, 0.1)) for seed in range(60)]
    assert statistics.median(decision.step for decision in decisions) <= 60
    assert sum(decision.reason == Reason.DIVERGING for decision in decisions) > 30
    assert all(decision.reason != Reason.DIVERGING or decision.value < decision.limit < 0 for decision in decisions)


def test_divergence_is_caught_after_a_long_fall():
    delays = []
    for seed in range(20):
        noise = noisy(seed, 1200, 0.0, 0.1)
        base = [math.exp(-0.002 * min(step, 800) + 0.005 * max(step - 800, 0)) for step in range(1200)]
        decision = first_switch([level * error for level, error in zip(base, noise, strict=True)])
        delays.append(decision.step - 800)
    assert 0 < statistics.median(delays) <= 100


def test_noise_decides_how_long_it_takes_to_be_sure():
    steps = [
        statistics.median(first_switch(noisy(seed, 2000, 0.0, noise)).step for seed in range(30))
        for noise in (0.001, 0.01, 0.03, 0.1)
    ]
    assert steps == sorted(steps)
    assert steps[0] < 60 < 2 * steps[0] < steps[-1]


def test_equal_slopes_are_decided_by_their_standard_errors():
    wave = [(1, -1, -1, 1)[step % 4] for step in range(28)]  # has no slope in any four losses
    quiet, loud = (Alternator(("a", "b"), Trend(min_steps=28, confirmations=1)) for _ in range(2))
    for sign in wave:
        sure, unsure = quiet.observe(1 + 0.001 * sign), loud.observe(1 + 0.3 * sign)
    assert (sure.reason, sure.switched) == (Reason.PLATEAU, True)
    assert (unsure.reason, unsure.switched) == (Reason.UNSURE, False)
    assert unsure.value == pytest.approx(300 * sure.value, rel=0.5)


def test_spikes_neither_switch_nor_hold_it():
    def spiked(seed, slope):
        draw = random.Random(seed)
        return [loss * (20 if draw.random() < 0.02 else 1) for loss in noisy(seed, 1000, slope, 0.03)]

    assert sum(first_switch(spiked(seed, 0.002)) is None for seed in range(20)) >= 19
    assert statistics.median(first_switch(spiked(seed, 0.0)).step for seed in range(20)) <= 250


def test_a_drop_is_a_fall_until_it_has_left_the_window():
    losses = [1.0 - 0.002 * min(step, 100) for step in range(400)]
    assert 150 < first_switch(losses).step <= 100 + LONG.window + 2 * look_spacing(LONG.window)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_horizon_counts_updated_steps_however_often_losses_come(every):
    alternator = Alternator(("a", "b"), Trend(max_steps=None, min_steps=100))
    for step in range(101):
        if step % every == 0:
            alternator.record("a", math.exp(-0.001 * step))
        decision = alternator.advance()
    assert decision.reason == Reason.IMPROVING
    assert decision.value == pytest.approx(0.1, rel=0.1)


def test_it_says_what_it_waits_for():
    alternator = Alternator(("a", "b"), Trend(min_steps=5, confirmations=3))
    texts = {}
    losses = [1.0 - 0.01 * step for step in range(30)] + [0.7] * 300
    for loss in losses:
        decision = alternator.observe(loss)
        texts.setdefault(decision.reason, decision.explain())
        if decision.switched:
            break
    assert list(texts) == [
        Reason.MIN_STEPS,
        Reason.FEW_LOSSES,
        Reason.IMPROVING,
        Reason.UNCONFIRMED_PLATEAU,
        Reason.PLATEAU,
    ]
    assert texts[Reason.FEW_LOSSES] == "step 5: a trains on (5 of 10 losses seen)"
    assert "(plateau, confirmation 1 of 3)" in texts[Reason.UNCONFIRMED_PLATEAU]


def test_max_steps_ends_a_tenure_that_improves():
    decision = first_switch(noisy(1, 400, 0.005, 0.01), Trend(max_steps=70))
    assert (decision.step, decision.reason, decision.all_plateaued) == (70, Reason.MAX_STEPS, False)


def test_it_says_when_all_have_plateaued():
    alternator = Alternator(("a", "b", "c"), Trend())
    switches = [decision for _ in range(200) if (decision := alternator.observe(1.0)).switched]
    assert [decision.all_plateaued for decision in switches[:4]] == [False, False, True, True]


def test_divergence_is_no_plateau():
    alternator = Alternator(("a", "b"), Trend())
    switches = [decision for step in range(200) if (decision := alternator.observe(1.01**step)).switched]
    assert {decision.reason for decision in switches} == {Reason.DIVERGING}
    assert not any(decision.all_plateaued for decision in switches)


@pytest.mark.parametrize(("noise", "slope"), [(0.03, -0.001), (0.1, -0.002)])
def test_a_rise_that_is_not_beyond_doubt_is_no_plateau(noise, slope):
    decisions = [first_switch(noisy(seed, 2000, slope, noise)) for seed in range(100)]
    rises = [decision for decision in decisions if decision.reason == Reason.RISING]
    assert len(rises) > 30
    assert all(decision.value <= decision.limit <= -0.01 for decision in rises)
    assert sum(decision.reason == Reason.PLATEAU for decision in decisions) < 10


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.03, 0.1])
def test_a_flat_loss_seldom_reads_as_a_rise(noise):
    reasons = [first_switch(noisy(seed, 2000, 0.0, noise)).reason for seed in range(100)]
    assert reasons.count(Reason.PLATEAU) >= 85


def test_it_says_that_the_loss_rises_before_and_when_it_switches():
    alternator = Alternator(("a", "b"), Trend(rise_confidence=0.999999))
    decisions = [alternator.observe(loss) for loss in noisy(2, 400, -0.001, 0.03)]
    switch = next(decision for decision in decisions if decision.switched)
    held = decisions[switch.step - 2]
    assert held.reason == Reason.RISING_UNCONFIRMED
    assert held.explain().endswith("% ≤ -1.00%; to be confirmed)")
    assert (switch.reason, switch.active) == (Reason.RISING, "b")
    assert switch.explain().startswith(f"step {switch.step}: a → b (the loss rises: expected gain -")


def test_modules_whose_losses_rise_have_not_all_plateaued():
    alternator = Alternator(("a", "b"), Trend(rise_confidence=0.999999))
    switches = []
    for _ in range(4):  # the same rise in each tenure
        losses = iter(noisy(2, 400, -0.001, 0.03))
        switches.append(next(decision for loss in losses if (decision := alternator.observe(loss)).switched))
    assert {decision.reason for decision in switches} == {Reason.RISING}
    assert not any(decision.all_plateaued for decision in switches)


def test_looks_are_an_eighth_of_the_losses_apart():
    assert [look_spacing(count) for count in (10, 64, 80, 200)] == [8, 8, 10, 25]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_gain": 0.0}, "min_gain must be a finite number above 0, got 0.0"),
        ({"horizon": 0}, "horizon must be an integer of at least 1, got 0"),
        ({"window": 39}, "window must be an integer of at least 40, got 39"),
        ({"min_steps": 0}, "min_steps must be an integer of at least 1, got 0"),
        ({"max_steps": 19}, "max_steps must be an integer of at least 20, got 19"),
        ({"confidence": 0.5}, "confidence must be a number above 0.5 and below 1, got 0.5"),
        ({"confidence": True}, "confidence must be a number above 0.5 and below 1, got True"),
        ({"confidence": "high"}, "confidence must be a number above 0.5 and below 1, got 'high'"),
        ({"rise_confidence": 1.0}, "rise_confidence must be a number above 0.5 and below 1, got 1.0"),
        ({"confirmations": 0}, "confirmations must be an integer of at least 1, got 0"),
    ],
)
def test_what_cannot_work_is_refused_when_built(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Trend(**settings)
