"""Decision logs of the machine on the device equal the core's: golden traces, and random ones for every rule.

In float32 a number that a rule compares can fall on the other side of its limit when it lies within the rule's stated
margin of it. A random trace is cut at the first such step; few may be.
"""

import json
import logging
from functools import cache, partial
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import fmean

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alternator.rules.trend
from adapters.jax import DeviceAlternator
from alternator import (
    Alternator,
    Balance,
    Cycle,
    Gain,
    Patience,
    Payoff,
    Plateau,
    RandomTenure,
    Reason,
    Trend,
    Trial,
    rules,
)
from alternator.rules._paired import standard_score
from alternator.rules._regression import SURE_RISE, least_squares, robust_gain

TRACES = Path(__file__).parents[3] / "traces"
NUM_TRACES = 500


def golden(name):
    cases = json.loads((TRACES / f"{name}.json").read_text())["cases"]
    return [pytest.param(case, id=case["name"]) for case in cases]


def plateau(case):
    rule = Plateau(threshold=case["threshold"], min_steps=case["min_steps"], window=case["window"])
    return machine_for(tuple(case["modules"]), rule)


@cache
def machine_for(modules, rule):
    machine = DeviceAlternator(modules, rule)
    return machine, jax.jit(lambda *inputs: jax.lax.scan(lambda s, x: machine.step(s, *x), machine.init(), inputs))


@pytest.mark.parametrize("case", golden("plateau"))
def test_golden_traces(case):
    _, run = plateau(case)
    losses_TN = jnp.asarray(np.array([case["losses"][name] for name in case["modules"]]).T, jnp.float32)
    _, log = run(losses_TN)
    assert np.asarray(log.active).tolist() == case["active"]
    assert np.flatnonzero(log.switched).tolist() == case["switched_at"]


@pytest.mark.parametrize("case", golden("events"))
def test_golden_events(case):
    machine, _ = plateau(case)
    run = events_for(machine)
    state, active = run(encode(case["calls"], machine.modules))
    trained = [machine.modules[index] for index in active.tolist()]
    given = [call.get("active") or name for call, name in zip(case["calls"], trained, strict=True)]
    assert sum("active" in call for call in case["calls"]) > 100
    assert trained == given
    host = Alternator(machine.modules, machine.rule)
    for call in case["calls"]:
        replay(host, call)
    assert machine.to_host(state).state_dict()["counts"] == host.state_dict()["counts"]


@cache
def events_for(machine):
    """All calls of a trace in one scan, each an array of which call it is and with what."""

    def observe(state, call):
        return machine.step(state, call["value"], call["updated"])[0]

    def observe_some(state, call):
        for index in range(len(machine.modules)):
            recorded = machine.record(state, index, call["values"][index])
            state = jax.tree.map(partial(jnp.where, call["known"][index]), recorded, state)
        return machine.advance(state, call["updated"])[0]

    def record(state, call):
        return machine.record(state, call["module"], call["value"])

    def advance(state, call):
        return machine.advance(state, call["updated"])[0]

    def force(state, call):
        return machine.force(state, call["module"])

    def step(state, call):
        state = jax.lax.switch(call["kind"], [observe, observe_some, record, advance, force], state, call)
        return state, state.active

    return jax.jit(lambda calls: jax.lax.scan(step, machine.init(), calls))


def encode(calls, modules):
    rows = []
    for call in calls:
        row = {"kind": 3, "value": 0.0, "updated": was_updated(call), "module": 0}
        row |= {"values": [0.0] * len(modules), "known": [False] * len(modules)}
        if "observe" in call and isinstance(call["observe"], dict):
            row |= {"kind": 1, "values": [float(call["observe"].get(name, 0)) for name in modules]}
            row["known"] = [name in call["observe"] for name in modules]
        elif "observe" in call:
            row |= {"kind": 0, "value": float(call["observe"])}
        elif "record" in call:
            row |= {"kind": 2, "module": modules.index(call["record"][0]), "value": float(call["record"][1])}
        elif "force" in call:
            row |= {"kind": 4, "module": modules.index(call["force"])}
        rows.append(row)
    columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    kinds = {"value": jnp.float32, "values": jnp.float32, "kind": jnp.int32, "module": jnp.int32}
    return {key: jnp.asarray(column, kinds.get(key)) for key, column in columns.items()}


def was_updated(call):
    return call.get("advance", call).get("updated", True)


def replay(host, call):
    updated = was_updated(call)
    if "observe" in call:
        losses = call["observe"]
        as_floats = {k: float(v) for k, v in losses.items()} if isinstance(losses, dict) else float(losses)
        host.observe(as_floats, updated=updated)
    elif "record" in call:
        host.record(call["record"][0], float(call["record"][1]))
    elif "force" in call:
        host.force(call["force"])
    else:
        host.advance(updated=updated)


RANDOM: list[tuple[object, int, int]] = [
    (Balance(), 2, 120),
    (Balance(low=1.0, high=1.0, of=0, above=1, below=0, window=4, factor=1.5, steps=2, max_steps=9), 2, 120),
    (Balance(low=0.5, high=2.0, of=0, above=2, below=0, window=3, factor=1.3, steps=(1, 3, 2), max_steps=7), 3, 120),
    (Cycle((1, 2, 4)), 3, 60),
    (Plateau(), 2, 120),
    (Plateau(threshold=0.05, min_steps=2, window=5), 3, 120),
    (Patience(patience=4), 2, 120),
    (Patience(patience=2, smoothing=0.7, cooldown=2, restart=True, max_steps=40), 3, 120),
    (Patience(patience=3, mode="max", threshold_mode="abs", threshold=0.01), 2, 120),
    (Trend(), 2, 300),
    (Trend(min_gain=0.02, horizon=50, window=44, min_steps=5, confirmations=1, max_steps=80), 3, 160),
    (Gain(), 2, 240),
    (Gain(min_steps=5, max_wait=40, window=20, costs=(1.0, 2.0, 0.5), switch_costs=(0, 5, 1)), 3, 160),
    (Payoff(costs=(2, 2, 1), switch_costs=(0, 0, 3), groups=4, min_steps=3, retry_after=6, max_retry_after=9), 3, 120),
    (Payoff(costs=(2.0, 1.5, 1.0), groups=6, min_steps=4, retry_after=8, max_retry_after=30), 3, 120),
    (Trial(steps=3, start=5, hold=20, halvings=9, groups=4), 2, 120),
    (Trial(steps=3, hold=6, groups=4), 3, 160),
    (Trial(steps=2, hold=6, halvings=1, groups=3, candidates=((0,), (1,), (2,), (0, 1), (1, 2))), 3, 160),
    (
        Trial(
            candidates=((0,), (1, 2), (2,), (0, 0, 1)), costs=(3, 1, 1), steps=2, start=6, hold=24, halvings=9, groups=3
        ),
        3,
        160,
    ),
    (RandomTenure(7.5, seed=3, min_steps=2), 3, 120),
]


def test_every_rule_is_covered():
    assert {type(rule).__name__ for rule, _, _ in RANDOM} == set(rules.__all__)


def make_losses(num_traces, num_steps, num_modules):
    """Float32 losses that fall, stall or rise, at any level and with any noise; some are not finite."""
    rng = np.random.default_rng(0)
    shape = (num_traces, 1, num_modules)
    slope, level = rng.uniform(-0.002, 0.006, shape), 10.0 ** rng.uniform(-2, 2, shape)
    noise = rng.choice([0.001, 0.003, 0.02, 0.1], shape)
    stalls = rng.integers(num_steps // 8, num_steps, shape)
    falls = np.exp(-slope * np.minimum(np.arange(num_steps)[None, :, None], stalls))
    losses = level * falls * (1 + noise * rng.standard_normal((num_traces, num_steps, num_modules)))
    losses[rng.random(losses.shape) < 0.01] = np.nan
    return losses.astype(np.float32), rng.random((num_traces, num_steps)) < 0.95


@pytest.mark.parametrize(("rule", "num_modules", "num_steps"), RANDOM)
def test_random_traces(rule, num_modules, num_steps, monkeypatch):
    share = -(-NUM_TRACES // sum(type(other) is type(rule) for other, _, _ in RANDOM))
    losses, updated = make_losses(share, num_steps, num_modules)
    modules = tuple("abc"[:num_modules])
    machine = DeviceAlternator(modules, rule)
    scan = partial(jax.lax.scan, lambda state, inputs: machine.step(state, *inputs), machine.init())
    run = jax.jit(lambda *inputs: jax.lax.map(scan, inputs))
    states, logs = jax.tree.map(np.asarray, run(jnp.asarray(losses), jnp.asarray(updated)))
    near = watch(rule, monkeypatch)
    cut = 0
    for trace in range(share):
        host = Alternator(modules, rule)
        device = machine.decisions(jax.tree.map(lambda leaf, t=trace: leaf[t], logs))
        for step, values in enumerate(losses[trace].tolist()):
            near.clear()
            expected = host.observe(dict(zip(modules, values, strict=True)), updated=bool(updated[trace, step]))
            if any(near):
                cut += 1
                break
            assert summary(device[step]) == summary(expected), f"trace {trace}"
        else:
            state = jax.tree.map(lambda leaf, t=trace: leaf[t], states)
            assert machine.state_dict(state)["counts"] == host.state_dict()["counts"]
    logging.getLogger("tests.traces").warning("%r: %d of %d traces cut", rule, cut, share)  # shown by -rP
    assert cut < 0.05 * share


def summary(decision):
    return decision._replace(value=None, limit=None)


def watch(rule, monkeypatch):
    """A list to which each decision of the core's rule adds whether a comparison was inside the stated margin."""
    near, gains = [], []
    kind, step = type(rule), type(rule).step
    monkeypatch.setattr(
        *(alternator.rules.trend, "robust_gain"), lambda losses: gains.append(robust_gain(losses)) or gains[-1]
    )

    def watched(self, state, facts):
        gains.clear()
        result = step(self, state, facts)
        near.append(NEAR[kind](self, state, facts, *result, gains))
        return result

    monkeypatch.setattr(kind, "step", watched)
    return near


def never(rule, before, facts, after, verdict, gains):
    return False


def near_plateau(rule, before, facts, after, verdict, gains):
    """The change rate, within 1e-6 · (1 + rate)."""
    compared = verdict.reason in (Reason.CHANGING, Reason.RISING_CHANGE, Reason.STEADY)
    return compared and abs(verdict.value - verdict.limit) <= 1e-6 * (1 + verdict.value)


def near_patience(rule, before, facts, after, verdict, gains):
    """The loss or its moving average, within 1e-6 · (abs(best) + threshold) of what would be better; at a switch, the
    slope within 1e-5 of the losses' range of `SURE_RISE` standard errors.
    """
    if verdict.reason in (Reason.OUT_OF_PATIENCE, Reason.RISING_OUT_OF_PATIENCE):
        newest = list(facts.rings[facts.active])[-min(max(int(verdict.value), 3), facts.observed) :]
        line = least_squares(newest) if len(newest) > 2 else None
        slope = inf if line is None else abs(line.slope) - SURE_RISE * line.stderr
        if abs(slope) <= 1e-5 * max(abs(loss - newest[-1]) for loss in newest):
            return True
    if facts.observed <= (0 if facts.entered else before.seen):
        return False
    best = inf if facts.entered and rule.restart else before.best[facts.active]
    value = after.smoothed[facts.active] if rule.smoothing else facts.rings[facts.active][-1]
    value = -value if rule.mode == "max" and not rule.smoothing else value
    return best < inf and abs(value - (best * rule.factor - rule.margin)) <= 1e-6 * (abs(best) + rule.threshold)


def near_trend(rule, before, facts, after, verdict, gains):
    """The gain, its bound, or that of the rise, within 1e-6 · horizon + 0.1% of its standard-error term."""
    if not gains:
        return False
    count = min(facts.observed, rule.window)
    scale = rule.horizon * facts.observed / facts.tenure
    bound = rule.z * rule.window / count
    compared = [(gains[0], rule.rise_z, 0.0), (gains[-1], bound, rule.min_gain)]
    compared += [(gains[-1], 0.0, -rule.min_gain), (gains[-1], SURE_RISE, 0.0)]
    return any(
        abs((gain.rate + z * gain.stderr) * scale - limit) <= 1e-6 * rule.horizon + 0.001 * z * gain.stderr * scale
        for gain, z, limit in compared
    )


def near_gain(rule, before, facts, after, verdict, gains):
    """Two scores, within 1e-6 / cost."""
    scores = sorted(score for score in after.scores if score < inf)
    margin = 1e-6 / min(rule.step_costs or (1.0,))
    return after.scores != before.scores and any(b - a <= margin for a, b in pairwise(scores))


def near_payoff(rule, before, facts, after, verdict, gains):
    """Two sureties or a surety and its limit, within 1e-3 · (1 + z); payoffs, within 1e-5 of the largest."""
    if verdict.reason in (Reason.IDLE, Reason.UNCONFIRMED, Reason.PAYS):
        found = [rule._left_out(facts, index)[1] for index in range(1, facts.num_modules)]
        found = sorted([*(each for each in found if each < inf), -rule.z])
        return any(b - a <= 1e-3 * (1 + rule.z) for a, b in pairwise(found))
    largest = max((abs(value) for ring in facts.rings for value in ring), default=0.0)
    saved = min(each for each in (*rule.saved, *rule.costs) if each > 0)
    compared = verdict.reason in (Reason.LESS_GAIN, Reason.LESS_UNCONFIRMED, Reason.BEST_GAIN)
    return compared and abs(verdict.value - verdict.limit) <= 1e-5 * largest / saved


def near_balance(rule, before, facts, after, verdict, gains):
    """The signal, within 1e-4 of a limit, relative to it and to the values that it is made of."""
    signal = rule._signal(facts)
    if signal is None:
        return False
    largest = max(abs(value) for value in facts.rings[rule.of])
    return any(abs(signal - limit) <= 1e-4 * max(abs(limit), largest) for limit in (rule.low, rule.high))


def near_trial(rule, before, facts, after, verdict, gains):
    """Two standard scores, or one and its limit, within 1e-3 · (1 + z); two means, within 1e-5 of the largest value."""
    if verdict.reason not in (Reason.HALVED, Reason.TRIED_BETTER, Reason.TRIED_NO_BETTER):
        return False
    taken = rule._take_in(before, facts)
    own = rule._values(taken, taken.incumbent)
    found = [
        standard_score([mine - its for mine, its in zip(own, rule._values(taken, index), strict=True)])
        for index in rule._challengers(taken)
    ]
    found = sorted([*(each for each in found if abs(each) < inf), -rule.z, rule.z])
    means = sorted(fmean(rule._values(taken, index)) for index in rule._challengers(taken))
    close = 1e-5 * max(map(abs, taken.values))
    return any(b - a <= 1e-3 * (1 + rule.z) for a, b in pairwise(found)) or any(
        b - a <= close for a, b in pairwise(means)
    )


NEAR = {
    Trial: near_trial,
    Balance: near_balance,
    Payoff: near_payoff,
    Cycle: never,
    RandomTenure: never,
    Plateau: near_plateau,
    Patience: near_patience,
    Trend: near_trend,
    Gain: near_gain,
}
