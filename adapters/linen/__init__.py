"""Flax linen: a `TrainState` that moves the active modules only."""

from adapters.needed import require

require("jax", "jax", "flax", "optax")

from adapters.linen.train_state import TrainState  # noqa: E402  only now, with words for what is missing

__all__ = ["TrainState"]
