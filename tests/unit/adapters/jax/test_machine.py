"""The machine on the device: states, losses and errors; and the host's alternator that reads losses late."""

import dataclasses
import json
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from adapters.jax import REASONS, DeviceAlternator, DeviceVerdict, HostAlternator, device_step, reason_code
from adapters.optax import active_value_and_grad, alternating, apply_updates
from alternator import (
    Alternator,
    ConfigurationError,
    Cycle,
    LossError,
    Patience,
    Payoff,
    Plateau,
    RandomTenure,
    Reason,
    StateError,
    Trend,
    Trial,
    UnknownModuleError,
    Verdict,
)

MODULES = ("a", "b", "c")
PLATEAU = Plateau(threshold=0.05, min_steps=2, window=4)
LOSSES = (1.0 + 0.03 * np.random.default_rng(0).standard_normal((60, 3))).astype(np.float32)


def host_decisions(rule, losses, *, delay=0, updated=None, modules=MODULES):
    """The core, which gets each step's losses ``delay`` steps late."""
    host = Alternator(modules, rule)
    decisions = []
    for step in range(len(losses)):
        if step >= delay:
            for name, value in zip(modules, losses[step - delay].tolist(), strict=True):
                host.record(name, value, step=step - delay + 1)
        decisions.append(host.advance(updated=True if updated is None else bool(updated[step])))
    return decisions, host


def whole(decisions):
    return [decision._replace(value=0, limit=0) for decision in decisions]


def test_a_late_loss_is_not_heard_by_a_tenure_that_began_since():
    machine = DeviceAlternator(MODULES, Cycle(2), delay=1)
    state, observed = machine.init(), []
    for _ in range(6):
        state, _ = machine.step(state, jnp.ones(3))
        observed.append(int(state.observed))
    assert observed == [
        0,
        0,
        0,
        0,
        0,
        0,
    ]  # the second loss of each tenure comes after its end, and is not the next one's
    assert state.ring_lengths_N.tolist() == [1, 1, 1]


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_losses_may_arrive_late(delay):
    machine = DeviceAlternator(MODULES, PLATEAU, delay=delay)
    _, log = jax.jit(lambda losses: jax.lax.scan(machine.step, machine.init(), losses))(jnp.asarray(LOSSES))
    expected, _ = host_decisions(PLATEAU, LOSSES, delay=delay)
    assert whole(machine.decisions(log)) == whole(expected)
    assert sum(decision.switched for decision in expected) > 5


def test_values_and_limits_of_the_log_are_the_cores():
    machine = DeviceAlternator(MODULES, PLATEAU)
    _, log = jax.lax.scan(machine.step, machine.init(), jnp.asarray(LOSSES[:20]))
    expected, _ = host_decisions(PLATEAU, LOSSES[:20])
    for ours, theirs in zip(machine.decisions(log), expected, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-4)
        assert ours.limit == pytest.approx(theirs.limit, rel=1e-6)


STATEFUL = [
    PLATEAU,
    RandomTenure(3.5, seed=7),
    Patience(patience=1, smoothing=0.5, cooldown=1),
    Trend(window=40, min_steps=3, confirmations=1, horizon=10),
]


@pytest.mark.parametrize("rule", STATEFUL, ids=lambda rule: type(rule).__name__)
def test_device_and_host_hand_over_to_each_other_in_mid_tenure(rule):
    expected, whole_run = host_decisions(rule, LOSSES)
    machine = DeviceAlternator(MODULES, rule)
    scan = jax.jit(lambda state, losses: jax.lax.scan(machine.step, state, losses))
    _, host = host_decisions(rule, LOSSES[:23])
    saved = json.loads(json.dumps(host.state_dict()))
    state, log = scan(machine.load_state_dict(saved), jnp.asarray(LOSSES[23:41]))
    saved = json.loads(json.dumps(machine.state_dict(state)))
    resumed = Alternator(MODULES, rule)
    resumed.load_state_dict(saved)
    after = [resumed.observe(dict(zip(MODULES, row, strict=True))) for row in LOSSES[41:].tolist()]
    assert whole([*machine.decisions(log), *after]) == whole(expected[23:])
    assert resumed.state_dict()["counts"] == whole_run.state_dict()["counts"]
    again = machine.load_state_dict(saved)
    assert jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), again) == jax.tree.map(
        lambda leaf: np.asarray(leaf).tolist(), state
    )


def test_losses_under_way_are_saved_too():
    machine = DeviceAlternator(MODULES, PLATEAU, delay=2)
    scan = jax.jit(lambda state, losses: jax.lax.scan(machine.step, state, losses))
    state, _ = scan(machine.init(), jnp.asarray(LOSSES[:20]))
    saved = json.loads(json.dumps(machine.state_dict(state)))
    assert [list(step) for step in saved["pending_losses"]] == [list(MODULES), list(MODULES)]
    _, log = scan(machine.load_state_dict(saved), jnp.asarray(LOSSES[20:40]))
    expected, _ = host_decisions(PLATEAU, LOSSES, delay=2)
    assert whole(machine.decisions(log)) == whole(expected[20:40])


@pytest.mark.parametrize(
    ("pending", "message"),
    [([{}, {}], "pending losses of 2 steps, but delay is 1"), ([{"x": "1.0"}], "damaged"), ([3], "damaged")],
)
def test_damaged_losses_under_way(pending, message):
    machine = DeviceAlternator(MODULES, PLATEAU, delay=1)
    with pytest.raises(StateError, match=message):
        machine.load_state_dict({**machine.state_dict(machine.init()), "pending_losses": pending})


def test_a_state_of_another_configuration_is_refused():
    saved = Alternator(MODULES, Plateau()).state_dict()
    with pytest.raises(StateError, match=r"rule\.window was 10, is 4"):
        DeviceAlternator(MODULES, PLATEAU).load_state_dict(saved)


def test_the_three_forms_of_losses():
    machine = DeviceAlternator(MODULES, PLATEAU)
    state = machine.init()
    one, _ = machine.step(state, 0.5)
    assert one.ring_lengths_N.tolist() == [1, 0, 0]
    every, _ = machine.step(state, jnp.array([0.1, 0.2, 0.3]))
    assert every.rings_NR[:, -1].tolist() == pytest.approx([0.1, 0.2, 0.3])
    some, _ = machine.step(state, {"a": 0.1, "c": jnp.array(0.3)})
    assert some.ring_lengths_N.tolist() == [1, 0, 1]
    assert int(some.observed) == 1
    without, decision = machine.step(state, {"c": 0.3})  # no error on a device: nothing is learnt of the active one
    assert without.ring_lengths_N.tolist() == [0, 0, 1]
    assert int(decision.step) == 1


@pytest.mark.parametrize("delay", [0, 1])
def test_a_state_is_saved_by_orbax(delay, tmp_path):
    machine = DeviceAlternator(MODULES, PLATEAU, delay=delay)
    state, _ = jax.lax.scan(machine.step, machine.init(), jnp.asarray(LOSSES[:7]))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "state", machine.init())
    assert machine.state_dict(restored) == machine.state_dict(state)
    logs = [jax.lax.scan(machine.step, each, jnp.asarray(LOSSES[7:]))[1] for each in (state, restored)]
    assert machine.decisions(logs[0]) == machine.decisions(logs[1])


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ({"x": 1.0}, UnknownModuleError, r"unknown module 'x'; expected one of \('a', 'b', 'c'\)"),
        (np.zeros(2), LossError, r"one scalar, or one per module \(3\), got the shape \(2,\)"),
        ({"a": np.zeros(2)}, LossError, "a loss must be a real scalar"),
        ({"b": jnp.zeros(1)}, LossError, r"real scalar, got float32\[1\] for 'b'; reduce it with \.mean"),
        (jnp.complex64(1.0), LossError, r"got complex64\[\] for the active module; take its \.real"),
        (np.zeros(3, complex), LossError, r"losses must be real, got complex128\[3\]; take its \.real"),
        ({"a": 1j}, LossError, r"got 1j for 'a'"),
        (None, LossError, "got None for the active module"),
        ("0.5", LossError, "got '0.5' for the active module; give a number"),
        (jax.ShapeDtypeStruct((), jnp.float32), LossError, r"got ShapeDtypeStruct\(.*for the active module; give a"),
        (np.zeros((), jax.dtypes.float0), LossError, r"real scalar, got \[\('float0', 'V'\)\]\[\] for"),
        (np.zeros(3, jax.dtypes.float0), LossError, r"losses must be real, got \[\('float0', 'V'\)\]\[3\]"),
        (jax.random.split(jax.random.key(0), 3), LossError, r"losses must be real, got key<fry>\[3\]; give a number"),
        (jax.random.key(0), LossError, r"got key<fry>\[\] for the active module; give a number"),
        ([[1.0], 2.0, 3.0], LossError, r"real scalar, got \[1\.0\] for 'a'; give a number"),
        ([1.0, 2.0], LossError, r"losses must be one per module \(3\), got 2"),
        (["a", "b", "c"], LossError, "real scalar, got 'a' for 'a'; give a number"),
        (np.array(["a", "b", "c"]), LossError, r"losses must be real, got <U1\[3\]; give a number"),
        pytest.param([1, 10**400, 1], LossError, "real scalar, got 1000.* for 'b'; give a number", id="huge"),
    ],
)
def test_wrong_losses(losses, error, message):
    machine = DeviceAlternator(MODULES, PLATEAU)
    with pytest.raises(error, match=message):
        machine.step(machine.init(), losses)


REAL = {
    "bfloat16": jnp.bfloat16(0.5),
    "float16": np.float16(0.5),
    "float8": jnp.asarray(0.5, jnp.float8_e5m2),
    "weak": jnp.asarray(0.5) * 1,
    "fraction": Fraction(1, 2),
}
WHOLE = {"uint8": jnp.uint8(3), "int4": jnp.asarray(3, jnp.int4), "bool": jnp.bool_(True), "large": 2**40, "int": 3}


@pytest.mark.parametrize("name", [*REAL, *WHOLE])
def test_any_real_scalar_is_a_loss(name):
    value = {**REAL, **WHOLE}[name]
    machine, host = DeviceAlternator(MODULES, PLATEAU), HostAlternator(Alternator(MODULES, PLATEAU), delay=0)
    start = machine.init()
    host.observe(value)
    for losses in (
        value,
        {"a": value},
        *([[value] * 3, jnp.stack([value] * 3)] if isinstance(value, jax.Array) else ()),
    ):
        state, _ = machine.step(start, losses)
        assert float(state.rings_NR[0, -1]) == host.alternator.loss_history("a")[0] == float(value)
        kinds = [[(leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(each)] for each in (start, state)]
        assert kinds[0] == kinds[1]  # so that it can be carried by a scan, and is compiled once


def test_losses_may_be_a_list_of_traced_scalars():
    machine = DeviceAlternator(MODULES, PLATEAU)
    state, _ = jax.jit(lambda state, a, b: machine.step(state, [a, b, 0.5]))(machine.init(), 1.0, jnp.bfloat16(2))
    assert state.rings_NR[:, -1].tolist() == [1.0, 2.0, 0.5]


def test_a_wrong_loss_is_not_recorded():
    machine = DeviceAlternator(MODULES, PLATEAU)
    with pytest.raises(LossError, match=r"got float32\[1\] for 'b'; reduce it"):
        machine.record(machine.init(), "b", jnp.zeros(1))


def test_force_and_record_by_name_index_and_tracer():
    machine = DeviceAlternator(MODULES, PLATEAU)
    state = machine.init()
    for module in ("c", 2, np.int64(2), jnp.int32(2)):
        forced = machine.force(state, module)
        assert (int(forced.active), int(forced.switch_count), bool(forced.entered)) == (2, 0, True)
        assert machine.record(state, module, 0.5).ring_lengths_N.tolist() == [0, 0, 1]
    assert jax.jit(machine.force)(state, 2).active == 2
    for module in ("x", 3, -1, True, 2.0, 10**400):
        with pytest.raises(UnknownModuleError, match="expected one of"):
            machine.force(state, module)


def test_nonfinite_losses_force_a_switch_on_both():
    losses = LOSSES.copy()
    losses[10:30, :] = np.nan
    losses[15, 0] = np.inf
    machine = DeviceAlternator(MODULES, Cycle(50), nonfinite_limit=4)
    state, log = jax.lax.scan(machine.step, machine.init(), jnp.asarray(losses))
    host = Alternator(MODULES, Cycle(50), nonfinite_limit=4)
    expected = [host.observe(dict(zip(MODULES, row, strict=True))) for row in losses.tolist()]
    assert machine.decisions(log) == [d._replace(value=float(d.value), limit=float(d.limit)) for d in expected]
    assert Reason.NONFINITE in {decision.reason for decision in expected}
    assert machine.to_host(state).stats() == host.stats()


def test_many_schedules_at_once():
    machine = DeviceAlternator(MODULES, PLATEAU)
    batch = jnp.asarray(np.stack([LOSSES, LOSSES[::-1]]))
    _, logs = jax.jit(jax.vmap(lambda losses: jax.lax.scan(machine.step, machine.init(), losses)))(batch)
    for index, losses in enumerate((LOSSES, LOSSES[::-1])):
        own = machine.decisions(jax.tree.map(lambda leaf, i=index: leaf[i], logs))
        assert whole(own) == whole(host_decisions(PLATEAU, losses)[0])


def test_an_epoch_trains_without_the_host():
    """Machine, gradients and optimizer in one scan: the same decisions and weights as a loop with the core."""
    labels = {"a": "a", "b": "b"}
    optax = pytest.importorskip("optax")
    optimizer = alternating({name: optax.adam(0.05) for name in labels}, labels)
    gradients = active_value_and_grad(lambda p, x: jnp.mean((p["a"] * p["b"] - x) ** 2), labels, ("a", "b"))
    machine = DeviceAlternator(("a", "b"), Plateau(threshold=0.3, min_steps=2, window=3))
    params = {"a": jnp.ones(4), "b": jnp.full(4, 2.0)}
    inputs = jnp.asarray(np.random.default_rng(1).standard_normal((40, 4)), jnp.float32)

    def update(params, state, x, active):
        value, grads = gradients(params, x, active=active)
        updates, state = optimizer.update(grads, state, params, active=active)
        return apply_updates(params, updates), state, value

    def step(carry, x):
        params, state, schedule = carry
        params, state, value = update(params, state, x, schedule.active)
        schedule, decision = machine.step(schedule, value)
        return (params, state, schedule), (decision, value)

    (final, _, schedule), (log, values) = jax.jit(lambda carry: jax.lax.scan(step, carry, inputs))(
        (params, optimizer.init(params), machine.init())
    )
    host, state, jitted = Alternator(("a", "b"), machine.rule), optimizer.init(params), jax.jit(update)
    decisions = []
    for x, value in zip(inputs, values.tolist(), strict=True):
        params, state, own = jitted(params, state, x, jnp.int32(host.modules.index(host.active)))
        assert float(own) == pytest.approx(value, rel=1e-5)
        decisions.append(host.observe(value))
    assert whole(machine.decisions(log)) == whole(decisions)
    assert host.stats().switch_count == int(schedule.switch_count) > 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), final, params)


def test_the_machine_is_traced_once_for_a_whole_epoch():
    machine, traces = DeviceAlternator(MODULES, PLATEAU), []

    @jax.jit
    def step(state, losses):
        traces.append(1)
        return machine.step(state, losses)

    state = machine.init()
    for row in LOSSES[:10]:
        state, _ = step(state, row)
    assert step._cache_size() == len(traces) == 1


def test_float64_losses_without_x64_are_rounded():
    """Documented: losses are kept in float32; what is beyond its range counts as infinite."""
    machine = DeviceAlternator(MODULES, PLATEAU)
    assert machine.init().rings_NR.dtype == jnp.float32
    state, _ = machine.step(machine.init(), np.float64(0.1))
    assert float(state.rings_NR[0, -1]) == float(np.float32(0.1)) != 0.1
    with np.errstate(over="ignore"):
        state, _ = machine.step(machine.init(), np.array([1e300, 1.0, 1.0]))
    assert state.nonfinite_losses_N.tolist() == [1, 0, 0]
    with pytest.raises(ConfigurationError, match="dtype must be float32, or float64 with jax_enable_x64 on"):
        DeviceAlternator(MODULES, PLATEAU, dtype=jnp.float64)


def test_float64_losses_with_x64_are_kept_and_decide_as_the_core_does():
    losses = LOSSES.astype(np.float64) + 1e-9
    with jax.enable_x64(True):
        machine = DeviceAlternator(MODULES, PLATEAU)
        _, log = jax.lax.scan(machine.step, machine.init(), jnp.asarray(losses))
        assert log.value.dtype == jnp.float64
        assert machine.decisions(log)[-1].value == host_decisions(PLATEAU, losses)[0][-1].value
        single = DeviceAlternator(MODULES, PLATEAU, dtype=jnp.float32)
        state, _ = jax.lax.scan(single.step, single.init(), jnp.asarray(LOSSES))
        assert state.rings_NR.dtype == jnp.float32


class HalfState(NamedTuple):
    count: int


@dataclasses.dataclass(frozen=True)
class EveryOther:
    """A rule of a user's own: switches at every second step, backwards."""

    ring_size: int = 0

    def init(self, num_modules):
        return HalfState(0)

    def step(self, state, facts):
        switch = state.count % 2 == 1
        target = (facts.active - 1) % facts.num_modules
        return HalfState(state.count + 1), Verdict(switch, Reason.SCHEDULED, state.count, 2, target=target)


def test_a_rule_of_ones_own():
    with pytest.raises(ConfigurationError, match="EveryOther has none; register one with device_step"):
        DeviceAlternator(MODULES, EveryOther())
    with pytest.raises(ConfigurationError, match="EveryOther has none; register one with device_step"):
        device_step(EveryOther(), None, None)

    @device_step.register
    def _(rule: EveryOther, state, facts):
        target = (facts.active - 1) % facts.num_modules
        verdict = DeviceVerdict(*(state.count % 2 == 1, reason_code(Reason.SCHEDULED), state.count, 2), target=target)
        return HalfState(state.count + 1), verdict

    machine = DeviceAlternator(MODULES, EveryOther())
    _, log = jax.lax.scan(machine.step, machine.init(), jnp.zeros(8))
    host = Alternator(MODULES, EveryOther())
    assert whole(machine.decisions(log)) == whole([host.observe(0.0) for _ in range(8)])


@pytest.mark.parametrize("delay", [-1, 1.0, True])
def test_a_wrong_delay(delay):
    for build in (
        lambda: DeviceAlternator(MODULES, PLATEAU, delay=delay),
        lambda: HostAlternator(Alternator(MODULES), delay=delay),
    ):
        with pytest.raises(ConfigurationError, match="delay must be an integer of at least 0"):
            build()


def test_reasons_cover_the_cores():
    assert set(REASONS) == {code for name, code in vars(Reason).items() if name.isupper()}
    assert all(REASONS[reason_code(reason)] == reason for reason in REASONS)
    with pytest.raises(ConfigurationError, match="must be a code of Reason, got 'target'"):
        reason_code("target")


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_the_host_reads_losses_late(delay):
    machine = HostAlternator(Alternator(MODULES, PLATEAU), delay=delay)
    device = DeviceAlternator(MODULES, PLATEAU, delay=delay)
    _, log = jax.lax.scan(device.step, device.init(), jnp.asarray(LOSSES[:30]))
    decisions = []
    for row in jnp.asarray(LOSSES[:30]):
        decisions.append(machine.observe(dict(zip(MODULES, row, strict=True))))
    assert whole(decisions) == whole(device.decisions(log))
    assert len(machine.alternator.loss_history("a")) == 4
    machine.flush()
    assert machine.alternator.loss_history("a")[-1] == float(LOSSES[29, 0])


def test_the_host_resumes_with_losses_under_way():
    machine = HostAlternator(Alternator(MODULES, PLATEAU), delay=2)
    rows = [dict(zip(MODULES, row, strict=True)) for row in LOSSES.tolist()]
    expected = [machine.observe(row) for row in rows]
    first, second = (HostAlternator(Alternator(MODULES, PLATEAU), delay=2) for _ in range(2))
    for row in rows[:25]:
        first.observe(row)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.observe(row) for row in rows[25:]] == expected[25:]
    for damage in ({"alternator": None}, {"pending_losses": [3]}, {"pending_losses": [{"a": "many"}]}):
        with pytest.raises(StateError, match="damaged"):
            second.load_state_dict({**first.state_dict(), **damage})
    with pytest.raises(StateError, match="damaged"):
        second.load_state_dict({})
    with pytest.raises(StateError, match="state version must be 1, got 2"):
        second.load_state_dict({**first.state_dict(), "version": 2})


def test_the_hosts_state_is_that_of_every_adapter():
    """A checkpoint's schedule crosses from PyTorch, whose adapter adds what the user froze there."""
    machine, other = (HostAlternator(Alternator(MODULES, PLATEAU)) for _ in range(2))
    for row in LOSSES[:25]:
        machine.observe(dict(zip(MODULES, row, strict=True)))
    state = machine.state_dict()
    assert state.keys() == {"version", "alternator", "pending_losses"}
    other.load_state_dict({**state, "user_frozen": ["a.0.weight"], "inference": []})
    assert other.state_dict() == state


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ({"x": 1.0}, UnknownModuleError, "unknown module 'x'"),
        ({"b": 1.0}, LossError, "the loss of the active module 'a' is missing"),
        ({"a": np.zeros(2)}, LossError, "a loss must be a real scalar"),
        (np.zeros(1), LossError, r"real scalar, got float64\[1\] for 'a'; reduce it with \.mean\(\)"),
        ({"a": jnp.ones((1, 1))}, LossError, r"got float32\[1, 1\] for 'a'; reduce it"),
        (jnp.complex64(1.0), LossError, r"got complex64\[\] for 'a'; take its \.real"),
        (np.complex128(1.0), LossError, r"got complex128\[\] for 'a'; take its \.real"),
        ({"a": 0.5, "b": 1j}, LossError, "got 1j for 'b'; give a number or an array"),
        (None, LossError, "got None for 'a'; give a number"),
        pytest.param(10**400, LossError, "for 'a'; give a number", id="huge"),
        (jax.random.key(0), LossError, r"got key<fry>\[\] for 'a'; give a number"),
    ],
)
def test_wrong_losses_on_the_host(losses, error, message):
    machine = HostAlternator(Alternator(MODULES, PLATEAU))
    with pytest.raises(error, match=message):
        machine.observe(losses)
    assert machine.alternator.stats().total_steps == 0


def test_a_traced_loss_is_refused_on_the_host():
    machine = HostAlternator(Alternator(MODULES, PLATEAU))
    with pytest.raises(LossError, match=r"'a' must have been computed, got a traced one; call observe outside jit"):
        jax.jit(machine.observe)(1.0)
    assert machine.alternator.stats().total_steps == 0


def test_an_empty_mapping_tells_the_host_nothing():
    machine = HostAlternator(Alternator(MODULES, PLATEAU), delay=0)
    machine.alternator.record("a", 3.0)
    assert machine.observe({}).step == 1
    assert machine.alternator.loss_history("a") == [3.0]


PAYOFF = Payoff(costs=(3, 2, 1), groups=2, min_steps=1, confirmations=1, retry_after=3, max_retry_after=3)


def test_an_unmeasured_turn_says_so_on_both():
    machine, host = DeviceAlternator(MODULES, PAYOFF), Alternator(MODULES, PAYOFF)
    state, ours, theirs = machine.init(), [], []
    steps = [
        {},
        {"a": 1.0},
        {"a": 1.0},
        {"a": 1.0, "b": 1.0, "c": 0.1},
        {"a": 1.0, "b": 1.0, "c": 0.1},
        {},
        {"b": 1},
        {},
    ]
    for losses in [*steps, {}, {}]:
        for name, value in losses.items():
            host.record(name, value)
        theirs.append(host.advance())
        state, decision = machine.step(state, losses)
        ours += machine.decisions(decision)
    assert [decision.reason for decision in theirs[:2]] == [Reason.UNMEASURED] * 2
    assert theirs[7].explain() == "step 8: b → a (not measured: 1 of 2 payoffs recorded)"
    assert whole(ours) == whole(theirs)
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine.value, mine.limit) == pytest.approx((expected.value, expected.limit))


def test_payoff_takes_no_loss_of_a_step():
    machine, host = DeviceAlternator(MODULES, PAYOFF), HostAlternator(Alternator(MODULES, PAYOFF))
    for observe in (lambda loss: machine.step(machine.init(), loss), host.observe):
        with pytest.raises(LossError, match="Payoff must be given payoffs, got the loss of a step"):
            observe(jnp.float32(0.5))
    assert host.alternator.step == 0
    assert host.observe({}).step == 1


def test_a_trial_without_held_out_losses_is_reported_once_with_its_log():
    machine = DeviceAlternator(("a", "b"), Trial(steps=2, start=2, hold=8, groups=2))

    def step(state, _):
        return machine.step(state, {})

    _, log = jax.lax.scan(step, machine.init(), length=40)
    with pytest.warns(UserWarning, match="the trial that ended with step 7 lacks them") as warned:
        decisions = machine.decisions(log)
    assert [decision.step for decision in decisions if decision.reason == "unmeasured"][:1] == [7]
    assert machine.decisions(log) == decisions
    assert len(warned) == 1
    with pytest.raises(LossError, match="Trial must be given held-out losses"):
        machine.step(machine.init(), 1.0)
