"""examples/scanned_gan.py: no bit of a frozen player moves, and the weights are those of the same GAN by hand."""

import runpy
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from adapters.optax import active_value_and_grad, alternating, apply_updates
from adapters.optax.audit import Audit

NUM_STEPS = 12
GAN = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "scanned_gan.py"))
PLAYERS = GAN["PLAYERS"]
ORDER = ["generator", "critic", "critic"] * (NUM_STEPS // 3)
KEYS = jax.random.split(jax.random.key(1), NUM_STEPS)


@pytest.fixture(scope="module")
def scanned():
    return GAN["train"](NUM_STEPS)


def test_the_players_take_turns_as_planned(scanned):
    _, log = scanned
    assert [PLAYERS[index] for index in log.previous] == ORDER


def test_the_weights_are_those_of_the_gan_by_hand(scanned):
    params, optimizers = GAN["init"](jax.random.key(0)), GAN["optimizers"]()
    states = {name: optimizers[name].init(params[name]) for name in PLAYERS}

    @partial(jax.jit, static_argnames="name")
    def step(params, state, key, name):
        loss = lambda player: GAN["LOSSES"][name]({**params, name: player}, key)  # noqa: E731
        updates, state = optimizers[name].update(jax.grad(loss)(params[name]), state, params[name])
        return optax.apply_updates(params[name], updates), state

    for key, name in zip(KEYS, ORDER, strict=True):
        player, states[name] = step(params, states[name], key, name)
        params = {**params, name: player}
    for ours, theirs in zip(jax.tree.leaves(scanned[0]), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)  # compiled with the rest of the scan


def test_no_bit_of_the_frozen_player_moves():
    labels = GAN["LABELS"]
    optimizer = alternating(GAN["optimizers"](), labels)
    gradients = active_value_and_grad(GAN["LOSSES"], labels, PLAYERS)

    @jax.jit
    def step(params, state, key, active):
        _, grads = gradients(params, key, active=active)
        updates, state = optimizer.update(grads, state, params, active=active)
        return apply_updates(params, updates), state

    params = GAN["init"](jax.random.key(0))
    state, audit = optimizer.init(params), Audit(labels, PLAYERS)
    for key, name in zip(KEYS, ORDER, strict=True):
        audit.frozen(params, state, active=name)
        params, state = step(params, state, key, np.int32(PLAYERS.index(name)))
        audit.check(params, state)
    assert audit.num_checks == NUM_STEPS
