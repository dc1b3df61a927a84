"""Snapshots in NNX: what was tried and rolled back leaves no trace, to the bit, even where buffers are donated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from adapters.nnx import AlternatingOptimizer
from alternator import Alternator, StateError, Trial, Trials

MODULES = ("body", "head")
INPUTS = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.body = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs))
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, inputs):
        return self.head(self.dropout(self.body(inputs)))


def make():
    model = Model()
    return model, AlternatingOptimizer(model, {name: optax.adamw(0.1) for name in MODULES})


def loss(model, inputs):
    return ((model(inputs) - 1.0) ** 2).mean()


@nnx.jit(static_argnames="active")
def train_step(model, optimizer, inputs, active):
    value, gradients = optimizer.value_and_grad(loss)(model, inputs, active=active)
    optimizer.update(model, gradients, active=active)
    return value


def train(model, optimizer, num_steps, shift=0.0):
    for step in range(num_steps):
        train_step(model, optimizer, INPUTS + shift + step, MODULES[step % 2])


def data(leaf):
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def bits(*nodes):
    paths = jax.tree_util.tree_flatten_with_path(nnx.state(nodes))[0]
    return {jax.tree_util.keystr(path): np.asarray(data(leaf)).tobytes() for path, leaf in paths}


@pytest.mark.parametrize("warm_up", [0, 3])
def test_what_was_tried_leaves_no_trace(warm_up):
    model, optimizer = make()
    train(model, optimizer, warm_up)
    before, saved = bits(model, optimizer), optimizer.snapshot(model)
    for _ in range(2):  # a snapshot may be used again
        train(model, optimizer, 4, shift=9.0)
        moved = {key for key, value in bits(model, optimizer).items() if value != before[key]}
        assert all(any(part in key for key in moved) for part in ("kernel", "mean", "count", "mu", "step"))
        optimizer.rollback(model, saved)
        assert bits(model, optimizer) == before


def test_training_continues_as_if_nothing_had_been_tried():
    expected = make()
    for _ in range(2):
        train(*expected, 3)
    model, optimizer = make()
    train(model, optimizer, 3)
    saved = optimizer.snapshot(model)
    train(model, optimizer, 4, shift=9.0)
    optimizer.rollback(model, saved)
    train(model, optimizer, 3)
    assert bits(model, optimizer) == bits(*expected)


def test_donated_buffers_leave_a_snapshot_as_it_is():
    model, optimizer = make()
    saved = optimizer.snapshot(model)
    graphdef, _ = nnx.split((model, optimizer))

    @jax.jit
    def pure_step(state, inputs):
        model, optimizer = nnx.merge(graphdef, state)
        _, gradients = optimizer.value_and_grad(loss)(model, inputs, active="body")
        optimizer.update(model, gradients, active="body")
        return nnx.state((model, optimizer))

    donating = jax.jit(pure_step, donate_argnums=0)
    before = bits(model, optimizer)
    for _ in range(2):
        kernel = nnx.state((model, optimizer))[0]["body"]["layers"][0]["kernel"][...]
        nnx.update((model, optimizer), donating(nnx.state((model, optimizer)), INPUTS))
        assert kernel.is_deleted(), "nothing was donated"
        optimizer.rollback(model, saved)
        assert bits(model, optimizer) == before


def test_a_snapshot_is_a_value_under_jit():
    model, optimizer = make()
    before = bits(model, optimizer)

    @nnx.jit
    def try_and_undo(model, optimizer):
        saved = optimizer.snapshot(model)
        value = train_step(model, optimizer, INPUTS, "body")
        optimizer.rollback(model, saved)
        return value, saved

    value, saved = try_and_undo(model, optimizer)
    assert bits(model, optimizer) == before
    train(model, optimizer, 1)
    optimizer.rollback(model, saved)
    assert bits(model, optimizer) == before
    assert float(value) > 0


def test_nothing_is_copied_to_the_host():
    model, optimizer = make()
    train(model, optimizer, 2)
    with jax.transfer_guard("disallow"):
        saved = optimizer.snapshot(model)
        optimizer.rollback(model, saved)


def test_a_snapshot_of_another_model_is_refused_and_changes_nothing():
    model, optimizer = make()
    saved = optimizer.snapshot(model)
    train(model, optimizer, 1)
    model.more = nnx.Param(jnp.ones(2))
    before = bits(model, optimizer)
    with pytest.raises(StateError, match=r"a snapshot must be of the same model and optimizer.*'more' has been added"):
        optimizer.rollback(model, saved)
    assert bits(model, optimizer) == before


def test_trials_find_the_module_whose_training_helps():
    model, turns = Model(), {"both": MODULES, "body": ("body",), "head": ("head",)}
    alternator = Alternator(turns, rule=Trial(steps=4, start=1, hold=4, halvings=9, groups=4))
    transforms = {"body": optax.sgd(-0.5), "head": optax.sgd(0.02)}  # the body's steps raise the loss
    optimizer = AlternatingOptimizer(model, transforms, turns=turns, alternator=alternator)

    def held_out():
        evaluated = nnx.merge(*nnx.split(model))
        evaluated.eval()
        return ((evaluated(INPUTS) - 1.0) ** 2).reshape(4, 2).mean(1).tolist()

    trials = Trials(
        alternator,
        snapshot=lambda: optimizer.snapshot(model),
        restore=lambda saved: optimizer.rollback(model, saved),
        losses=held_out,
    )
    for step in range(40):
        trials.before_step()
        train_step(model, optimizer, INPUTS + 0.1 * (step % 3), alternator.active)
        alternator.advance()
    assert alternator.modules[alternator.rule_state.incumbent] == "head"
    assert trials.num_returned > 0
