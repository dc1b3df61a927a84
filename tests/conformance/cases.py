"""The cases: each is a function of a harness's constructor that raises AssertionError where the contract is broken.

`CASES` holds them by name. A case checks that what must move did move as well as that what must stay stayed, so that
none passes on a run in which nothing happens.
"""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from alternator import (
    Alternator,
    AlternatorError,
    Balance,
    Cycle,
    Decision,
    Gain,
    Patience,
    Payoff,
    Plateau,
    RandomTenure,
    Rule,
    Trend,
    Trial,
    UnknownModuleError,
    rules,
)
from tests.conformance.comparisons import CURVE_TOLERANCE, same_curves, same_ranking, same_scores
from tests.conformance.harness import Build, Harness, Snapshot
from tests.conformance.problem import ALWAYS, Batch, Setup, make_batch
from tests.conformance.reference import ReferenceHarness

TRACES = Path(__file__).parents[1] / "traces"
CASES: dict[str, Callable[[Build], None]] = {}
DECISIONS = ("golden_decisions", "golden_events", "every_rule", "late_losses")
"""The cases that look at decisions alone."""
GOLDEN = ("flat", "negative", "exactly-at-threshold", "near-threshold-both-sides", "random-2")
"""The golden traces that every backend replays; the core and the machine on the device replay them all."""

RULES: dict[str, Rule] = {
    "Balance": Balance(low=0.9, high=1.1, window=3, factor=1.5, max_steps=4),
    "Cycle": Cycle((2, 3)),
    "Gain": Gain(min_steps=5, max_wait=20, window=10),
    "Patience": Patience(patience=2, cooldown=1),
    "Payoff": Payoff(costs=(3, 1), min_steps=4, groups=4, retry_after=5, max_retry_after=9, confidence=0.84),
    "Plateau": Plateau(threshold=0.02, min_steps=2, window=4),
    "RandomTenure": RandomTenure(4, seed=7),
    "Trial": Trial(steps=2, start=4, hold=16, halvings=9, groups=3),
    "Trend": Trend(window=40, min_steps=4, max_steps=30, confirmations=1, horizon=20),
}
"""One of each; `every_rule` fails when a rule of the core is missing."""


def case(function: Callable[[Build], None]) -> Callable[[Build], None]:
    CASES[function.__name__] = function
    return function


@case
def golden_decisions(build: Build) -> None:
    """Plateau's golden traces: all losses reported at every step, decided without delay."""
    traces = [trace for trace in golden("plateau") if trace["name"] in GOLDEN]
    assert len(traces) == len(GOLDEN)
    for trace in traces:
        harness = build(Setup(modules=tuple(trace["modules"]), rule=plateau(trace)))
        for step, expected in enumerate(trace["active"]):
            reported = {name: losses[step] for name, losses in trace["losses"].items()}
            decision = harness.step(make_batch(harness_setup(trace), step), reported)
            assert decision.active == harness.active == trace["modules"][expected], f"{trace['name']}, step {step}"
            assert decision.switched == (step in trace["switched_at"]), f"{trace['name']}, step {step}"


@case
def golden_events(build: Build) -> None:
    """Golden calls with skipped updates, non-finite losses, partial losses and forced switches."""
    for trace in golden("events")[:1]:
        harness = build(Setup(modules=tuple(trace["modules"]), rule=plateau(trace)))
        for step, call in enumerate(trace["calls"]):
            if "force" in call:
                harness.force(call["force"])
            else:
                given = call["observe"]
                reported = given if isinstance(given, dict) else {harness.active: given}
                reported = {name: float(value) for name, value in reported.items()}
                harness.step(make_batch(harness_setup(trace), step), reported, updated=call.get("updated", True))
            assert harness.active == call["active"], f"{trace['name']}, call {step}: {call}"


@case
def frozen_parameters(build: Build) -> None:
    """A frozen module's parameters keep their bits; an active one's all change."""
    check_clause(build, "parameters/")


@case
def frozen_optimizer_state(build: Build) -> None:
    """A frozen module's moments and step counts keep their bits; an active one's all change."""
    check_clause(build, "optimizer/")


@case
def frozen_schedule(build: Build) -> None:
    """A frozen module's learning-rate schedule stands still; an active one's moves."""
    check_clause(build, "schedule/")


@case
def frozen_buffers(build: Build) -> None:
    """A frozen module's normalisation statistics keep their bits; an active one's change."""
    check_clause(build, "buffers/")


@case
def frozen_batch_mode(build: Build) -> None:
    """With frozen_mode="batch" a frozen module normalises by the batch, as in training, and keeps every bit."""
    setup = Setup(rule=Cycle((3, 5)), frozen_mode="batch")
    harness, reference = build(setup), ReferenceHarness(setup)
    by_running = ReferenceHarness(replace(setup, frozen_mode="inference"))
    curves: list[list[float]] = [[], [], []]
    for step in range(20):
        check_step(harness, setup, step, "")
        for other in (reference, by_running):
            other.step(make_batch(setup, step))
        for curve, each in zip(curves, (harness, reference, by_running), strict=True):
            curve.append(curve_point(each, make_batch(setup, step)))
    same_curves(curves[0], curves[1])
    assert not np.allclose(curves[1], curves[2], rtol=10 * CURVE_TOLERANCE), "the modes do not differ enough to tell"
    check_joint_step(build, setup)
    resumed = build(setup)
    resumed.load(harness.save())  # in the middle of a tenure
    for step in range(20, 40):
        for each in (harness, resumed):
            each.step(make_batch(setup, step))
        assert snapshot_bits(resumed) == snapshot_bits(harness), f"step {step}"


@case
def frozen_gradients(build: Build) -> None:
    """Gradients are computed for what is active, and for nothing else."""
    setup = Setup(rule=Cycle((2, 3)))
    harness = build(setup)
    for step in range(10):
        active = harness.active
        harness.step(make_batch(setup, step))
        assert harness.computed() == {active}, f"step {step}: {active} is active, {harness.computed()} computed"


@case
def clipping(build: Build) -> None:
    """Gradients are clipped by the norm of what is active: a frozen module's data cannot change the step."""
    setup = Setup(rule=Cycle(100), coupled=False, clip_norm=0.5)
    calm, wild, free = build(setup), build(setup), build(replace(setup, clip_norm=None))
    for step in range(4):
        batch = make_batch(setup, step)
        loud = batch.inputs_NBD.copy()
        loud[1] *= 1000
        for harness, inputs_NBD in ((calm, batch.inputs_NBD), (wild, loud), (free, batch.inputs_NBD)):
            harness.step(batch._replace(inputs_NBD=inputs_NBD))
    assert bits(calm.snapshot()["a"]) == bits(wild.snapshot()["a"])
    assert bits(calm.snapshot()["a"]) != bits(free.snapshot()["a"]), "nothing was clipped"


@case
def continuation(build: Build) -> None:
    """A module continues as if the frozen steps had not happened: bit for bit the run in which they did not."""
    setup = Setup(rule=Cycle((3, 4)), coupled=False, clip_norm=0.5)
    harness = build(setup)
    turns = []
    for step in range(20):
        turns.append(harness.active)
        harness.step(make_batch(setup, step))
    for name in setup.modules:
        alone = build(Setup(rule=Cycle(1000), coupled=False, clip_norm=0.5))
        if alone.active != name:
            alone.force(name)
        before = alone.snapshot()[name]
        for step in (step for step, active in enumerate(turns) if active == name):
            alone.step(make_batch(setup, step))
        assert bits(alone.snapshot()[name], "parameters/") != bits(before, "parameters/"), f"{name} never trains"
        assert bits(harness.snapshot()[name]) == bits(alone.snapshot()[name]), name


@case
def parity(build: Build) -> None:
    """Cycle(1): even steps train the first module, odd steps the second."""
    setup = Setup(rule=Cycle(1))
    harness = build(setup)
    for step in range(6):
        before = harness.snapshot()
        decision = harness.step(make_batch(setup, step))
        assert changed(before, harness.snapshot(), "parameters/") == {setup.modules[step % 2]}
        assert decision.previous == setup.modules[step % 2]
        assert (decision.step, decision.switched) == (step + 1, True)


@case
def every_rule(build: Build) -> None:
    """Each rule decides as in the core, for the same losses, and what trains is what was decided."""
    assert set(RULES) == set(rules.__all__), "a rule of the core is not covered: add it to RULES"
    for rule in RULES.values():
        setup = Setup(rule=rule, turns={"both": ("a", "b"), "a": ("a",)} if isinstance(rule, Payoff) else None)
        harness, core = build(setup), Alternator(setup.names, rule=rule)
        switches = 0
        for step in range(80):
            reported = scripted(setup, step)
            decision, expected = harness.step(make_batch(setup, step), reported), core.observe(reported)
            assert same_decision(decision, expected), f"{rule}: {decision} against {expected}"
            switches += expected.switched
        assert switches >= 2, rule


@case
def late_losses(build: Build) -> None:
    """With delay=1 a loss is read one step later, and credited to its module and never to a tenure begun since."""
    for rule in (RULES["Plateau"], RULES["Patience"], RULES["Trend"]):
        setup = Setup(rule=rule, delay=1)
        harness, core, waiting = build(setup), Alternator(setup.names, rule=rule), deque([{}])
        for step in range(60):
            reported = scripted(setup, step)
            waiting.append(reported)
            for name, value in waiting.popleft().items():
                core.record(name, value, step=step)
            expected = core.advance()
            decision = harness.step(make_batch(setup, step), reported)
            assert same_decision(decision, expected), f"{rule}: {decision} against {expected}"
        assert core.stats().switch_count >= 2


@case
def resume(build: Build) -> None:
    """Saved and loaded in mid-tenure, with a loss still to be read, a run continues bit for bit as if never stopped."""
    setup = Setup(rule=RULES["Plateau"], delay=1)
    for stop in (9, 22):
        whole, first, second = build(setup), build(setup), build(setup)
        for step in range(40):
            expected = whole.step(make_batch(setup, step), scripted(setup, step))
            if step == stop:
                second.load(first.save())
                assert snapshot_bits(second) == snapshot_bits(first)
                first = second
            assert first.step(make_batch(setup, step), scripted(setup, step)) == expected, f"step {step}"
        assert snapshot_bits(first) == snapshot_bits(whole)


@case
def offloaded_state(build: Build) -> None:
    """With frozen_state="offload" the state of what is frozen has left, and every bit is as if it had not."""
    setup = Setup(modules=("a", "b", "c"), rule=Cycle((3, 2, 2)), frozen_state="offload")
    kept, away = build(replace(setup, frozen_state="keep")), build(setup)
    for step in range(18):
        active = away.active
        decisions = [harness.step(make_batch(setup, step)) for harness in (kept, away)]
        assert decisions[0].active == decisions[1].active
        assert snapshot_bits(away) == snapshot_bits(kept), f"step {step}"
        if not decisions[1].switched:  # else what leaves may do so in the next update
            assert away.held() == {active}, f"step {step}: {active} trains, {away.held()} is there"
    assert kept.held() == set(setup.modules)


@case
def dropped_state(build: Build) -> None:
    """With frozen_state="drop" what is frozen has no state and starts again with a new one; all else is as ever."""
    turns = {"ab": ("a", "b"), "bc": ("b", "c")}
    setup = Setup(modules=("a", "b", "c"), rule=Cycle(3), turns=turns, coupled=False, frozen_state="drop")
    kept, dropped = build(replace(setup, frozen_state="keep")), build(setup)
    initial = snapshot_bits(dropped, "optimizer/")
    places: list[dict[str, dict[str, bytes]]] = []  # per step of the first round, the counts of steps
    for step in range(12):
        before, trained = dropped.snapshot(), setup.trains(dropped.active)
        decisions = [harness.step(make_batch(setup, step)) for harness in (kept, dropped)]
        after = dropped.snapshot()
        assert snapshot_bits(dropped, "schedule/") == snapshot_bits(kept, "schedule/"), f"step {step}"
        assert bits(after["b"]) == bits(kept.snapshot()["b"]), f"step {step}: b, which always trains, is another"
        for name in setup.modules:
            stays = bits(before[name], "parameters/") == bits(after[name], "parameters/")
            assert stays == (name not in trained), f"step {step}, {trained} train: {name}"
        frozen = set(setup.modules) - set(setup.trains(dropped.active))
        for name in frozen:
            assert bits(after[name], "optimizer/") == initial[name], f"step {step}: {name} is frozen and has a state"
        if not decisions[1].switched:
            assert dropped.held() == set(trained), f"step {step}: {trained} train, {dropped.held()} is there"
        places.append({name: counts(after[name]) for name in ("a", "c")})
    assert places[:6] == places[6:]
    assert bits(dropped.snapshot()["a"], "parameters/") != bits(kept.snapshot()["a"], "parameters/")


@case
def rollback(build: Build) -> None:
    """What was tried and rolled back leaves no trace, to the bit, and training continues as if it had never been."""
    setup = Setup(rule=Cycle((2, 3)), always=True, clip_norm=0.5)
    harness, whole = build(setup), build(setup)
    for step in range(5):  # a whole cycle, so that the schedule of both is at the same place
        for each in (harness, whole):
            each.step(make_batch(setup, step))
    before, kept = snapshot_bits(harness), harness.take()
    for trial in (100, 200):  # it may be used again
        for step in range(5):
            harness.step(make_batch(setup, trial + step))
        tried = snapshot_bits(harness)
        stayed = [(name, key) for name in before for key in before[name] if tried[name][key] == before[name][key]]
        assert not stayed, f"{stayed} cannot be seen to come back"
        harness.rollback(kept)
        assert snapshot_bits(harness) == before
    for step in range(5, 12):
        for each in (harness, whole):
            each.step(make_batch(setup, step))
    assert snapshot_bits(harness) == snapshot_bits(whole)


@case
def unknown_names(build: Build) -> None:
    """The name of no module raises the core's error, word for word, and changes nothing."""
    setup = Setup()
    harness = build(setup)
    clauses = ("parameters/", "optimizer/")  # a forward pass of the user's own may come first, and move statistics
    before = [snapshot_bits(harness, clause) for clause in clauses]
    attempts: list[Callable[[], Any]] = [
        lambda: harness.step(make_batch(setup, 0), {"a": 1.0, "nobody": 1.0}),
        lambda: harness.force("nobody"),
    ]
    for attempt in attempts:
        raised: AlternatorError | None = None
        try:
            attempt()
        except AlternatorError as error:
            raised = error
        assert type(raised) is UnknownModuleError
        assert str(raised) == "unknown module 'nobody'; expected one of ('a', 'b')"
    assert [snapshot_bits(harness, clause) for clause in clauses] == before
    assert harness.step(make_batch(setup, 0), {"a": 1.0}).step == 1


@case
def turns(build: Build) -> None:
    """A turn of two modules trains both; a turn of one leaves the other as it is."""
    setup = Setup(rule=Cycle(2), turns={"a": ("a",), "both": ("a", "b"), "b": ("b",)})
    harness = build(setup)
    for step in range(12):
        turn = ("a", "both", "b")[step // 2 % 3]
        assert harness.active == turn
        check_step(harness, setup, step, "")


@case
def always(build: Build) -> None:
    """What always trains moves at every step, even where two turns have nothing else in common."""
    setup = Setup(rule=Cycle((2, 1)), always=True)
    harness = build(setup)
    for step in range(9):
        before = harness.snapshot()[ALWAYS]
        check_step(harness, setup, step, "")
        after = harness.snapshot()[ALWAYS]
        assert bits(before, "parameters/") != bits(after, "parameters/"), f"step {step}"
        assert ALWAYS in harness.computed()


@case
def skipped_updates(build: Build) -> None:
    """A step whose update is skipped changes nothing but the counts, and lengthens no tenure."""
    setup = Setup(rule=Cycle(2))
    harness, core = build(setup), Alternator(setup.names, rule=setup.rule)
    for step in range(12):
        before, updated = snapshot_bits(harness), step % 3 != 1
        reported = scripted(setup, step)
        decision = harness.step(make_batch(setup, step), reported, updated=updated)
        assert same_decision(decision, core.observe(reported, updated=updated))
        assert (snapshot_bits(harness) == before) == (not updated), f"step {step}"


@case
def traced_once_per_module(build: Build) -> None:
    """However often the modules take turns, a step is traced at most once per module."""
    setup = Setup(rule=Cycle(1), compiled=True)
    harness = build(setup)
    for step in range(12):
        harness.step(make_batch(setup, step))
    traces = harness.num_traces()
    assert traces is None or 1 <= traces <= len(setup.names), traces


@case
def equal_scores(build: Build) -> None:
    """Equal weights give the reference's scores to 1e-5 of the largest, and its ranking."""
    setup = Setup(modules=("a", "b", "c"), rule=Cycle((1, 2, 1)), always=True)
    ours, theirs = build(setup), ReferenceHarness(setup)
    for batch in (make_batch(setup, 1000), make_batch(setup, 1001)):
        same_scores(ours.scores(batch), theirs.scores(batch))
        same_ranking(ours.scores(batch), theirs.scores(batch), top=8)
        same_scores(*(np.array(list(harness.own_losses(batch).values())) for harness in (ours, theirs)))


@case
def equal_curves(build: Build) -> None:
    """Equal weights and batches give the reference's losses over 200 steps to 1e-4, and its decisions."""
    setup = Setup(rule=Plateau(threshold=0.02, min_steps=3, window=4))
    ours, theirs = build(setup), ReferenceHarness(setup)
    curves: list[list[float]] = [[], []]
    switches = 0
    for step in range(200):
        batch = make_batch(setup, step % 7)
        decisions = [harness.step(batch) for harness in (ours, theirs)]
        assert same_decision(*decisions), f"{decisions[0]} against {decisions[1]}"
        switches += decisions[0].switched
        for curve, harness in zip(curves, (ours, theirs), strict=True):
            curve.append(curve_point(harness, batch))
    same_curves(*curves)
    assert switches >= 5
    assert np.mean(curves[0][-7:]) < 0.5 * np.mean(curves[0][:7]), "nothing was learned"


def check_joint_step(build: Build, setup: Setup) -> None:
    """The first step of the first module, the others frozen, equals its step where all train: so do its gradients."""
    first = setup.modules[0]
    frozen, joint = build(setup), build(replace(setup, rule=Cycle(), turns={"all": setup.modules, first: (first,)}))
    before, moved = frozen.snapshot()[first], []
    for harness in (frozen, joint):
        harness.step(make_batch(setup, 0))
        moved.append(harness.snapshot()[first])
    for key, expected in moved[1].items():
        np.testing.assert_allclose(moved[0][key], expected, rtol=1e-4, atol=1e-6, err_msg=key)
    assert bits(before) != bits(moved[0])


def check_clause(build: Build, clause: str) -> None:
    """Run tenures of unequal length; what is frozen keeps its bits, what trains changes, under one clause."""
    for coupled in (True, False):
        setup = Setup(rule=Cycle((3, 5)), coupled=coupled, clip_norm=None if coupled else 0.5)
        harness = build(setup)
        for step in range(20):
            check_step(harness, setup, step, clause)


def check_step(harness: Harness, setup: Setup, step: int, clause: str) -> None:
    before, trained = harness.snapshot(), setup.trains(harness.active)
    assert all(any(key.startswith(clause) for key in before[name]) for name in setup.modules), f"no {clause} to see"
    harness.step(make_batch(setup, step))
    after = harness.snapshot()
    for name in setup.groups:
        for key in (key for key in before[name] if key.startswith(clause)):
            stays = before[name][key].tobytes() == after[name][key].tobytes()
            assert stays == (name not in trained), (
                f"step {step}, {trained} train: {name}'s {key} {'stays' if stays else 'moves'}"
            )


def curve_point(harness: Harness, batch: Batch) -> float:
    """The mean squared error of the scores."""
    return float(((harness.scores(batch) - batch.targets_B) ** 2).mean())


def changed(before: Snapshot, after: Snapshot, clause: str) -> set[str]:
    return {name for name in before if bits(before[name], clause) != bits(after[name], clause)}


def bits(group: dict[str, np.ndarray], clause: str = "") -> dict[str, bytes]:
    return {key: value.tobytes() for key, value in group.items() if key.startswith(clause)}


def counts(group: dict[str, np.ndarray]) -> dict[str, bytes]:
    """What counts the steps of an optimizer."""
    found = {key: value for key, value in bits(group, "optimizer/").items() if "step" in key or "count" in key}
    assert found, f"no count among {sorted(group)}"
    return found


def snapshot_bits(harness: Harness, clause: str = "") -> dict[str, dict[str, bytes]]:
    return {name: bits(group, clause) for name, group in harness.snapshot().items()}


def same_decision(ours: Decision, theirs: Decision) -> bool:
    """All but the numbers, which a device keeps in float32."""
    return ours._replace(value=0, limit=0) == theirs._replace(value=0, limit=0)


def scripted(setup: Setup, step: int) -> dict[str, float]:
    """Losses that fall, stall and fall again, with noise; exact in float32."""
    rng = np.random.default_rng(step)
    level = 2.0 * 0.98 ** min(step % 40, 20)
    values = level * (1 + 0.02 * rng.standard_normal(len(setup.names))).astype(np.float32)
    return dict(zip(setup.names, values.astype(np.float32).tolist(), strict=True))


@cache
def golden(name: str) -> list[dict[str, Any]]:
    return list(json.loads((TRACES / f"{name}.json").read_text())["cases"])


def plateau(trace: dict[str, Any]) -> Plateau:
    return Plateau(threshold=trace["threshold"], min_steps=trace["min_steps"], window=trace["window"])


def harness_setup(trace: dict[str, Any]) -> Setup:
    return Setup(modules=tuple(trace["modules"]))
