"""Moving averages of the weights, one count of updates per module; see `ur4rec.config.TrainerConfig.ema_decay`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ur4rec_jax.state import TrainState


def follow(state: TrainState, active: tuple[str, ...], good: Array, decay: float) -> TrainState:
    """The state after an update whose averages take it into account.

    `optax.ema` has one count for a whole tree and averages what it is given, frozen or not. Here a module's average
    follows its own updates, whose count is its optimizer's, so that what is frozen keeps every bit.

    A table whose rows are updated as they are used is averaged whole in each update of its module: so the average is
    the same as that of every other weight, at the cost of reading and writing the table once.

    Args:
        state: After the update.
        active: What was updated.
        good: Whether the step had an effect.
        decay: At most this share of an average remains.
    """
    averages = state.averages
    assert averages is not None

    def moved(part: str) -> Any:
        count = state.optimizers.inner_states[part][0].count
        share = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
        return jax.tree.map(
            lambda average, weight: jnp.where(good, average + share * (weight - average), average),
            averages[part],
            state.params[part],
        )

    return state._replace(averages={**averages, **{part: moved(part) for part in active}})
