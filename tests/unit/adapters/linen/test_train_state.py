"""adapters.linen.TrainState: Flax's own, under which frozen modules keep every bit."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

from adapters.contract import FreezeError
from adapters.linen import TrainState
from adapters.optax import active_value_and_grad, alternating, keep_frozen, labels_of
from adapters.optax.audit import Audit
from alternator import ConfigurationError, UnknownModuleError

ROOT = Path(__file__).parents[4]
MODULES = ("encoder", "head")
INPUTS = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)
LABELS = labels_of({"encoder": "*", "head": "head"})


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        hidden = nn.Dense(4)(inputs)
        return nn.Dropout(0.5, deterministic=not train)(nn.BatchNorm(use_running_average=not train)(hidden))


class Model(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=True):
        hidden = Encoder(name="encoder")(inputs, train)
        return nn.Dense(1, name="head")(nn.BatchNorm(use_running_average=not train, name="norm")(hidden))


class State(TrainState):
    batch_stats: Any = None


MODEL = Model()
VARIABLES = MODEL.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, INPUTS)
TX = alternating({name: optax.adamw(0.1, weight_decay=0.1) for name in MODULES}, LABELS)


def make(tx=TX):
    return State.create(apply_fn=MODEL.apply, params=VARIABLES["params"], tx=tx, batch_stats=VARIABLES["batch_stats"])


def loss(params, batch_stats, key):
    outputs, moved = MODEL.apply(
        {"params": params, "batch_stats": batch_stats}, INPUTS, rngs={"dropout": key}, mutable="batch_stats"
    )
    return ((outputs - 1.0) ** 2).mean(), moved["batch_stats"]


GRADIENTS = active_value_and_grad(loss, LABELS, MODULES, has_aux=True)
KEEP = keep_frozen(LABELS, MODULES)


def train(state, active, keep=KEEP):
    key = jax.random.fold_in(jax.random.key(2), state.step)
    (value, moved), grads = GRADIENTS(state.params, state.batch_stats, key, active=active)
    moved = keep(state.params, state.batch_stats, moved, active=active)
    return state.apply_gradients(grads=grads, active=active, batch_stats=moved), value


STATIC = jax.jit(train, static_argnames="active")
TRACED = jax.jit(train)
STEPS = {"eager": train, "static": STATIC, "traced": lambda state, active: TRACED(state, jnp.int32(active))}


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def own(state, name):
    """All that is the module's: parameters, optimizer state, statistics."""
    parts = (name,) if name == "head" else ("encoder", "norm")
    params, stats = ([tree[part] for part in parts if part in tree] for tree in (state.params, state.batch_stats))
    return bits((params, stats, state.opt_state.inner_states[name]))


@pytest.mark.parametrize("way", STEPS)
def test_what_is_frozen_keeps_every_bit_and_the_rest_trains(way):
    state = make()
    audit = Audit(LABELS, MODULES)
    for active in (0, 1, 1, 0):
        before = state
        audit.frozen(state.params, state.opt_state, active=active, batch_stats=state.batch_stats)
        state, _ = STEPS[way](state, active)
        audit.check(state.params, state.opt_state, batch_stats=state.batch_stats)
        trained, frozen = MODULES[active], MODULES[1 - active]
        assert own(state, frozen) == own(before, frozen)
        assert own(state, trained) != own(before, trained)
    assert int(state.step) == audit.num_checks == 4
    counts = [int(optax.tree.get(state.opt_state.inner_states[name], "count")) for name in MODULES]
    assert counts == [2, 2]


def test_a_whole_run_is_one_scan():
    def body(state, active):
        return train(state, active)

    order = jnp.asarray([0, 1, 1, 0], jnp.int32)
    scanned, values = jax.jit(partial(jax.lax.scan, body))(make(), order)
    state = make()
    for active in order:
        state, value = TRACED(state, active)
    for ours, theirs in zip(jax.tree.leaves(scanned), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert float(values[-1]) == pytest.approx(float(value), rel=1e-5)


def test_a_checkpoint_continues_to_the_bit():
    state = make()
    for active in (0, 1):
        state, _ = STATIC(state, active)
    restored = serialization.from_bytes(make(), serialization.to_bytes(state))
    assert bits(restored) == bits(state)
    assert bits(STATIC(restored, 1)[0]) == bits(STATIC(state, 1)[0])


def test_statistics_that_are_not_kept_are_found():
    state = make()
    after, _ = train(state, "head", keep=lambda params, before, after, *, active: after)
    audit = Audit(LABELS, MODULES)
    audit.frozen(state.params, state.opt_state, active="head", batch_stats=state.batch_stats)
    with pytest.raises(FreezeError, match=r"'batch_stats\.encoder\.BatchNorm_0\.mean', .* of 'encoder' changed"):
        audit.check(after.params, after.opt_state, batch_stats=after.batch_stats)


@pytest.mark.parametrize(
    "tx", [optax.adamw(0.1), optax.multi_transform({"encoder": optax.sgd(0.1), "head": optax.sgd(0.1)}, LABELS)]
)
def test_a_transformation_that_would_move_all_is_refused(tx):
    with pytest.raises(ConfigurationError, match=r"tx must be an adapters\.optax\.alternating"):
        make(tx)


def test_within_a_chain_it_is_found_and_gets_active():
    state = make(optax.chain(optax.clip(1.0), TX))
    after, _ = train(state, "head")
    assert bits(after.params["encoder"]) == bits(state.params["encoder"])
    assert bits(after.params["head"]) != bits(state.params["head"])


def test_an_unknown_name_is_refused():
    state = make()
    with pytest.raises(UnknownModuleError, match="unknown module 'haed'"):
        state.apply_gradients(grads=state.params, active="haed")


def test_without_flax_the_extra_is_named(tmp_path):
    program = "import sys; sys.modules['flax'] = None; import adapters.linen"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: this adapter needs flax, which is not installed; run: pip install "
        "'adaptive-alternator[jax]'"
    )
