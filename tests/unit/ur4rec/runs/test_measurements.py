"""What a run keeps of a Payoff schedule's measurements is what the rule compared."""

import random

import pytest

from alternator import Alternator, Cycle, Payoff
from ur4rec.runs.measurements import PayoffWatch, read_measurements, write_measurements
from ur4rec.schedule.stages import MODULES, TURNS, turns_of


def measure(alternator, draw, worth):
    """Record the payoffs of the turns that have trained, as a probe does."""
    trained = TURNS[alternator.active]
    for turn, members in ((turn, TURNS[turn]) for turn in sorted(turns_of(MODULES))):
        if set(members) <= set(trained):
            for _ in range(alternator.rule.groups):
                alternator.record(turn, sum(worth[name] for name in members) + draw.gauss(0, 0.05))


def run(num_looks, resume_at=None):
    """Measurements and decisions of a schedule whose retriever stops paying halfway."""
    draw = random.Random(3)
    rule = Payoff(costs=(1.0, 0.6, 0.7), min_steps=5, groups=8, retry_after=20)
    alternator = Alternator(("both", "sasrec", "retriever"), rule)
    watch, found, decisions = PayoffWatch(), [], []
    for step in range(1, 5 * num_looks + 1):
        if step == resume_at:
            watch = PayoffWatch()
            watch.restore(alternator, found)
        if step % 5 == 0:
            measure(alternator, draw, {"sasrec": 1.0, "retriever": 0.6 if step < 5 * num_looks / 2 else 0.0})
        decisions.append(alternator.advance())
        found += watch.after_step(alternator, step)
    return found, {decision.step: decision for decision in decisions}


def test_each_measurement_has_the_numbers_of_its_decision():
    found, decisions = run(40)
    judged = {step: each for step, each in decisions.items() if each.reason in ("pays", "unconfirmed", "idle")}
    assert {"pays", "unconfirmed", "idle"} == {each.reason for each in judged.values()}
    for step, decision in judged.items():
        margins = [each.margin for each in found if each.step == step]
        assert len(margins) == 2
        assert decision.value == pytest.approx(min(margins))
        assert decision.limit == -found[0].z
    alone = {step: each for step, each in decisions.items() if each.reason in ("best_gain", "less_gain")}
    assert alone
    for step, decision in alone.items():
        (each,) = [each for each in found if each.step == step]
        assert (each.active, each.module) == ("sasrec", "sasrec")
        assert (each.payoff, each.limit) == pytest.approx((decision.value, decision.limit))


def test_a_watch_that_is_restored_finds_the_same():
    assert run(40, resume_at=83)[0] == run(40)[0]


def test_measurements_are_read_back():
    found, _ = run(4)
    assert read_measurements(write_measurements(found, header=True)) == found
    assert write_measurements(found, header=False) in write_measurements(found, header=True)


def test_other_rules_measure_nothing():
    alternator = Alternator(("sasrec", "retriever"), Cycle(1))
    alternator.observe(1.0)
    assert PayoffWatch().after_step(alternator, 1) == []
