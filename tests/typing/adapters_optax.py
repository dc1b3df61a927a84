"""`adapters.optax` as a user writes it, in a training loop of their own."""

# pyright: reportUnnecessaryTypeIgnoreComment=false
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

from adapters.jax import HostAlternator
from adapters.optax import AlternatingState, active_value_and_grad, alternating, apply_updates, in_force
from alternator import Alternator, Decision

LABELS = {"user": "user", "item": "item"}


def loss(params: dict[str, jax.Array], ratings: jax.Array) -> jax.Array:
    return jnp.square(params["user"] @ params["item"].T - ratings).mean()


def main() -> None:
    params = {"user": jnp.ones((2, 3)), "item": jnp.ones((4, 3))}
    optimizer = alternating({"user": optax.adamw(1e-3), "item": optax.sgd(0.1)}, LABELS, accumulate=2)
    gradients = active_value_and_grad(loss, LABELS, ("user", "item"))
    schedule = HostAlternator(Alternator(("user", "item")), delay=1)
    state = optimizer.init(params)
    assert_type(schedule.active, str)
    assert isinstance(state, AlternatingState)  # optax says no more than that it is a state
    assert_type(in_force(state, 0), int | jax.Array)
    value, grads = gradients(params, jnp.zeros((2, 4)), active=schedule.active)
    updates, state = optimizer.update(grads, state, params, active=schedule.active)
    params = apply_updates(params, updates)
    assert_type(schedule.observe(value), Decision)
    assert_type(schedule.observe({"user": value}, updated=True), Decision)
    schedule.flush()
    assert_type(schedule.state_dict(), dict[str, Any])


def misuse(schedule: HostAlternator) -> None:
    alternating({"user": optax.sgd(0.1)}, LABELS, accumulate="2")  # type: ignore[arg-type]
    alternating(("user", "item"), LABELS)  # type: ignore[arg-type]
    active_value_and_grad("loss", LABELS, ("user", "item"))  # type: ignore[arg-type]
    schedule.active = "item"  # type: ignore[misc]
    HostAlternator(("user", "item"))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
