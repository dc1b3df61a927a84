"""Optimizers that evaluate the loss themselves: of their own module's parameters, with the others' as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adapters.optax import active_value_and_grad, alternating, apply_updates

MODULES = ("a", "b")
LABELS = {"a": "a", "b": "b"}
START = {"a": {"w": jnp.array([1.0, 2.0])}, "b": {"w": jnp.array([3.0, 1.0])}}
SEARCHES = {
    "lbfgs": optax.lbfgs(memory_size=3),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)),
    "zoom": optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(max_linesearch_steps=15)),
}


def loss(params):
    return ((params["a"]["w"] * params["b"]["w"] - 1.0) ** 2).sum()


def alone(params, module, transform, num_steps):
    """The parameters after steps of a plain optimizer of one module."""

    def value_fn(own):
        return loss({**params, **own})

    own = {module: params[module]}
    state = transform.init(own)
    for _ in range(num_steps):
        value, grads = jax.value_and_grad(value_fn)(own)
        updates, state = transform.update(grads, state, own, value=value, grad=grads, value_fn=value_fn)
        own = optax.apply_updates(own, updates)
    return {**params, **own}


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_line_search_is_over_the_modules_own_parameters(name, static):
    optimizer = alternating(dict.fromkeys(MODULES, SEARCHES[name]), LABELS)

    def step(params, state, active):
        value, grads = active_value_and_grad(loss, LABELS, MODULES)(params, active=active)
        updates, state = optimizer.update(grads, state, params, active=active, value=value, grad=grads, value_fn=loss)
        return apply_updates(params, updates), state

    jitted = jax.jit(step, static_argnames="active" if static else ())
    params, expected = START, START
    state = optimizer.init(params)
    for active, module in enumerate(MODULES):
        for _ in range(2):
            params, state = jitted(params, state, active=active if static else jnp.int32(active))
        expected = alone(expected, module, SEARCHES[name], 2)
        jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5), params, expected)
    assert loss(params) < loss(START) / 4
