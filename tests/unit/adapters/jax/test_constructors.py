"""`DeviceAlternator` is built from what `Alternator` is built from, and refuses the same in the same words."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adapters.jax import DeviceAlternator, HostAlternator
from adapters.optax import alternating
from alternator import Alternator, AlternatorError, Cycle, Plateau, Trend

BOTH = (Alternator, DeviceAlternator)
NAMES = ("encoder", "head")
RIGHT = {
    "a tuple": lambda: (NAMES,),
    "a list and a rule by position": lambda: (list(NAMES), Cycle(2)),
    "a dict of modules": lambda: ({"encoder": object(), "head": object()}, Trend()),
    "a generator": lambda: ((name for name in NAMES), Plateau()),
    "keys": lambda: (dict.fromkeys(NAMES).keys(), Cycle((1, 2))),
}


@pytest.mark.parametrize("given", RIGHT)
@pytest.mark.parametrize(
    "options", [{}, {"nonfinite_limit": np.int64(3)}, {"num_steps": 100_000, "nonfinite_limit": 2}]
)
def test_it_takes_what_the_alternator_takes(given, options):
    host, machine = (kind(*RIGHT[given](), **options) for kind in BOTH)
    assert machine.modules == host.modules == NAMES
    assert machine.rule == host.rule
    plain = machine.state_dict(machine.init())
    assert plain.pop("pending_losses") == []
    assert plain == host.state_dict()
    assert machine.to_host(machine.init()).num_steps == host.num_steps == options.get("num_steps")


WRONG = {
    "a single string": lambda: (("encoder",), {}),
    "one name": lambda: ((("encoder",),), {}),
    "the same twice": lambda: ((("a", "a"),), {}),
    "an empty name": lambda: ((("a", ""),), {}),
    "numbers": lambda: (((1, 2),), {}),
    "a class": lambda: ((NAMES, Cycle), {}),
    "a name of a rule": lambda: ((NAMES, "trend"), {}),
    "no limit": lambda: ((NAMES,), {"nonfinite_limit": 0}),
    "half a limit": lambda: ((NAMES,), {"nonfinite_limit": np.float32(1.5)}),
    "no steps": lambda: ((NAMES,), {"num_steps": 0}),
    "true steps": lambda: ((NAMES,), {"num_steps": True}),
}


@pytest.mark.parametrize("given", WRONG)
def test_it_refuses_what_the_alternator_refuses(given):
    errors = []
    for kind in BOTH:
        arguments, options = WRONG[given]()
        with pytest.raises(AlternatorError) as caught:
            kind(*arguments, **options)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


LOSSES = {
    "a float": 0.7,
    "numpy's": np.float64(0.7),
    "an array": jnp.float32(0.7),
    "of shape ()": np.array(0.7),
    "an integer": 1,
    "by name": {"encoder": 0.7, "head": np.float32(0.5)},
}


@pytest.mark.parametrize("given", LOSSES)
def test_losses_are_given_the_same_ways(given):
    host, machine = Alternator(NAMES, Cycle(1)), DeviceAlternator(NAMES, Cycle(1))
    state = machine.init()
    for _ in range(3):
        expected = host.observe(LOSSES[given], updated=True)
        state, decision = machine.step(state, LOSSES[given], updated=True)
        assert machine.decisions(decision) == [expected]
    for name in NAMES:
        assert machine.to_host(state).loss_history(name) == pytest.approx(host.loss_history(name))
    if isinstance(LOSSES[given], dict):
        return
    late = HostAlternator(Alternator(NAMES, Cycle(1)), delay=0)
    assert late.observe(LOSSES[given]).active == "head"


@pytest.mark.parametrize("given", ["0.7", 1j, {"haed": 0.7}, None])
def test_wrong_losses_are_the_same_error(given):
    host, machine = Alternator(NAMES), DeviceAlternator(NAMES)
    with pytest.raises(AlternatorError) as of_host:
        host.observe(given)
    with pytest.raises(type(of_host.value)):
        machine.step(machine.init(), given)


@pytest.mark.parametrize("delay", [0, 1])
def test_one_is_built_from_an_alternator_and_continues_it(delay):
    def fresh():
        return Alternator(NAMES, Plateau(min_steps=2, window=3), nonfinite_limit=4, num_steps=500)

    host = fresh()
    losses = [0.9, 0.5, 0.5, 0.5, 0.5, float("nan"), 0.4, 0.4, 0.4, 0.4]
    for loss in losses[:4]:
        host.observe(loss)
    machine = DeviceAlternator.of(host, delay=delay)
    before = host.state_dict()
    state, log = jax.lax.scan(machine.step, machine.load_state_dict(before), jnp.array(losses[4:]))
    assert host.state_dict() == before
    assert machine.to_host(state).num_steps == 500
    assert machine.to_host(state).fingerprint() == fresh().fingerprint()
    if delay == 0:
        expected = [host.observe(loss).active for loss in losses[4:]]
        assert [decision.active for decision in machine.decisions(log)] == expected
    else:
        reads_late = HostAlternator(host, delay=1)
        expected = [reads_late.observe(loss).active for loss in losses[4:]]
        assert [decision.active for decision in machine.decisions(log)] == expected


@pytest.mark.parametrize("chooses", [Alternator, DeviceAlternator, lambda names: HostAlternator(Alternator(names))])
def test_each_of_them_says_who_chooses(chooses):
    optimizers = dict.fromkeys(NAMES, optax.sgd(0.1))
    labels = dict(zip(NAMES, NAMES, strict=True))
    assert alternating(optimizers, labels, alternator=chooses(NAMES)).init(dict.fromkeys(NAMES, jnp.ones(1)))
    for order in itertools.permutations(NAMES):
        if order != NAMES:
            with pytest.raises(AlternatorError, match="turns must be the alternator's names"):
                alternating(optimizers, labels, alternator=chooses(order))
