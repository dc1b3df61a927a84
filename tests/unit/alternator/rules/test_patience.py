"""Patience decides as torch's ReduceLROnPlateau and as optax's reduce_on_plateau do."""

import math
import random

import jax
import jax.numpy as jnp
import pytest
import torch
from optax.contrib import reduce_on_plateau
from torch.optim.lr_scheduler import ReduceLROnPlateau

from alternator import Alternator, ConfigurationError, Patience, Reason
from alternator.rules.patience import BURST
from tests.unit.alternator.runs import noisy

NUM_TRACES = 1000
NUM_LOSSES = 60


def trace_of(draw):
    """Losses with ties, drifts, jumps and either sign."""
    level, drift, noise = draw.choice([-2.0, 0.0, 0.5, 3.0]), draw.choice([-0.02, 0.0, 0.01]), draw.choice([0.01, 0.2])
    losses = [level + drift * step + draw.gauss(0, noise) for step in range(NUM_LOSSES)]
    return [round(loss, 2) for loss in losses] if draw.random() < 0.5 else losses


def settings_of(draw):
    return {
        "patience": draw.choice([0, 1, 2, 5]),
        "threshold": draw.choice([0.0, 1e-4, 0.01, 0.1]),
        "threshold_mode": draw.choice(["rel", "abs"]),
        "cooldown": draw.choice([0, 0, 1, 4]),
    }


def scheduler_of(settings, mode="min"):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return ReduceLROnPlateau(optimizer, mode=mode, factor=0.9, min_lr=0.0, eps=0.0, **settings)


def cuts(scheduler, loss):
    """Whether the scheduler cuts the learning rate at this loss."""
    before = scheduler.optimizer.param_groups[0]["lr"]
    scheduler.step(loss)
    return scheduler.optimizer.param_groups[0]["lr"] < before


def switches_of(settings, trace):
    """Whether the rule switches, loss by loss, if the same module always continues."""
    alternator = Alternator(("a", "b"), Patience(**settings))
    switched = []
    for loss in trace:
        switched.append(alternator.observe(loss).switched)
        if switched[-1]:
            alternator.force("a")
    return switched


def test_it_decides_as_torch_does_on_random_traces():
    total = 0
    for seed in range(NUM_TRACES):
        draw = random.Random(seed)
        settings, mode, trace = settings_of(draw), draw.choice(["min", "max"]), trace_of(draw)
        scheduler = scheduler_of(settings, mode)
        expected = [cuts(scheduler, loss) for loss in trace]
        assert switches_of({**settings, "mode": mode}, trace) == expected, (seed, settings, mode)
        total += sum(expected)
    assert total > NUM_TRACES


@pytest.mark.parametrize("seed", range(50))
def test_with_nonfinite_losses_it_decides_as_torch_does_on_the_finite_ones(seed):
    draw = random.Random(seed)
    settings, mode, trace = settings_of(draw), draw.choice(["min", "max"]), trace_of(draw)
    mixed = [loss if draw.random() < 0.8 else draw.choice([math.nan, math.inf, -math.inf]) for loss in trace]
    scheduler = scheduler_of(settings, mode)
    expected = [math.isfinite(loss) and cuts(scheduler, loss) for loss in mixed]
    assert switches_of({**settings, "mode": mode}, mixed) == expected


NONFINITE = {
    "nan is bad to torch": ({"patience": 1}, [1.0, math.nan, math.nan, 1.0, 1.0], [3, 5], [5]),
    "inf is bad to torch": ({"patience": 1}, [1.0, math.inf, math.inf, 1.0, 1.0], [3, 5], [5]),
    "-inf is the best to torch": ({"patience": 1}, [1.0, -math.inf, 0.5, 0.4, 0.3], [4], []),
    "inf is the best to torch": ({"patience": 1, "mode": "max"}, [1.0, math.inf, 2.0, 3.0, 4.0], [4], []),
    "nan cools torch down": (
        {"patience": 0, "cooldown": 2},
        [1.0, 1.0, math.nan, math.nan, 1.0, 1.0, 1.0],
        [2, 5],
        [2, 7],
    ),
}


@pytest.mark.parametrize("name", NONFINITE)
def test_what_torch_makes_of_nonfinite_losses_instead(name):
    """The documented difference: step by step, where the scheduler cuts and where the rule switches."""
    settings, trace, cut_at, switched_at = NONFINITE[name]
    scheduler = scheduler_of(
        {key: value for key, value in settings.items() if key != "mode"}, settings.get("mode", "min")
    )
    assert [step for step, loss in enumerate(trace, 1) if cuts(scheduler, loss)] == cut_at
    assert [step for step, switched in enumerate(switches_of(settings, trace), 1) if switched] == switched_at


def test_each_module_has_a_scheduler_of_its_own():
    for seed in range(100):
        draw = random.Random(seed)
        settings = settings_of(draw)
        traces = {name: trace_of(draw) for name in "abc"}
        schedulers = {name: scheduler_of(settings) for name in "abc"}
        alternator = Alternator(("a", "b", "c"), Patience(**settings))
        for step in range(NUM_LOSSES):
            losses = {name: trace[step] for name, trace in traces.items()}
            active = alternator.active
            assert alternator.observe(losses).switched == cuts(schedulers[active], losses[active])


def optax_cuts(settings, traces):
    """Whether optax scales down, per trace and loss, in float64 as the rule."""
    threshold = {"rtol" if settings["threshold_mode"] == "rel" else "atol": settings["threshold"]}
    other = {"atol" if settings["threshold_mode"] == "rel" else "rtol": 0.0}
    transform = reduce_on_plateau(
        factor=0.9, patience=settings["patience"] + 1, cooldown=settings["cooldown"], **threshold, **other
    )

    def run(trace):
        def step(state, value):
            _, new = transform.update(jnp.ones(()), state, value=value)
            return new, new.scale < state.scale

        return jax.lax.scan(step, transform.init(jnp.ones(())), trace)[1]

    with jax.enable_x64(True):
        return jax.jit(jax.vmap(run))(jnp.asarray(traces, jnp.float64)).tolist()


@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize(("patience", "cooldown"), [(0, 0), (0, 3), (2, 0), (2, 1), (5, 4)])
def test_it_decides_as_optax_does_with_one_more_patience(patience, cooldown, threshold_mode):
    draw = random.Random(patience)
    settings = {
        "patience": patience,
        "cooldown": cooldown,
        "threshold": draw.choice([1e-4, 0.01, 0.1]),
        "threshold_mode": threshold_mode,
    }
    traces = [trace_of(draw) for _ in range(NUM_TRACES // 10)]
    expected = optax_cuts(settings, traces)
    assert [switches_of(settings, trace) for trace in traces] == expected
    assert sum(map(sum, expected)) > 100


def test_smoothing_judges_the_moving_average():
    for seed in range(50):
        trace = trace_of(random.Random(seed))
        averages = [trace[0]]
        for loss in trace[1:]:
            averages.append(0.8 * averages[-1] + (1 - 0.8) * loss)
        assert switches_of({"smoothing": 0.8, "patience": 3}, trace) == switches_of({"patience": 3}, averages)


def test_the_best_survives_unless_each_tenure_restarts():
    losses = [1.0, 2.0, 3.0, 2.9, 2.8, 2.7]
    assert switches_of({"patience": 0}, losses) == [False, True, True, True, True, True]
    assert switches_of({"patience": 0, "restart": True}, losses) == [False, True, False, False, False, False]
    restarted = {"patience": 0, "restart": True, "smoothing": 0.5}
    assert switches_of(restarted, losses) == [False, True, False, False, False, False]


def test_losses_that_come_together_are_judged_one_by_one():
    alternator = Alternator(("a", "b"), Patience(patience=2))
    for loss in (1.0, 1.1):
        alternator.record("a", loss)
    assert alternator.advance().value == 1
    assert alternator.advance().value == 1
    for loss in (1.2, 1.3, 0.5):
        alternator.record("a", loss)
    decision = alternator.advance()
    assert (decision.switched, decision.reason, decision.value) == (True, Reason.OUT_OF_PATIENCE, 3)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_rise_is_told_from_a_loss_that_has_stopped_falling(sign):
    switches = {}
    for name, losses in {"rises": (0.5, 0.6, 0.7, 0.81), "flat": (0.5, 0.6, 0.6, 0.6), "two": (0.5, 0.6)}.items():
        rule = Patience(patience=len(losses) - 2, mode="min" if sign > 0 else "max", threshold_mode="abs")
        alternator = Alternator(("a", "b"), rule)
        switches[name] = [alternator.observe(sign * loss) for loss in losses][-1]
    assert all(decision.switched for decision in switches.values())
    reasons = {name: decision.reason for name, decision in switches.items()}
    assert reasons == {
        "rises": Reason.RISING_OUT_OF_PATIENCE,
        "flat": Reason.OUT_OF_PATIENCE,
        "two": Reason.OUT_OF_PATIENCE,
    }
    assert switches["rises"].explain() == "step 4: a → b (the loss rises: bad losses in a row: 3 > patience 2)"


@pytest.mark.parametrize(("step", "ended"), [(0.1, False), (0.0, True)])
def test_a_rise_is_no_plateau(step, ended):
    alternator = Alternator(("a", "b"), Patience(patience=2, restart=True))
    decisions = [alternator.observe(1 + step * (number % 4)) for number in range(8)]
    assert [decision.step for decision in decisions if decision.switched] == [4, 8]
    assert decisions[-1].all_plateaued is ended


def test_noise_seldom_reads_as_a_rise():
    ends = []
    for seed in range(200):
        alternator = Alternator(("a", "b"), Patience())
        losses = noisy(seed, 400, 0.0, 0.1)
        ends.append(next(decision.reason for loss in losses if (decision := alternator.observe(loss)).switched))
    assert ends.count(Reason.OUT_OF_PATIENCE) >= 180


def test_of_a_larger_burst_the_newest_losses_are_judged():
    alternator = Alternator(("a", "b"), Patience(patience=BURST))
    for loss in range(3 * BURST):
        alternator.record("a", float(loss))
    assert alternator.advance().value == BURST - 1


def test_reasons():
    alternator = Alternator(("a", "b"), Patience(patience=1, cooldown=2, max_steps=4))
    seen = [alternator.observe(loss).explain() for loss in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.7)]
    assert seen[:3] == [
        "step 1: a trains on (bad losses in a row: 0, patience 1)",
        "step 2: a trains on (bad losses in a row: 1, patience 1)",
        "step 3: a → b (bad losses in a row: 2 > patience 1)",
    ]
    assert seen[6] == "step 7: a trains on (cooling down: 1 of 2 losses left)"
    assert seen[9] == "step 10: a → b (tenure 4 reached max_steps 4)"


def test_leaving_for_patience_is_a_plateau_and_max_steps_is_not():
    alternator = Alternator(("a", "b"), Patience(patience=0, max_steps=2))
    assert [alternator.observe(1.0).all_plateaued for _ in range(4)] == [False, False, False, True]
    alternator = Alternator(("a", "b"), Patience(max_steps=2))
    assert not any(alternator.observe(1.0 / step).all_plateaued for step in range(1, 20))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": -1}, "patience must be an integer of at least 0, got -1"),
        ({"cooldown": 0.5}, "cooldown must be an integer of at least 0, got 0.5"),
        ({"threshold": 1.0}, "threshold must be at least 0 and below 1, got 1.0"),
        ({"threshold": math.inf, "threshold_mode": "abs"}, "threshold must be at least 0 and below inf"),
        ({"threshold": -0.1}, "threshold must be at least 0"),
        ({"threshold": True}, "threshold must be at least 0"),
        ({"smoothing": 1}, "smoothing must be at least 0 and below 1, got 1"),
        ({"smoothing": "x"}, "smoothing must be at least 0 and below 1, got 'x'"),
        ({"mode": "least"}, r"unknown mode 'least'; expected one of \('min', 'max'\)"),
        ({"threshold_mode": "both"}, r"unknown threshold_mode 'both'; expected one of \('rel', 'abs'\)"),
        ({"restart": "yes"}, r"restart must be True or False, got 'yes'"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1, got 0"),
    ],
)
def test_what_cannot_work_is_refused_when_built(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Patience(**settings)
