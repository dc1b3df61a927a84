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


TRAINED = {
    "complex64": jnp.array([1 + 2j, -0.5j]),
    "bfloat16": jnp.array([1, 2], jnp.bfloat16),
    "float16": jnp.array([1, 2], jnp.float16),
    "weak": jnp.asarray(1.5) * 1,
    "python": 1.5,
    "empty": {"w": jnp.ones(2), "none": jnp.zeros((0, 3)), "nothing": {}, "absent": None},
}


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("name", TRAINED)
def test_numbers_of_every_type_train_as_in_plain_optax(name, static):
    def square(params):
        return sum(jnp.abs(leaf.astype(jnp.complex64) ** 2).sum() for leaf in map(jnp.asarray, jax.tree.leaves(params)))

    labels = {"a": "a", "b": "b"}
    optimizer = alternating(TRANSFORMS, labels)
    params = {"a": TRAINED[name], "b": jnp.ones(3)}
    expected, plain = {"a": TRAINED[name]}, TRANSFORMS["a"]
    take = lambda params, active: active_value_and_grad(square, labels, MODULES)(params, active=active)[1]  # noqa: E731
    jitted = jax.jit(partial(step, optimizer=optimizer, take=take), static_argnames="active" if static else ())
    state, plain_state = optimizer.init(params), plain.init(expected)
    for _ in range(2):
        params, state = jitted(params, state, active=0 if static else jnp.int32(0))
        updates, plain_state = plain.update(jax.grad(square)(expected), plain_state, expected)
        expected = optax.apply_updates(expected, updates)
    trained = params["a"]
    assert jax.tree.structure(trained) == jax.tree.structure(expected["a"])
    for ours, theirs in zip(jax.tree.leaves(trained), jax.tree.leaves(expected["a"]), strict=True):
        assert ours.dtype == jnp.result_type(theirs)
        np.testing.assert_allclose(np.asarray(ours, np.complex64), np.asarray(theirs, np.complex64), rtol=2e-2)
    assert raw(params["b"]) == raw(jnp.ones(3))


KEPT = {
    "uint8": jnp.arange(3, dtype=jnp.uint8),
    "int4": jnp.arange(3, dtype=jnp.int4),
    "float8": jnp.ones(2, jnp.float8_e5m2),
    "float0": np.zeros(2, jax.dtypes.float0),
    "complex": jnp.array([1j]),
    "legacy key": jax.random.PRNGKey(3),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", KEPT)
def test_whatever_is_labelled_frozen_stays(name, accumulate):
    labels = {"a": "a", "b": "b", "kept": FROZEN}
    optimizer = alternating(TRANSFORMS, labels, accumulate=accumulate)
    take = lambda params, active: active_value_and_grad(  # noqa: E731
        lambda p: (p["a"] * p["b"]).sum(), labels, MODULES
    )(params, active=active)[1]
    params = {"a": jnp.ones(3), "b": jnp.ones(3), "kept": KEPT[name]}
    state = optimizer.init(params)
    for _ in range(2):
        params, state = jax.jit(partial(step, optimizer=optimizer, take=take))(params, state, active=jnp.int32(0))
    assert params["kept"].dtype == KEPT[name].dtype
    assert raw(params["kept"]) == raw(KEPT[name])
    assert raw(params["a"]) != raw(jnp.ones(3))


@pytest.mark.parametrize(("name", "kind"), [("uint8", "uint8"), ("int4", "int4"), ("float0", r"\[\('float0', 'V'\)\]")])
def test_what_has_no_gradient_is_named(name, kind):
    message = rf"must be real or complex numbers, got {kind} for params\['a'\] of 'a'; label it 'frozen'"
    with pytest.raises(ConfigurationError, match=message):
        alternating(TRANSFORMS, {"a": "a", "b": "b"}).init({"a": KEPT[name], "b": jnp.ones(3)})


@pytest.mark.parametrize("leaf", ["relu", jnp.tanh, object()])
@pytest.mark.parametrize("label", ["a", FROZEN])
def test_what_is_no_array_is_named(leaf, label):
    params, labels = {"a": {"w": jnp.ones(2), "x": leaf}, "b": jnp.ones(2)}, {"a": {"w": "a", "x": label}, "b": "b"}
    message = r"a parameter must be an array or a number, got .* for params\['a'\]\['x'\]; take it out of the tree"
    with pytest.raises(ConfigurationError, match=message):
        alternating(TRANSFORMS, labels).init(params)
    with pytest.raises(ConfigurationError, match=message):
        active_value_and_grad(lambda p: 0.0, labels, MODULES)(params, active="a")


def test_shapes_stand_for_arrays_and_empty_trees_for_none():
    params = {"a": jnp.ones(2), "b": jnp.ones(3, jnp.bfloat16)}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    for accumulate in (1, 2):
        optimizer = alternating(TRANSFORMS, {"a": "a", "b": "b"}, accumulate=accumulate)
        state = jax.eval_shape(optimizer.init, shapes)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), optimizer.init(params)
        )
        updates, new_state = jax.eval_shape(partial(optimizer.update, active="a"), shapes, state, shapes)
        assert jax.tree.structure((updates, new_state)) == jax.tree.structure((params, state))
        with pytest.raises(ConfigurationError, match="labels must name the module of every parameter") as caught:
            optimizer.update({}, optimizer.init({}), {}, active="a")
        assert "\n" not in str(caught.value)
