"""The states of frozen modules of an NNX optimizer: on the host and back to the bit, or dropped."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from adapters.nnx import AlternatingOptimizer
from adapters.optax import Away
from alternator import ConfigurationError

NAMES = ("encoder", "head")


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.encoder = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs))
        self.head = nnx.Linear(4, 1, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x_BD):
        return self.head(jnp.tanh(self.encoder(x_BD))) * self.scale[...]


class Run:
    def __init__(self, frozen_state, **options):
        self.model = Model()
        transforms = {name: optax.adamw(0.05) for name in NAMES}
        always = ("scale", optax.adam(0.05))
        self.optimizer = AlternatingOptimizer(
            self.model, transforms, always=always, frozen_mode="inference", frozen_state=frozen_state, **options
        )
        self.traces = []

        @nnx.jit(static_argnames="active")
        def train_step(model, optimizer, x_BD, active):
            self.traces.append(active)
            loss = lambda model, x_BD: jnp.mean((model(x_BD) - 1) ** 2)  # noqa: E731
            _, gradients = optimizer.value_and_grad(loss)(model, x_BD, active=active)
            optimizer.update(model, gradients, active=active)

        self.train_step = train_step

    def train(self, start, stop):
        for step in range(start, stop):
            active = NAMES[step // 3 % 2]
            if step % 3 == 0:
                self.optimizer.enter(self.model, active)
            self.train_step(self.model, self.optimizer, jax.random.normal(jax.random.key(step), (6, 4)), active)
        return self

    def bits(self):
        return [jax.device_get(leaf).tobytes() for leaf in jax.tree.leaves(nnx.state(self.model))]


def test_on_the_host_and_back_to_the_bit():
    kept, moved = Run("keep").train(0, 14), Run({"encoder": "offload"}).train(0, 14)
    assert moved.bits() == kept.bits()
    assert moved.traces == list(NAMES)
    assert int(moved.optimizer.step[...]) == 14
    moved.train(15, 16)
    whole = moved.optimizer.frozen_states.whole(moved.optimizer.opt_state)
    moments = [leaf for leaf in jax.tree.leaves(whole.inner_states["encoder"]) if leaf.ndim]
    assert {leaf.sharding.memory_kind for leaf in moments} == {"pinned_host"}
    assert isinstance(moved.optimizer.opt_state.inner_states["encoder"], Away)


def test_dropped_it_starts_again_as_with_a_new_optimizer():
    run, by_hand = Run("drop"), Run("keep")
    for step in range(0, 12, 3):
        whole = by_hand.optimizer.opt_state.inner_states
        for name in NAMES:
            fresh = by_hand.optimizer.tx.init(nnx.state(by_hand.model, nnx.Param)).inner_states[name]
            for old, new in zip(jax.tree.leaves(whole[name], is_leaf=is_variable), arrays(fresh), strict=True):
                old[...] = new
        for each in (run, by_hand):
            each.train(step, step + 3)
        assert run.bits() == by_hand.bits()
    assert run.traces == list(NAMES)
    counts = {name: optax.tree.get(run.optimizer.opt_state.inner_states[name], "count") for name in ("head", "always")}
    assert {name: int(count[...]) for name, count in counts.items()} == {"head": 3, "always": 12}


def is_variable(node):
    return isinstance(node, nnx.Variable)


def arrays(tree):
    return [leaf[...] if is_variable(leaf) else leaf for leaf in jax.tree.leaves(tree, is_leaf=is_variable)]


def test_a_snapshot_is_refused():
    run = Run("drop")
    with pytest.raises(ConfigurationError, match="must find all optimizer states"):
        run.optimizer.snapshot(run.model)


def test_an_accumulation_is_refused():
    with pytest.raises(ConfigurationError, match="accumulate must be 1 where states leave, got 2"):
        Run("drop", accumulate=2)
