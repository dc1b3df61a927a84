"""The freeze contract of adapters.optax: what is frozen does not change by a bit, however the step is run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adapters.optax import FROZEN, active_value_and_grad, alternating, apply_updates

MODULES = ("user", "item")
LABELS = {"user": "user", "item": "item", "fixed": FROZEN}
SCHEDULES = {"user": optax.linear_schedule(0.1, 0.01, 10), "item": optax.linear_schedule(0.2, 0.02, 10)}
TRANSFORMS = {
    name: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.1))
    for name, schedule in SCHEDULES.items()
}
OPTIMIZER = alternating(TRANSFORMS, LABELS)


def make_params():
    rng = np.random.default_rng(0)
    shapes = {"user": {"w": (3, 2), "b": (2,)}, "item": {"w": (4, 2), "b": (2,)}, "fixed": {"w": (2,)}}
    return jax.tree.map(lambda shape: normal(rng, shape), shapes, is_leaf=lambda s: isinstance(s, tuple))


def make_batch(step):
    rng = np.random.default_rng(step)
    return normal(rng, (5, 3)), normal(rng, (5, 4)), normal(rng, (5,))


def normal(rng, shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def loss(params, batch):
    users, items, ratings = batch
    user = users @ params["user"]["w"] + params["user"]["b"]
    item = items @ params["item"]["w"] + params["item"]["b"]
    return jnp.mean(((user * item * params["fixed"]["w"]).sum(-1) - ratings) ** 2)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def train(params, state, batch, active):
    """A step that gives the optimizer the raw gradients of everything, frozen modules included."""
    gradients = jax.grad(loss)(params, batch)
    updates, state = OPTIMIZER.update(gradients, state, params, active=active)
    return apply_updates(params, updates), state


STEP_STATIC = jax.jit(train, static_argnames="active")
STEP_TRACED = jax.jit(train)
WAYS = {
    "eager": train,
    "static name": lambda p, s, b, active: STEP_STATIC(p, s, b, active=MODULES[active]),
    "static index": STEP_STATIC,
    "traced": lambda p, s, b, active: STEP_TRACED(p, s, b, jnp.int32(active)),
}


def split(params, state, module):
    return params[module], state.inner_states[module]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("active", [0, 1])
def test_only_the_active_module_changes(way, active):
    params, state = make_params(), OPTIMIZER.init(make_params())
    new_params, new_state = params, state
    for step in range(3):
        new_params, new_state = WAYS[way](new_params, new_state, make_batch(step), active)
    frozen, trained = MODULES[1 - active], MODULES[active]
    assert bits(split(new_params, new_state, frozen)) == bits(split(params, state, frozen))
    assert bits(new_params["fixed"]) == bits(params["fixed"])
    for before, after in zip(*map(bits, (params[trained], new_params[trained])), strict=True):
        assert before != after
    counts = optax.tree.get_all_with_path(new_state.inner_states[trained], "count")
    assert counts
    assert all(count == 3 for _, count in counts)


def test_static_and_traced_agree():
    state = OPTIMIZER.init(make_params())
    results = [WAYS[way](make_params(), state, make_batch(0), 1) for way in WAYS]
    for other in results[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), other, results[0])


def test_a_module_goes_on_as_if_the_frozen_steps_had_not_happened():
    """Each module alone, with gradients that do not depend on the other, against the two taking turns."""
    gradients = [jax.tree.map(lambda p, s=step: jnp.sin(p * 0 + s + 1), make_params()) for step in range(6)]
    update = jax.jit(
        lambda p, s, g, active: (lambda u, n: (apply_updates(p, u), n))(*OPTIMIZER.update(g, s, p, active=active))
    )

    def run(schedule):
        params, state = make_params(), OPTIMIZER.init(make_params())
        taken = {0: iter(gradients), 1: iter(gradients)}
        for active in schedule:
            params, state = update(params, state, next(taken[active]), jnp.int32(active))
        return params, state

    both = run([0, 0, 1, 0, 1, 1, 1, 0])
    assert bits(split(*both, "user")) == bits(split(*run([0] * 4), "user"))
    assert bits(split(*both, "item")) == bits(split(*run([1] * 4), "item"))


def test_under_scan():
    schedule = jnp.array([1, 1, 1, 1], jnp.int32)
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(make_batch(step) for step in range(4)))

    @jax.jit
    def epoch(params, state):
        return jax.lax.scan(lambda c, x: (train(*c, x[0], x[1]), None), (params, state), (batches, schedule))[0]

    params, state = make_params(), OPTIMIZER.init(make_params())
    new_params, new_state = epoch(params, state)
    assert bits(split(new_params, new_state, "user")) == bits(split(params, state, "user"))
    stepped = params, state
    for step in range(4):
        stepped = STEP_TRACED(*stepped, make_batch(step), jnp.int32(1))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), (new_params, new_state), stepped)


def test_under_vmap_each_replica_has_its_own_active():
    params, state = make_params(), OPTIMIZER.init(make_params())
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf, leaf]), (params, state))
    active = jnp.array([0, 1, 0], jnp.int32)
    step = jax.jit(jax.vmap(train, in_axes=(0, 0, None, 0)))
    new_params, new_state = step(*many, make_batch(0), active)
    for replica, chosen in enumerate([0, 1, 0]):
        own_params, own_state = jax.tree.map(lambda leaf, r=replica: leaf[r], (new_params, new_state))
        frozen = MODULES[1 - chosen]
        assert bits(split(own_params, own_state, frozen)) == bits(split(params, state, frozen))
        expected = STEP_TRACED(params, state, make_batch(0), jnp.int32(chosen))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), (own_params, own_state), expected)


def test_nan_gradients_of_a_frozen_module_do_no_harm():
    params, state = make_params(), OPTIMIZER.init(make_params())
    gradients = {**jax.tree.map(jnp.ones_like, params), "item": jax.tree.map(lambda p: p * jnp.nan, params["item"])}
    for active in ("user", jnp.int32(0)):
        step = jax.jit(OPTIMIZER.update, static_argnames="active" if isinstance(active, str) else ())
        updates, new_state = step(gradients, state, params, active=active)
        assert bits(split(apply_updates(params, updates), new_state, "item")) == bits(split(params, state, "item"))
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((updates, new_state)))


def test_clipping_counts_only_the_modules_own_gradients():
    params, state = make_params(), OPTIMIZER.init(make_params())
    small = jax.tree.map(lambda p: jnp.full_like(p, 0.01), params)
    huge = {**small, "item": jax.tree.map(lambda p: jnp.full_like(p, 1e6), params["item"])}
    alone, _ = OPTIMIZER.update(small, state, params, active="user")
    beside, _ = OPTIMIZER.update(huge, state, params, active="user")
    assert bits(alone["user"]) == bits(beside["user"])


@pytest.mark.parametrize("active", ["user", jnp.int32(0)], ids=["static", "traced"])
def test_subnormal_and_negative_zero_weights_stay(active):
    odd = jnp.array([1e-40, -1e-40, -0.0, 0.0, 1e-45], jnp.float32)
    params = {"user": jnp.ones(5), "item": odd}
    optimizer = alternating({"user": optax.sgd(0.1), "item": optax.sgd(0.1)}, {"user": "user", "item": "item"})

    def step(params, active):
        updates, _ = optimizer.update(
            jax.tree.map(jnp.ones_like, params), optimizer.init(params), params, active=active
        )
        return apply_updates(params, updates), updates

    new, updates = jax.jit(step, static_argnames="active" if isinstance(active, str) else ())(params, active)
    assert bits(new["item"]) == bits(odd)
    assert bool((updates["item"] == 0).all())
    assert bits(optax.apply_updates(params, updates)["item"])[0][8:16] == bits(odd)[0][8:16]  # -0.0 and 0.0


def test_low_precision_parameters_keep_their_type_and_bits():
    params = {"user": jnp.ones(3, jnp.bfloat16), "item": jnp.full(3, 0.1, jnp.bfloat16)}
    optimizer = alternating({"user": optax.adam(0.1), "item": optax.adam(0.1)}, {"user": "user", "item": "item"})
    state = optimizer.init(params)
    updates, new_state = jax.jit(optimizer.update)(params, state, params, active=jnp.int32(0))
    new = apply_updates(params, updates)
    assert new["user"].dtype == jnp.bfloat16
    assert bits((new["item"], new_state.inner_states["item"])) == bits((params["item"], state.inner_states["item"]))
    assert bits(new["user"]) != bits(params["user"])


def test_chained_with_other_transformations_and_multi_steps():
    """`active` passes through optax.chain and optax.MultiSteps; MultiSteps uses the one of its last micro-step."""
    params = make_params()
    optimizer = optax.MultiSteps(optax.chain(OPTIMIZER, optax.scale(0.5)), 2)
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    new = params
    for micro in range(4):
        updates, state = step(jax.grad(loss)(new, make_batch(micro)), state, new, active=jnp.int32(1))
        new = apply_updates(new, updates)
    inner = state.inner_opt_state[0].inner_states
    assert bits((new["user"], inner["user"])) == bits((params["user"], OPTIMIZER.init(params).inner_states["user"]))
    assert bits(new["item"]) != bits(params["item"])


def test_multi_steps_inside_a_module_waits_with_it():
    transforms = {"a": optax.MultiSteps(optax.sgd(1.0), 2), "b": optax.sgd(1.0)}
    transforms["a"] = transforms["a"].gradient_transformation()
    optimizer = alternating(transforms, {"a": "a", "b": "b"})
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    values = []
    for active in (0, 1, 1, 0):
        updates, state = step({"a": jnp.ones(1), "b": jnp.ones(1)}, state, params, active=jnp.int32(active))
        params = apply_updates(params, updates)
        values.append((float(params["a"][0]), float(params["b"][0])))
    assert values == [(0, 0), (0, -1), (0, -2), (-1, -2)]


def test_extra_arguments_reach_the_transformations_that_take_them():
    optimizer = alternating({"a": optax.polyak_sgd(max_learning_rate=10.0), "b": optax.sgd(1.0)}, {"a": "a", "b": "b"})
    params = {"a": jnp.array(2.0), "b": jnp.array(2.0)}
    updates, _ = optimizer.update(params, optimizer.init(params), params, active="a", value=jnp.array(8.0))
    assert float(updates["a"]) == pytest.approx(-8.0 / 4.0 * 2.0)


def test_state_maps_over_parameters():
    """Tools that rebuild the state by parameter, as for sharding, go through."""
    state = OPTIMIZER.init(make_params())
    mapped = optax.tree.map_params(OPTIMIZER, lambda leaf: leaf + 1, state)
    adam = optax.tree.get(mapped.inner_states["user"], "mu")
    assert float(adam["user"]["b"][0]) == 1.0
    assert all(count == 0 for _, count in optax.tree.get_all_with_path(mapped, "count"))


def test_gradients_of_the_active_only_give_the_same_step():
    gradients = active_value_and_grad(loss, LABELS, MODULES)
    params, state = make_params(), OPTIMIZER.init(make_params())
    _, own = gradients(params, make_batch(0), active="item")
    assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves((own["user"], own["fixed"])))
    ours, _ = OPTIMIZER.update(own, state, params, active="item")
    raw, _ = OPTIMIZER.update(jax.grad(loss)(params, make_batch(0)), state, params, active="item")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), ours, raw)
