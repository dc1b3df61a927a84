"""`adapters.linen` as a user writes it: Flax's train state, statistics and an audit."""

# pyright: reportUnnecessaryTypeIgnoreComment=false
from typing import Any, assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

from adapters.linen import TrainState
from adapters.optax import active_value_and_grad, alternating, keep_frozen, labels_of
from adapters.optax.audit import Audit
from alternator import Alternator, Cycle

LABELS = labels_of({"encoder": "*", "head": "head", "frozen": ["scale"]})


class Model(nn.Module):
    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return nn.Dense(1, name="head")(nn.Dense(2, name="encoder")(inputs)) * self.param(
            "scale", lambda _: jnp.ones(())
        )


class State(TrainState):  # type: ignore[no-untyped-call]
    batch_stats: Any = None


def main() -> None:
    model, inputs = Model(), jnp.ones((4, 3))
    alternator = Alternator(("encoder", "head"), Cycle(2))
    tx = alternating(dict.fromkeys(alternator.modules, optax.adam(0.1)), LABELS, alternator=alternator)
    state: State = State.create(apply_fn=model.apply, params=model.init(jax.random.key(0), inputs)["params"], tx=tx)
    gradients = active_value_and_grad(
        lambda params: jnp.square(state.apply_fn({"params": params}, inputs)).mean(), LABELS, alternator.modules
    )
    keep = keep_frozen(LABELS, alternator.modules)
    audit = Audit(LABELS, alternator.modules)
    for _ in range(4):
        active = alternator.active
        audit.frozen(state.params, state.opt_state, active=active)
        value, grads = gradients(state.params, active=active)
        stats = keep(state.params, {}, {}, active=active)
        state = state.apply_gradients(grads=grads, active=active, batch_stats=stats)
        audit.check(state.params, state.opt_state)
        alternator.observe(float(value))
    assert_type(state, State)
    assert_type(audit.num_checks, int)
    assert audit.num_checks == 4


def misuse(state: State) -> None:
    state.apply_gradients(grads={})  # type: ignore[call-arg]
    state.apply_gradients(grads={}, active=1.5)  # type: ignore[arg-type]
    labels_of({"head": 3})  # type: ignore[dict-item]
    Audit(LABELS, ("encoder", "head")).frozen({})  # type: ignore[call-arg]


if __name__ == "__main__":
    main()
