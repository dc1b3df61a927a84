"""``frozen_mode`` in Flax NNX: as in training with every bit kept, and the warning where none is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from adapters.nnx import AlternatingOptimizer
from alternator import ConfigurationError

INPUTS = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)
NAMES = ("a", "b")


class Part(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return self.dropout(self.norm(self.linear(inputs)))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = Part(rngs), Part(rngs)

    def __call__(self, inputs):
        return self.b(self.a(inputs))


def loss(model, inputs):
    return ((model(inputs) - 1.0) ** 2).mean()


def build(frozen_mode="batch", prepare=lambda model: None):
    model = Model(nnx.Rngs(0))
    prepare(model)
    transforms = {name: optax.adamw(0.1) for name in NAMES}
    return model, AlternatingOptimizer(model, transforms, frozen_mode=frozen_mode)


def train(model, optimizer, inputs, active):
    value, gradients = optimizer.value_and_grad(loss)(model, inputs, active=active)
    optimizer.update(model, gradients, active=active)
    return value


STEPS = {"static": nnx.jit(train, static_argnames="active"), "traced": nnx.jit(train)}


def statistics(model):
    return [np.array(leaf).tobytes() for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))]


@pytest.mark.parametrize("kind", STEPS)
def test_a_frozen_module_runs_as_in_training_and_keeps_every_bit(kind):
    model, optimizer = build()
    twin = nnx.clone(model)
    turn = (lambda index: index) if kind == "static" else jnp.int32
    for step in range(4):
        active, frozen = NAMES[step % 2], NAMES[1 - step % 2]
        before = [statistics(getattr(model, name)) for name in (active, frozen)]
        parameters = [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(getattr(model, frozen), nnx.Param))]
        nnx.update(twin, nnx.state(model))
        expected = loss(twin, INPUTS)  # in training mode
        value = STEPS[kind](model, optimizer, INPUTS, turn(step % 2))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert statistics(getattr(model, active)) != before[0]
        assert statistics(getattr(model, frozen)) == before[1]
        after = jax.tree.leaves(nnx.state(getattr(model, frozen), nnx.Param))
        assert all(np.array_equal(one, two) for one, two in zip(parameters, after, strict=True))
    assert not model.b.norm.use_running_average
    assert not model.b.dropout.deterministic


def test_weights_equal_those_of_a_loop_written_by_hand():
    """Which moves the statistics of what is frozen too, and nothing else; operation by operation."""
    model, optimizer = build()
    twin = Model(nnx.Rngs(0))
    optimizers = {name: nnx.Optimizer(getattr(twin, name), optax.adamw(0.1), wrt=nnx.Param) for name in NAMES}
    for step in range(4):
        name = NAMES[step % 2]
        train(model, optimizer, INPUTS, name)
        filtered = nnx.DiffState(0, nnx.All(nnx.Param, nnx.PathContains(name)))
        gradients = nnx.grad(loss, argnums=filtered)(twin, INPUTS)
        optimizers[name].update(getattr(twin, name), gradients[name])
    for one, two in zip(*(jax.tree.leaves(nnx.state(each, nnx.Param)) for each in (model, twin)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)
    assert statistics(model) != statistics(twin)


def test_what_the_user_put_in_inference_mode_stays_so():
    def prepare(model):
        model.b.norm.use_running_average = True
        model.b.dropout.deterministic = True

    model, optimizer = build({"b": "batch"}, prepare)
    twin = nnx.clone(model)
    value, _ = optimizer.value_and_grad(loss)(model, INPUTS, active="a")
    np.testing.assert_allclose(value, loss(twin, INPUTS), rtol=1e-6)


def test_each_module_has_its_own_mode():
    model, optimizer = build({"a": "inference", "b": "batch"})
    seen = []

    def watching(model, inputs):
        seen.append([(part.norm.use_running_average, part.dropout.deterministic) for part in (model.a, model.b)])
        return loss(model, inputs)

    for active in NAMES:
        optimizer.value_and_grad(watching)(model, INPUTS, active=active)
    assert seen == [[(False, False), (False, False)], [(True, True), (False, False)]]


@pytest.mark.parametrize("kind", STEPS)
def test_a_mode_that_nobody_chose_warns_once_of_gradients_through_batchnorm(kind):
    model, optimizer = build(None)
    turn = (lambda index: index) if kind == "static" else jnp.int32
    with pytest.warns(UserWarning, match=r"'b' has BatchNorm .* frozen_mode=\{'b': 'batch'\}"):
        STEPS[kind](model, optimizer, INPUTS, turn(0))
    STEPS[kind](model, optimizer, INPUTS, turn(1))
    nnx.jit(train, static_argnames="active")(model, optimizer, INPUTS, 0)  # traced again, and said already


def test_no_warning_where_none_flows_or_the_user_chose():
    for frozen_mode in ("inference", "batch"):
        model, optimizer = build(frozen_mode)
        STEPS["static"](model, optimizer, INPUTS, 0)
    model, optimizer = build(None)
    STEPS["static"](model, optimizer, INPUTS, 1)  # the frozen encoder's input depends on nothing that trains

    def stopped(model, inputs):
        return (model.b(jax.lax.stop_gradient(model.a(inputs))) ** 2).mean() + (model.a(inputs) ** 2).mean()

    optimizer.value_and_grad(stopped)(model, INPUTS, active=0)
    model, optimizer = build(None, lambda model: setattr(model.b.norm, "use_running_average", True))
    STEPS["static"](model, optimizer, INPUTS, 0)


def test_the_warning_changes_no_gradient_and_allows_forward_mode():
    model, optimizer = build(None)
    quiet, silent = build("inference")
    with pytest.warns(UserWarning, match="'b' has BatchNorm"):
        value, gradients = optimizer.value_and_grad(loss)(model, INPUTS, active="a")
    expected = silent.value_and_grad(loss)(quiet, INPUTS, active="a")
    assert value == expected[0]
    for one, two in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected[1]), strict=True):
        assert np.array_equal(one, two)

    def sloped(model, inputs):
        return jax.jvp(lambda x: model.b.norm(x).sum(), (model.a.linear(inputs),), (inputs,))[1]

    optimizer.value_and_grad(sloped)(model, INPUTS, active="a")


def test_a_mistaken_mode_is_an_error():
    with pytest.raises(ConfigurationError, match=r"frozen_mode must be one of \('inference', 'batch'\), got 'eval'"):
        build("eval")
    with pytest.raises(ConfigurationError, match=r"frozen_mode must be named after the modules \('a', 'b'\), got"):
        build({"c": "batch"})
