"""Parameters' trees that hold more than numbers with gradients: typed random keys, integers, booleans."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adapters.optax import FROZEN, active_value_and_grad, alternating, apply_updates
from alternator import ConfigurationError

MODULES = ("a", "b")
LABELS = {"a": {"w": "a", "key": FROZEN, "ids": FROZEN, "on": FROZEN}, "b": "b"}
TRANSFORMS = {name: optax.adamw(0.1, weight_decay=0.5) for name in MODULES}


def make():
    first = {"w": jnp.arange(3.0), "key": jax.random.key(7), "ids": jnp.arange(4), "on": jnp.array([True, False])}
    return {"a": first, "b": jnp.ones(3)}


def loss(params):
    noise = jax.random.normal(params["a"]["key"], (3,))
    kept = jnp.where(params["a"]["on"][0], params["a"]["w"] * params["b"], noise)
    return ((kept[params["a"]["ids"][:3]] - noise) ** 2).sum()


def raw(tree):
    """The bits of the arrays, those of keys as their data."""
    is_key = partial(jnp.issubdtype, arg2=jax.dtypes.prng_key)
    return [
        np.asarray(jax.random.key_data(leaf) if is_key(leaf.dtype) else leaf).tobytes()
        for leaf in jax.tree.leaves(tree)
    ]


def step(params, state, active, *, optimizer, take):
    updates, state = optimizer.update(take(params, active), state, params, active=active)
    return apply_updates(params, updates), state


TAKE = {
    "active_value_and_grad": lambda params, active: active_value_and_grad(loss, LABELS, MODULES)(params, active=active)[
        1
    ],
    "jax.grad": lambda params, _: jax.grad(loss, allow_int=True)(params),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("take", TAKE)
@pytest.mark.parametrize("static", [True, False])
def test_keys_integers_and_booleans_that_are_labelled_frozen_stay(take, static, accumulate):
    optimizer = alternating(TRANSFORMS, LABELS, accumulate=accumulate)
    jitted = jax.jit(partial(step, optimizer=optimizer, take=TAKE[take]), static_argnames="active" if static else ())
    params = start = make()
    state = optimizer.init(params)
    for active in (0, 0, 1, 1):
        params, state = jitted(params, state, active=active if static else jnp.int32(active))
    assert jax.tree.structure(params) == jax.tree.structure(start)
    for name in ("key", "ids", "on"):
        assert params["a"][name].dtype == start["a"][name].dtype
        assert raw(params["a"][name]) == raw(start["a"][name])
    assert raw(params["a"]["w"]) != raw(start["a"]["w"])
    assert raw(params["b"]) != raw(start["b"])
    assert jitted._cache_size() == (2 if static else 1)


@pytest.mark.parametrize(("name", "kind"), [("key", r"key<fry>"), ("ids", "int32"), ("on", "bool")])
def test_what_has_no_gradient_cannot_belong_to_a_module(name, kind):
    labels = {"a": {**LABELS["a"], name: "a"}, "b": "b"}
    message = rf"real or complex numbers, got {kind} for params\['a'\]\['{name}'\] of 'a'; label it 'frozen'"
    with pytest.raises(ConfigurationError, match=message):
        alternating(TRANSFORMS, labels).init(make())
    with pytest.raises(ConfigurationError, match=message):
        active_value_and_grad(loss, labels, MODULES)(make(), active="a")


def test_labels_may_be_worked_out_from_keys_and_integers():
    def label(path, leaf):
        return path[0].key if jnp.issubdtype(leaf.dtype, jnp.inexact) else FROZEN

    state = alternating(TRANSFORMS, partial(jax.tree_util.tree_map_with_path, label)).init(make())
    assert len(jax.tree.leaves(state.inner_states["a"][0].mu)) == 1
