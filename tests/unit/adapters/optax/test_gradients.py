"""Only active gradients are computed: values, compilations, FLOPs; and the contract on sharded arrays."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adapters.optax import active_value_and_grad, alternating, apply_updates
from alternator import Alternator, ConfigurationError, Plateau

LABELS = {"user": "user", "item": "item"}
MODULES = ("user", "item")
TRANSFORMS = {name: optax.adamw(1e-2) for name in MODULES}


def tower(params, inputs):
    return jnp.tanh(inputs @ params["hidden"]) @ params["out"]


def loss(params, users, items, ratings):
    return jnp.mean(((tower(params["user"], users) * tower(params["item"], items)).sum(-1) - ratings) ** 2)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def two_towers(width=16):
    params = {
        name: {"hidden": normal(1, 8, width) / 4, "out": normal(2, width, 4) / width} for name in ("user", "item")
    }
    return params, (normal(3, 32, 8), normal(4, 32, 8), normal(5, 32))


def make_step(traces):
    gradients = active_value_and_grad(loss, LABELS, MODULES)
    optimizer = alternating(TRANSFORMS, LABELS)

    def step(params, state, batch, active):
        traces.append(active)
        value, grads = gradients(params, *batch, active=active)
        updates, state = optimizer.update(grads, state, params, active=active)
        return apply_updates(params, updates), state, value

    return step, optimizer


@pytest.mark.parametrize("static", [True, False])
def test_an_epoch_compiles_once_per_module_or_once(static):
    traces = []
    step, optimizer = make_step(traces)
    jitted = jax.jit(step, static_argnames="active" if static else (), donate_argnums=(0, 1))
    params, batch = two_towers()
    state = optimizer.init(params)
    alternator = Alternator(MODULES, rule=Plateau(threshold=0.2, min_steps=2, window=3))
    for _ in range(60):
        active = alternator.active if static else jnp.int32(MODULES.index(alternator.active))
        params, state, value = jitted(params, state, batch, active)
        alternator.observe(float(value))
    assert alternator.stats().switch_count > 5
    assert jitted._cache_size() == len(traces) == (2 if static else 1)


def test_one_compilation_under_scan():
    traces = []
    step, optimizer = make_step(traces)
    params, batch = two_towers()
    schedule = jnp.arange(20, dtype=jnp.int32) % 2

    @jax.jit
    def epoch(params, state):
        return jax.lax.scan(lambda c, a: ((new := step(*c, batch, a))[:2], new[2]), (params, state), schedule)

    (params, state), values = epoch(params, optimizer.init(params))
    epoch(params, state)
    assert epoch._cache_size() == 1
    assert len(traces) <= 2  # a scan may trace its body twice to settle the types of its carry
    assert values[-1] < values[0]


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("module", MODULES)
def test_a_static_step_costs_no_more_than_one_written_by_hand(module):
    params, batch = two_towers(width=64)
    step, optimizer = make_step([])
    ours = flops(lambda p, s, b: step(p, s, b, module), params, optimizer.init(params), batch)
    transform = TRANSFORMS[module]

    def by_hand(params, state, batch):
        value, grads = jax.value_and_grad(lambda own: loss({**params, module: own}, *batch))(params[module])
        updates, state = transform.update(grads, state, params[module])
        return {**params, module: optax.apply_updates(params[module], updates)}, state, value

    hand = flops(by_hand, params, transform.init(params[module]), batch)

    def both(params, state, batch):
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimizer.update(grads, state, params, active=module)
        return apply_updates(params, updates), state, value

    assert ours <= 1.05 * hand
    assert hand > 1e5
    gradients_only = flops(lambda p, b: jax.grad(loss)(p, *b), params, batch)
    assert gradients_only > 1.2 * flops(
        lambda p, b: active_value_and_grad(loss, LABELS, MODULES)(p, *b, active=module), params, batch
    )


def test_a_traced_active_runs_only_its_own_branch():
    """The conditional is still one after optimisation, and each branch holds the matrix products of one module."""
    params, batch = two_towers()
    gradients = active_value_and_grad(loss, LABELS, MODULES)
    text = (
        jax.jit(lambda p, active: gradients(p, *batch, active=active)).lower(params, jnp.int32(0)).compile().as_text()
    )
    assert "conditional(" in text
    static = [jax.make_jaxpr(lambda p, a=a: gradients(p, *batch, active=a))(params) for a in (0, 1)]
    traced = jax.make_jaxpr(lambda p, a: gradients(p, *batch, active=a))(params, jnp.int32(0))
    (switch,) = [equation for equation in traced.eqns if equation.primitive.name == "cond"]
    per_branch = [products(branch.jaxpr) for branch in switch.params["branches"]]
    assert per_branch == [
        *(products(jaxpr.jaxpr) for jaxpr in static),
        products(jax.make_jaxpr(loss)(params, *batch).jaxpr),
    ]
    assert per_branch[0] < products(jax.make_jaxpr(jax.grad(loss))(params, *batch).jaxpr)


def products(jaxpr):
    """How many matrix products a program holds, those of its inner programs included."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "dot_general"
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "jaxpr"):
                    count += products(inner.jaxpr)
    return count


def test_gradients_equal_those_of_jax():
    params, batch = two_towers()
    gradients = active_value_and_grad(loss, LABELS, MODULES)
    value, expected = jax.value_and_grad(loss)(params, *batch)
    for active in ("user", jnp.int32(0)):
        got, grads = jax.jit(gradients, static_argnames="active" if active == "user" else ())(
            params, *batch, active=active
        )
        np.testing.assert_allclose(got, value, rtol=1e-6)
        jax.tree.map(
            lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-7), grads["user"], expected["user"]
        )
        assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(grads["item"]))


def test_a_loss_per_turn_and_auxiliary_data():
    params = {"user": jnp.array(2.0), "item": jnp.array(3.0)}
    losses = {
        "user": lambda p, scale: (scale * p["user"] * p["item"], {"who": jnp.array(0)}),
        "item": lambda p, scale: (-scale * p["user"] * p["item"], {"who": jnp.array(1)}),
    }
    gradients = active_value_and_grad(losses, LABELS, MODULES, has_aux=True)
    for active in ("item", jnp.int32(1)):
        jitted = jax.jit(gradients, static_argnames="active" if active == "item" else ())
        (value, aux), grads = jitted(params, 10.0, active=active)
        assert (float(value), int(aux["who"])) == (-60.0, 1)
        assert (float(grads["user"]), float(grads["item"])) == (0.0, -20.0)


def test_a_traced_active_out_of_range_gives_zero_gradients():
    params, batch = two_towers()
    gradients = jax.jit(active_value_and_grad(loss, LABELS, MODULES))
    for active in (-1, 2):
        value, grads = gradients(params, *batch, active=jnp.int32(active))
        assert np.isfinite(value)
        assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(grads))


def test_a_turn_without_a_loss():
    with pytest.raises(ConfigurationError, match=r"one per turn \('user', 'item'\); got \('user',\)"):
        active_value_and_grad({"user": loss}, LABELS, MODULES)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from adapters.optax import active_value_and_grad, alternating, apply_updates

assert jax.device_count() == 4
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), P("rows"))
params = {name: jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32) for name in ("a", "b")}
placed = jax.device_put(params, sharding)
labels = {"a": "a", "b": "b"}
optimizer = alternating({name: optax.adamw(0.1) for name in labels}, labels)
gradients = active_value_and_grad(lambda p: ((p["a"] * p["b"]) ** 2).sum(), labels, ("a", "b"))

def step(params, state, active):
    value, grads = gradients(params, active=active)
    updates, state = optimizer.update(grads, state, params, active=active)
    return apply_updates(params, updates), state

bits = lambda tree: [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
for way, active in (("static", "a"), ("traced", jnp.int32(0)), ("eager", "a")):
    jitted = step if way == "eager" else jax.jit(step, static_argnames="active" if way == "static" else ())
    state = optimizer.init(placed)
    new, new_state = placed, state
    for _ in range(2):
        new, new_state = jitted(new, new_state, active)
    assert new["b"].sharding.is_equivalent_to(sharding, 2), new["b"].sharding
    assert new["a"].sharding.is_equivalent_to(sharding, 2), new["a"].sharding
    assert new_state.inner_states["b"][0].mu["b"].sharding.is_equivalent_to(sharding, 2)
    assert bits((new["b"], new_state.inner_states["b"])) == bits((placed["b"], state.inner_states["b"])), way
    plain, plain_state = params, optimizer.init(params)
    for _ in range(2):
        plain, plain_state = jitted(plain, plain_state, active)
    np.testing.assert_allclose(new["a"], plain["a"], rtol=1e-6)
    assert bits(new["a"]) != bits(placed["a"])
print("sharded: ok")
"""


def test_sharded_over_four_devices():
    flags = ["--xla_force_host_platform_device_count=4"]
    if jax.__version__.startswith("0.10."):  # by itself XLA ends the process when a device comes 40 seconds late
        flags += ["--xla_cpu_collective_call_terminate_timeout_seconds=14400"]
        flags += ["--xla_cpu_collective_timeout_seconds=14400"]
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("sharded: ok")
