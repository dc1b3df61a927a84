"""What audits the recipes in JAX sees each update, within `jit` and scans, and finds a bit that moves."""

import jax
import jax.numpy as jnp
import optax
import pytest

import adapters.nnx.optimizer
import adapters.optax
from adapters.optax import apply_updates
from tests.integration import audited_jax


def train(scans):
    """A program that builds its own optimizer."""
    params = {"encoder": jnp.ones(3), "head": jnp.ones(2)}
    transforms = {name: optax.adamw(0.1) for name in params}
    optimizer = adapters.optax.alternating(transforms, {name: name for name in params})

    def step(carry, active):
        params, state = carry
        gradients = jax.grad(lambda params: (params["encoder"].sum() * params["head"].sum() - 1) ** 2)(params)
        updates, state = optimizer.update(gradients, state, params, active=active)
        return (apply_updates(params, updates), state), None

    carry = (params, optimizer.init(params))
    if scans:
        carry, _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.array([0, 1, 1])))(carry)
    else:
        jitted = jax.jit(step, static_argnums=1)
        for active in ("encoder", "head", "head"):
            carry, _ = jitted(carry, active)
    jax.effects_barrier()
    return carry[0]


@pytest.mark.parametrize("scans", [False, True])
def test_each_update_is_audited(scans):
    with audited_jax.audited() as audits:
        assert adapters.nnx.optimizer.alternating is adapters.optax.alternating is not audited_jax.alternating
        trained = train(scans)
    assert adapters.nnx.optimizer.alternating is adapters.optax.alternating is audited_jax.alternating
    assert [audit.active for audit in audits] == [["encoder", "head", "head"]]
    assert audits[0].num_checks == 3
    assert jax.tree.all(jax.tree.map(jnp.array_equal, trained, train(scans)))


@pytest.mark.parametrize("scans", [False, True])
def test_a_bit_that_moves_is_found(scans, monkeypatch):
    kept = audited_jax.alternating

    def leaking(*args, **options):
        optimizer = kept(*args, **options)

        def update(gradients, state, params, **extra):
            updates, state = optimizer.update(gradients, state, params, **extra)
            return jax.tree.map(lambda update: update - 1e-6, updates), state

        return optax.GradientTransformationExtraArgs(optimizer.init, update)

    monkeypatch.setattr(audited_jax, "alternating", leaking)
    with audited_jax.audited(), pytest.raises(jax.errors.JaxRuntimeError, match=r"'params.head' of 'head' changed"):
        train(scans)
