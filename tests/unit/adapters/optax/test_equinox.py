"""Equinox modules, as they are: activation functions, strings and Python's numbers in them are passed over."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adapters.optax import active_value_and_grad, alternating, apply_updates, labels_of
from adapters.optax.audit import Audit
from alternator import ConfigurationError

MODULES = ("trunk", "head")
LABELS = labels_of({"trunk": "*", "head": "head"})
INPUTS = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)
KEY = jax.random.key(3)


class Model(eqx.Module):
    trunk: eqx.nn.MLP
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    activation: Callable
    name: str
    unused: None
    steps: jax.Array
    temperature: float = 2.0
    power: int = eqx.field(static=True, default=2)

    def __init__(self, key=KEY):
        first, second = jax.random.split(key)
        self.trunk = eqx.nn.MLP(3, 4, 5, 1, activation=jnp.tanh, key=first)
        self.dropout = eqx.nn.Dropout(0.25)
        self.head = eqx.nn.Linear(4, 1, use_bias=False, key=second)
        self.norm = eqx.nn.LayerNorm(4)
        self.activation = jax.nn.gelu
        self.name = "model"
        self.unused = None
        self.steps = jnp.arange(3)

    def __call__(self, inputs, key):
        hidden = self.norm(self.trunk(inputs))
        return self.head(self.dropout(self.activation(hidden), key=key)) / self.temperature


def loss(model, inputs, key):
    outputs = jax.vmap(model)(inputs, jax.random.split(key, len(inputs)))
    return ((outputs - 1.0) ** model.power).mean()


def transforms():
    return {name: optax.adamw(0.1, weight_decay=0.1) for name in MODULES}


GRADIENTS = active_value_and_grad(loss, LABELS, MODULES)


def arrays(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_array))


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in arrays(tree)]


def make_step(optimizer):
    @eqx.filter_jit
    def step(model, state, active):
        value, grads = GRADIENTS(model, INPUTS, KEY, active=active)
        updates, state = optimizer.update(grads, state, model, active=active)
        return apply_updates(model, updates), state, value

    return step


ACTIVE = {"static": lambda active: MODULES[active], "traced": jnp.int32}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("way", ACTIVE)
def test_a_model_trains_as_it_is(way, accumulate):
    optimizer = alternating(transforms(), LABELS, accumulate=accumulate)
    step, model = make_step(optimizer), Model()
    state, audit = optimizer.init(model), Audit(LABELS, MODULES)
    for active in (0, 0, 1, 1):
        before = model
        audit.frozen(model, state, active=active)
        model, state, value = step(model, state, ACTIVE[way](active))
        audit.check(model, state)
    trained, frozen = (model.head, before.head), (model.trunk, before.trunk)
    assert bits(trained[0]) != bits(trained[1])
    assert bits(frozen[0]) == bits(frozen[1])
    assert np.isfinite(float(value))
    assert jax.tree.structure(model) == jax.tree.structure(Model())
    assert (model.temperature, model.dropout.p, model.activation, model.name) == (2.0, 0.25, jax.nn.gelu, "model")
    assert bits(model.steps) == bits(Model().steps)


@pytest.mark.parametrize("way", ACTIVE)
def test_weights_equal_those_of_a_loop_by_hand(way):
    optimizer = alternating(transforms(), LABELS)
    step, model, by_hand = make_step(optimizer), Model(), Model()
    state = optimizer.init(model)
    nothing = jax.tree.map(lambda leaf: False, by_hand)
    trunk = eqx.tree_at(lambda m: (m.trunk, m.norm), nothing, replace_fn=partial(jax.tree.map, lambda leaf: True))
    head = eqx.tree_at(lambda m: m.head.weight, nothing, True)
    masks = [
        jax.tree.map(lambda mine, leaf: mine and eqx.is_inexact_array(leaf), each, by_hand) for each in (trunk, head)
    ]
    own = transforms()
    states = [own[name].init(eqx.filter(by_hand, mask)) for name, mask in zip(MODULES, masks, strict=True)]

    @eqx.filter_jit
    def step_by_hand(model, state, active):
        part, rest = eqx.partition(model, masks[active])
        grads = eqx.filter_grad(lambda part: loss(eqx.combine(part, rest), INPUTS, KEY))(part)
        updates, state = own[MODULES[active]].update(grads, state, part)
        return eqx.combine(eqx.apply_updates(part, updates), rest), state

    for active in (0, 0, 1, 0, 1):
        model, state, _ = step(model, state, ACTIVE[way](active))
        by_hand, states[active] = step_by_hand(by_hand, states[active], active)
    for ours, theirs in zip(arrays(model), arrays(by_hand), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    if way == "static":
        assert bits(model) == bits(by_hand)


def test_gradients_of_equinox_itself_do():
    optimizer, model = alternating(transforms(), LABELS), Model()
    grads = eqx.filter_grad(loss)(model, INPUTS, KEY)
    updates, _ = optimizer.update(grads, optimizer.init(eqx.filter(model, eqx.is_inexact_array)), model, active="head")
    mine, theirs = apply_updates(model, updates), eqx.apply_updates(model, updates)
    assert bits(mine.trunk) == bits(model.trunk)
    assert bits(mine.head) == bits(theirs.head) != bits(model.head)


def test_a_partitioned_model_goes_through_scan():
    optimizer = alternating(transforms(), LABELS)
    params, static = eqx.partition(Model(), eqx.is_inexact_array)
    gradients = active_value_and_grad(lambda params: loss(eqx.combine(params, static), INPUTS, KEY), LABELS, MODULES)

    def body(carry, active):
        params, state = carry
        value, grads = gradients(params, active=active)
        updates, state = optimizer.update(grads, state, params, active=active)
        return (apply_updates(params, updates), state), value

    (after, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), jnp.ones(3, jnp.int32))
    assert bits(after.trunk) == bits(params.trunk)
    assert bits(after.head) != bits(params.head)


def test_modules_within_other_trees():
    def square(params):
        return ((jax.vmap(params["net"])(INPUTS) * params["scale"]) ** 2).mean()

    params = {"net": eqx.nn.MLP(3, 1, 4, 1, key=KEY), "scale": 2.0}
    labels = labels_of({"net": "net", "scale": "scale"})
    value, grads = active_value_and_grad(square, labels, ("net", "scale"))(params, active="scale")
    assert float(grads["scale"]) == pytest.approx(float(value))  # d/ds of s² m is 2 s m, which at s = 2 is s² m
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads["net"]))


def test_a_line_search_gets_the_whole_model():
    optimizer = alternating({"trunk": optax.lbfgs(), "head": optax.lbfgs()}, LABELS)
    model = eqx.nn.inference_mode(Model())
    state = optimizer.init(model)
    of_model = lambda model: loss(model, INPUTS, KEY)  # noqa: E731
    values = []
    for _ in range(3):
        value, grads = active_value_and_grad(of_model, LABELS, MODULES)(model, active="head")
        updates, state = optimizer.update(
            grads, state, model, active="head", value=value, grad=grads, value_fn=of_model
        )
        before, model = model, apply_updates(model, updates)
        values.append(float(value))
    assert bits(model.trunk) == bits(before.trunk)
    assert values[2] < values[1] < values[0]


def test_functions_outside_of_modules_are_named():
    params = {"net": eqx.nn.Linear(3, 1, key=KEY), "activation": jnp.tanh, "scale": 1.0}
    message = r"must be an array or a number, got .* for params\['activation'\]; take it out of the tree"
    with pytest.raises(ConfigurationError, match=message):
        alternating({"net": optax.sgd(0.1), "scale": optax.sgd(0.1)}, labels_of({"scale": "scale", "net": "*"})).init(
            params
        )
