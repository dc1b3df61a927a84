"""`adapters.nnx` as a user writes it, in a training loop of their own."""

# pyright: reportUnnecessaryTypeIgnoreComment=false
from typing import assert_type

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]
from flax import nnx

from adapters.nnx import AlternatingOptimizer
from alternator import Alternator, Decision


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encoder = nnx.Linear(3, 4, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.head(self.encoder(inputs))


def loss(model: Model, inputs: jax.Array) -> jax.Array:
    return jnp.square(model(inputs)).mean()


def main() -> None:
    model = Model(nnx.Rngs(0))
    alternator = Alternator(("encoder", "head"))
    optimizer = AlternatingOptimizer(model, {"encoder": optax.adamw(1e-3), "head": optax.adamw(1e-3)}, accumulate=1)
    assert_type(optimizer.in_force(alternator.active), int | jax.Array)
    value, gradients = optimizer.value_and_grad(loss)(model, jnp.ones((2, 3)), active=alternator.active)
    optimizer.update(model, gradients, active=alternator.active)
    assert_type(alternator.observe(float(value)), Decision)


def misuse(optimizer: AlternatingOptimizer, model: Model) -> None:
    optimizer.value_and_grad("loss")  # type: ignore[arg-type]
    optimizer.update(model, {})  # type: ignore[call-arg]
    optimizer.update(model, {}, active=1.5)  # type: ignore[arg-type]
    AlternatingOptimizer(model, {"encoder": optax.sgd(0.1)}, always="head")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
